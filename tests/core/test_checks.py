"""Checks of arguments: what they accept, and their messages."""

import re
import warnings

import numpy as np
import pytest
import torch

from advkit.core import checks


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_positive_refuses(value):
    with pytest.raises(ValueError, match="`size` must be positive and finite, got"):
        checks.positive("size", value)


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_not_negative_refuses(value):
    with pytest.raises(ValueError, match="`size` must be at least 0 and finite, got"):
        checks.not_negative("size", value)


def test_not_negative_takes_zero():
    checks.not_negative("size", 0)


@pytest.mark.parametrize("value", ["1", None, True])
def test_numbers_are_int_or_float(value):
    with pytest.raises(TypeError, match="`size` must be a number, got"):
        checks.positive("size", value)


def test_whole_numbers():
    checks.integer("steps", 1, at_least=1)
    checks.integer("seed", -5)
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        checks.integer("steps", 0, at_least=1)
    for value in (1.0, True, "1"):
        with pytest.raises(TypeError, match="`steps` must be an int, got"):
            checks.integer("steps", value, at_least=1)


def test_flags_and_choices():
    checks.boolean("shown", False)
    with pytest.raises(TypeError, match="`shown` must be True or False, got int: 1"):
        checks.boolean("shown", 1)
    with pytest.raises(ValueError, match="`norm` must be one of 'l2', 'linf', got 'L2'"):
        checks.one_of("norm", "L2", ("l2", "linf"))


@pytest.mark.parametrize(
    ("eps", "said"),
    [
        (torch.tensor([0.1, -0.1]), r"got -0.1 \(sample 1\)"),
        (torch.tensor([torch.nan]), r"got nan \(sample 0\)"),
        (torch.tensor(0.1), r"shape \(\)"),
        (torch.ones(2, 2), r"shape \(2, 2\)"),
        (torch.tensor([True]), "torch.bool"),
    ],
)
def test_eps_refuses(eps, said):
    with pytest.raises(ValueError, match=said):
        checks.eps(eps)


def test_a_budget_needs_one_radius_for_each_sample():
    x = torch.zeros(3, 2, dtype=torch.float64)
    assert checks.radii(0.5, x).tolist() == [0.5] * 3
    assert checks.radii(torch.tensor([1, 2, 3]), x).dtype == torch.float64
    with pytest.raises(ValueError, match=r"`eps` must .* shape \(3,\), got shape \(2,\)"):
        checks.radii(torch.ones(2), x)


def test_inputs_are_clamped_only_within_rounding():
    x = torch.tensor([[0.0, 1.000005], [-0.000005, 0.5]])
    assert checks.inputs("x", x, (0, 1)).tolist() == [[0.0, 1.0], [0.0, 0.5]]
    with pytest.raises(ValueError, match="bounds"):
        checks.inputs("x", torch.tensor([[0.0, 1.0001]]), (0, 1))
    with pytest.raises(ValueError, match="bounds"):
        checks.inputs("x", torch.tensor([[-0.0001, 1.0]]), (0, 1))


def test_inputs_inside_are_copied():
    x = torch.rand(2, 3)
    found = checks.inputs("x", x, (0, 1))
    assert torch.equal(found, x)
    assert found.data_ptr() != x.data_ptr()


def test_inputs_need_features():
    with pytest.raises(ValueError, match=r"must have at least one feature, got shape \(3, 0\)"):
        checks.inputs("x", torch.zeros(3, 0), (0, 1))


def test_many_bad_samples_are_cut_short():
    with pytest.raises(ValueError, match=r"\(samples 0, 1, 2, 3, 4 and 5 more\)"):
        checks.inputs("x", torch.full((10, 2), torch.nan), (0, 1))


def test_probabilities_are_told_from_logits():
    p = torch.tensor([[0.2, 0.8], [1.0, 0.0]])
    assert checks.look_like_probabilities(p)
    assert not checks.look_like_probabilities(p.log())
    assert not checks.look_like_probabilities(torch.tensor([[0.2, 0.7]]))
    assert not checks.look_like_probabilities(torch.tensor([[-0.1, 1.1]]))
    assert not checks.look_like_probabilities(p[:0])


