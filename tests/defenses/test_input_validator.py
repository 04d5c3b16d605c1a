"""What is checked of an input, what is said of it, and the repair that an attacker uses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advkit import StraightThrough, TorchClassifier, attacks, eval
from advkit.defenses.input_validator import InputValidator, Validation
from advkit.models import REJECTED, evaluating
from tests.toys import Halfspace, convnet, images


@pytest.fixture
def x():
    return images()


def smooth(n=6, channels=1, seed=0, dtype=torch.float32):
    """Images on the grid of 8 bits, whose pixels stand out little."""
    generator = torch.Generator().manual_seed(seed)
    slope, level = torch.rand(2, n, channels, 1, 1, generator=generator)
    ramp = torch.arange(6.0) / 6 * slope + level * (1 - slope)
    return ((255 * ramp).round() / 255).expand(-1, -1, 6, -1).to(dtype, copy=True)


def contrast_numpy(image):
    """The largest distance of a pixel of `(channels, height, width)` to its neighbours' median."""
    around = np.pad(image, [(0, 0), (1, 1), (1, 1)], mode="symmetric")
    largest = 0.0
    for c, i, j in np.ndindex(image.shape):
        window = np.delete(around[c, i : i + 3, j : j + 3].flatten(), 4)
        largest = max(largest, abs(image[c, i, j] - np.median(window)))
    return largest


def test_values_outside_of_the_bounds_are_rejected_with_the_reason(x):
    model = InputValidator(convnet())
    x[1, 0, 2, 3], x[3, 0, 0, 5] = 1.25, -0.5
    x[4, 0, 1, 1], x[5, 0, 1, 1] = math.nan, math.inf
    found = model.validate(x)
    assert found.accepted.tolist() == [True, False, True, False, False, False, True, True]
    assert found.reasons[0] == ""
    assert found.reasons[1] == "bounds: 1.25 at (0, 2, 3), must lie in [0, 1]"
    assert found.reasons[3] == "bounds: -0.5 at (0, 0, 5), must lie in [0, 1]"
    assert found.reasons[4] == "finite: nan at (0, 1, 1), must be finite"
    assert found.reasons[5] == "finite: inf at (0, 1, 1), must be finite"
    labels = model.predict(x)
    assert torch.equal(labels == REJECTED, ~found.accepted)
    accepted = x[found.accepted]
    assert torch.equal(labels[found.accepted], TorchClassifier(convnet()).predict(accepted))


def test_nothing_more_is_said_of_what_is_not_finite():
    x = torch.full((2, 1, 6, 6), 0.5 + 0.2 / 255)
    x[0, 0, 2, 2], x[1, 0, 2, 2] = math.inf, math.nan
    for reason in InputValidator(convnet(), grid=255, contrast=0.1).validate(x).reasons:
        assert reason.startswith("finite")
        assert ";" not in reason


def test_what_rounding_adds_is_accepted():
    model = InputValidator(TorchClassifier(nn.Flatten(), (-1, 3)), grid=255)
    x = torch.tensor([[-1 - 3e-5, 3 + 3e-5], [-1 - 6e-5, 0.6], [-1 + 4 / 255 + 3e-5, 3.0]])
    assert model.validate(x).accepted.tolist() == [True, False, True]

    class Strict(nn.Module):
        def forward(self, x):
            assert x.min() >= -1
            assert x.max() <= 3
            return x

    assert InputValidator(TorchClassifier(Strict(), (-1, 3))).predict(x[:1]).tolist() == [1]