def test_warnings_point_at_the_callers_line():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checks.warn("look here")
    assert caught[0].filename == __file__


def test_exactly_five_indices_are_all_shown():
    bad = torch.tensor([True] * 5 + [False])
    assert checks.indices(bad) == "0, 1, 2, 3, 4"
    assert checks.indices(bad[:4], torch.tensor([7, 8, 9, 10])) == "7, 8, 9, 10"


def test_infinite_eps_is_refused_in_a_tensor_too():
    with pytest.raises(ValueError, match=r"got inf \(sample 1\)"):
        checks.eps(torch.tensor([1.0, torch.inf]))


def test_a_budget_of_too_many_radii_is_refused():
    with pytest.raises(ValueError, match=r"`eps` must .* shape \(3,\), got shape \(4,\)"):
        checks.radii(torch.ones(4), torch.zeros(3, 2))


def test_slack_follows_the_precision():
    assert checks.inputs("x", torch.tensor([[1.003]], dtype=torch.bfloat16), (0, 1)).item() == 1
    wide = torch.tensor([[1.0078125]], dtype=torch.bfloat16)  # one rounding above 1
    assert checks.inputs("x", wide, (0, 1)).item() == 1


def test_inference_tensors_become_plain_ones():
    with torch.inference_mode():
        x = torch.rand(2, 2)
    found = checks.inputs("x", x, (0, 1))
    assert not found.is_inference()
    assert torch.equal(found, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_budget_is_rounded_down_to_the_dtype(dtype):
    x = torch.zeros(3, 2, dtype=dtype)
    for eps in (0.1, 8 / 255, 0.3, 0.0):
        found = checks.radii(eps, x)
        assert found.dtype == dtype
        assert (found.double() <= eps).all()
        assert (found.double() >= eps * (1 - 2 * torch.finfo(dtype).eps)).all()


def test_what_can_be_run_is_an_attack_and_its_class_is_not():
    class Runs:
        def run(self, model, x):
            return x

    assert checks.is_attack(Runs())
    assert not checks.is_attack(Runs)
    assert not checks.is_attack(len)
    with pytest.raises(TypeError, match="`attack` must be an attack, such as"):
        checks.attack("attack", Runs())  # it cannot be called


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("n", [1, 2, 3, 32])
def test_a_softmax_looks_like_probabilities_in_batches_of_any_size(n, classes):
    logits = 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(n))
    for dtype in (torch.float32, torch.float64):
        assert checks.look_like_probabilities(logits.to(dtype).softmax(1))
        assert not checks.look_like_probabilities(logits.to(dtype))


def test_probabilities_of_16_bits_need_a_batch():
    p = torch.randn(32, 10, generator=torch.Generator().manual_seed(0)).softmax(1)
    for dtype in (torch.float16, torch.bfloat16):
        assert checks.look_like_probabilities(p.to(dtype))
        assert not checks.look_like_probabilities(p[:7].to(dtype))


def test_probabilities_that_are_rounded_need_a_few_rows():
    p = torch.tensor([[0.1234, 0.8767]]).repeat(5, 1)
    assert checks.look_like_probabilities(p)
    assert checks.look_like_probabilities(p[:4])
    assert not checks.look_like_probabilities(p[:3].double() + 1e-4)
    assert not checks.look_like_probabilities(torch.tensor([[0.25, 0.7502]]))


def test_logits_in_the_unit_square_seldom_look_like_probabilities():
    rows = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0))
    for n in (1, 2, 4, 8):
        assert not any(map(checks.look_like_probabilities, rows.split(n)))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.array([0.1, 0.2]), "a NumPy array. Convert it with torch.from_numpy(eps)."),
        ([0.1, 0.2], "list. Convert it with torch.tensor(eps)."),
    ],
    ids=["array", "list"],
)
def test_an_eps_for_each_sample_is_a_tensor(value, said):
    with pytest.raises(TypeError, match=re.escape(said)):
        checks.eps(value)