@settings(deadline=None, max_examples=30)
@given(grid=st.integers(1, 255), span=st.floats(0.1, 20))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_grid(dtype, grid, span):
    if dtype == torch.float16:
        grid = min(grid, 128)  # of a finer one 0.3 of a step is what rounding may add
    model = InputValidator(TorchClassifier(nn.Flatten(), (0.0, span)), grid=grid)
    k = torch.arange(grid + 1)
    values = (k.double() / grid * span).to(dtype)[None]
    assert model.validate(values).accepted.all()
    off = values.clone()
    off[0, grid // 2] += 0.3 * span / grid
    found = model.validate(off)
    assert not found.accepted.any()
    assert (
        f"grid: {float(off[0, grid // 2]):.6g} at ({grid // 2}), must be 0 + k *"
        in found.reasons[0]
    )
    back = model.repair(off)
    assert back.dtype == dtype
    torch.testing.assert_close(back, values)
    assert model.validate(back).accepted.all()


def test_a_grid_finer_than_the_dtype_is_refused(x):
    with pytest.raises(
        ValueError, match="`x` must have a more precise dtype for grid=255, got torch.bfloat16"
    ):
        InputValidator(convnet(), grid=255).validate(x.bfloat16())
    with pytest.raises(ValueError, match="more precise dtype for grid=100"):
        InputValidator(convnet(), grid=100).repair(x.bfloat16())
    coarse = InputValidator(convnet(), grid=4)
    assert coarse.validate((x > 0.5).bfloat16()).accepted.all()


def test_contrast_is_that_of_the_median_of_eight(x):
    for image in [*x, x[0, :, :2, :3], x[1, :, :4, :2]]:
        largest = contrast_numpy(image.double().numpy())
        for by, expected in ((-1e-3, False), (1e-3, True)):
            model = InputValidator(TorchClassifier(nn.Flatten()), contrast=largest + by)
            assert model.validate(image[None]).accepted.item() is expected


def test_a_lone_pixel_stands_out_wherever_it_is():
    model = InputValidator(convnet(), contrast=0.4)
    for place in ((0, 0), (0, 3), (5, 5), (2, 0), (3, 3)):
        x = torch.full((1, 1, 6, 6), 0.25)
        x[0, 0][place] = 1.0
        (reason,) = model.validate(x).reasons
        assert reason == f"contrast: 0.75 at (0, {place[0]}, {place[1]}), must be at most 0.4"
        repaired = model.repair(x)
        x[0, 0][place] = 0.65
        torch.testing.assert_close(repaired, x)


def test_channels_are_looked_at_one_by_one():
    x = torch.zeros(1, 3, 6, 6)
    x[0, 1] = 1.0
    model = InputValidator(TorchClassifier(nn.Flatten()), contrast=0.1)
    assert model.validate(x).accepted.all()
    x[0, 2, 4, 4] = 0.2
    assert "at (2, 4, 4)" in model.validate(x).reasons[0]


@pytest.mark.parametrize(("share", "rejected"), [(0.0, 0), (0.01, 1), (0.25, 25), (0.259, 25)])
def test_the_limit_is_the_least_that_rejects_no_more_than_asked(share, rejected):
    x = images(100)
    model = InputValidator(convnet(), contrast="fitted")
    assert model.fit(x, fpr=share) is model
    assert int((~model.validate(x).accepted).sum()) == rejected
    contrasts = sorted(contrast_numpy(image.numpy()) for image in x)
    assert model.limit == pytest.approx(contrasts[99 - rejected])


def test_many_images_are_looked_at_in_parts():
    x = images(300)
    model = InputValidator(convnet(), contrast="fitted").fit(x, fpr=0)
    assert model.limit == pytest.approx(max(contrast_numpy(image.numpy()) for image in x))
    x[299, 0, 3, 3] = 1 - x[299, 0, 2, 2].round()
    assert model.validate(x).accepted[:299].all()


def test_16_bits_are_fitted_in_32(x):
    coarse = x.bfloat16()
    one, other = (
        InputValidator(convnet(), contrast="fitted").fit(v) for v in (coarse, coarse.float())
    )
    assert one.limit == other.limit


def test_what_is_not_fitted_says_so(x):
    model = InputValidator(convnet(), contrast="fitted")
    for ask in (model.validate, model.predict, model.repair, model.repaired.predict):
        with pytest.raises(ValueError, match=r"Call fit\(x\) with clean images"):
            ask(x)
    for contrast in (None, 0.2):
        with pytest.raises(ValueError, match="`contrast` must be 'fitted' for fit"):
            InputValidator(convnet(), contrast=contrast).fit(x)
    with pytest.raises(ValueError, match="`fpr` must lie in .0, 1., got 1"):
        model.fit(x, fpr=1)
    with pytest.raises(ValueError, match=r"`fpr` must lie in .0, 1."):
        model.fit(x, fpr=math.nan)
    with pytest.raises(ValueError, match="`x` must hold at least one image"):
        model.fit(x[:0])
    with pytest.raises(ValueError, match="bounds"):
        model.fit(2 * x)
    with pytest.raises(ValueError, match="for contrast, got"):
        model.fit(x.flatten(1))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), limit=st.floats(0.1, 0.9), noise=st.floats(0.01, 2))
def test_a_repaired_input_is_valid_and_a_valid_one_stays(seed, limit, noise):
    model = InputValidator(convnet(), grid=255, contrast=limit)
    generator = torch.Generator().manual_seed(seed)
    x = smooth(seed=seed % 1000)
    if model.validate(x).accepted.all():
        assert torch.equal(model.repair(x), x)
    wild = x + noise * torch.randn(x.shape, generator=generator)
    repaired = model.repair(wild)
    found = model.validate(repaired)
    assert (repaired >= 0).all()
    assert (repaired <= 1).all()
    torch.testing.assert_close(255 * repaired, (255 * repaired).round(), rtol=0, atol=1e-3)
    assert found.accepted.all(), str(found)


def test_a_repair_moves_only_what_stands_out():
    x = smooth(n=1)
    x[0, 0, 1, 1] = (1 - x[0, 0, 1, 1]).round()
    model = InputValidator(convnet(), grid=255, contrast=0.25)
    moved = (model.repair(x) != x).nonzero()
    assert moved.tolist() == [[0, 0, 1, 1]]
    assert torch.equal(model.repair(x * 0 + torch.inf), torch.ones_like(x))


def test_repairs_are_repeated():
    """The second of two bright pixels stands out once the first is pulled back."""
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 2:4, 1:4] = 1.0
    model = InputValidator(convnet(), contrast=0.2)
    once, often = model.repair(x, max_iterations=1), model.repair(x)
    assert not model.validate(once).accepted.all()
    assert model.validate(often).accepted.all()


def test_what_cannot_be_repaired_is_said(x):
    with pytest.raises(ValueError, match=r"`x` must not hold NaN, got NaN \(sample 1\)"):
        InputValidator(convnet()).repair(torch.tensor([[0.1], [math.nan]]))
    with pytest.raises(ValueError, match="`max_iterations` must be at least 1"):
        InputValidator(convnet()).repair(x, max_iterations=0)


def test_an_attacker_who_knows_goes_around_it():
    """A plane, and values on a grid of tenths: 0.5 each, so 4.5 in all, to get above 4.95."""
    net = Halfspace(torch.ones(9), b=-4.95)
    model = InputValidator(net, grid=10, contrast=0.15)
    x, y = torch.full((2, 1, 3, 3), 0.5), torch.tensor([0, 0])
    bare = attacks.PGD(eps=0.12, steps=10)
    assert (model.predict(bare(net, x, y)) == REJECTED).all()
    assert isinstance(model.repaired, StraightThrough)
    result = bare.run(model.repaired, x, y)
    assert result.success.all()
    sent = model.repair(result.x_adv)
    assert model.predict(sent).tolist() == [1, 1]
    assert (sent - x).abs().max() <= 0.12
    near = attacks.PGD(eps=0.04, steps=10)  # which is rounded back
    assert not near.run(model.repaired, x, y).success.any()


def test_it_is_a_classifier_of_labels(x):
    model = InputValidator(convnet(), grid=255)
    y = convnet()(x).argmax(1)
    assert not hasattr(model, "scores")
    assert not hasattr(model, "logits")
    with pytest.raises(ValueError, match="`num_classes` must be given to be known"):
        model.num_classes  # noqa: B018
    assert model.predict(x).tolist() == y.tolist()
    assert (model.num_classes, model.bounds) == (3, (0, 1))
    noise = attacks.RandomNoise(eps=0.1).run(model, x, y)
    assert not noise.success.any()
    assert float(eval.accuracy(model, x, y)) == 1
    assert float(eval.accuracy(model, x + (0.3 / 255) * (x < 0.5), y)) == 0
    net = convnet().train()
    with evaluating(InputValidator(net)):
        assert not net.training
    assert net.training
    assert model.predict(x[:0]).shape == (0,)
    assert model.validate(x[:0]).accepted.shape == (0,)


def test_a_validation_is_readable():
    reasons = ("", *[f"bounds: {i} at (0), must lie in [0, 1]" for i in range(1, 8)])
    shown = str(Validation(torch.tensor([True] + [False] * 7), reasons)).splitlines()
    assert shown[0] == "1 of 8 inputs are valid"
    assert shown[1] == "  1: bounds: 1 at (0), must lie in [0, 1]"
    assert shown[5].startswith("  5: ")
    assert shown[6:] == ["  and 2 more"]
    both = InputValidator(convnet(), grid=4).validate(torch.tensor([[0.1, 2.0]]))
    assert str(both) == (
        "0 of 1 inputs are valid\n  0: bounds: 2 at (1), must lie in [0, 1]; "
        "grid: 0.1 at (0), must be 0 + k * 1 / 4"
    )


def test_arguments(x):
    for wrong, said in (
        ({"grid": 0}, "`grid` must be at least 1"),
        ({"contrast": 0.0}, "`contrast` must be positive"),
        ({"contrast": math.nan}, "`contrast` must be positive"),
        ({"contrast": "clean"}, "`contrast` must be one of 'fitted', got 'clean'"),
    ):
        with pytest.raises(ValueError, match=said):
            InputValidator(convnet(), **wrong)
    with pytest.raises(TypeError, match="`grid` must be an int"):
        InputValidator(convnet(), grid=255.0)
    with pytest.raises(TypeError, match="`model` must be"):
        InputValidator(3)
    model = InputValidator(convnet(), contrast=0.5)
    with pytest.raises(TypeError, match="`x` must be a torch.Tensor, got list"):
        model.predict([0.5])
    with pytest.raises(TypeError, match="`x` must have a floating dtype"):
        model.predict((255 * x).byte())
    for wrong in (x[0, 0, 0], x[:, :, :0]):
        with pytest.raises(ValueError, match="`x` must have shape"):
            model.predict(wrong)
    with pytest.raises(ValueError, match="for contrast, got"):
        model.predict(x.flatten(1))
    assert repr(model).endswith("grid=None, contrast=0.5)")
