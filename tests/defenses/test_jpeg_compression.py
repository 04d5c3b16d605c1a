"""The lossy part of JPEG, against Pillow and against the standard's formulas."""

import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from advkit import StraightThrough, TorchClassifier, attacks
from advkit.defenses.jpeg_compression import JpegCompression
from tests.toys import convnet, images


def compressed(x, bounds=(0.0, 1.0), **given):
    return JpegCompression(TorchClassifier(nn.Flatten(), bounds), **given).step(x)


def scene(n=2, channels=3, height=40, width=48, seed=0):
    """Smooth shapes with an edge and some noise, of 8 bits, float32 in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    phase = 6 * torch.rand(n, channels, 1, 1, generator=generator)
    shape = 0.5 + 0.3 * torch.sin(x / 7 + phase) * torch.cos(y / 5 - phase)
    shape = torch.where(x + y > 50, shape, 1 - shape)
    shape = shape + 0.03 * torch.randn(shape.shape, generator=generator)
    return (shape.clamp(0, 1) * 255).round() / 255


def through_pillow(x, quality, subsampling):
    image = pytest.importorskip("PIL.Image")
    out = []
    for levels in (255 * x).round().byte().permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        flat = levels[..., 0] if levels.shape[2] == 1 else levels
        chroma = 2 if subsampling else 0
        image.fromarray(flat).save(file, "JPEG", quality=quality, subsampling=chroma)
        out.append(np.asarray(image.open(file)).reshape(levels.shape))
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("quality", [5, 49, 50, 90])
@pytest.mark.parametrize(
    ("size", "subsampling"),
    [((3, 40, 48), True), ((3, 40, 48), False), ((3, 37, 43), True), ((1, 37, 43), True)],
)
def test_it_is_what_pillow_reads_back(quality, size, subsampling):
    """To 0.75 grey levels on average: Pillow's transform is rounded, so that ties differ."""
    x = scene(1, *size)
    found = compressed(x, quality=quality, subsampling=subsampling)
    expected = through_pillow(x, quality, subsampling)
    assert 255 * (found - expected).abs().mean() < 0.75
    levels = 255 * found
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)


def test_published_images_are_what_pillow_reads_back(mnist_test, cifar10_test):
    for data, most in ((mnist_test, 0.15), (cifar10_test, 0.55)):
        for quality in (25, 75, 90):
            x = data.x[:20]
            found = compressed(x, quality=quality)
            assert 255 * (found - through_pillow(x, quality, True)).abs().mean() < most


def by_hand(block, table):
    """The round trip of one block `(8, 8)` of grey levels, by the standard's double sums."""

    def c(k):
        return math.sqrt(0.5) if k == 0 else 1.0

    def wave(k, n):
        return math.cos((2 * n + 1) * k * math.pi / 16)

    span = range(8)
    found = np.zeros((8, 8))
    for u in span:
        for v in span:
            total = sum((block[i, j] - 128) * wave(u, i) * wave(v, j) for i in span for j in span)
            found[u, v] = round(c(u) * c(v) * total / 4 / table[u, v]) * table[u, v]
    back = np.zeros((8, 8))
    for i in span:
        for j in span:
            terms = (
                c(u) * c(v) * found[u, v] * wave(u, i) * wave(v, j) for u in span for v in span
            )
            back[i, j] = round(sum(terms) / 4 + 128)
    return back.clip(0, 255)


def test_a_gray_block_by_the_formulas():
    """At quality 50 the table is the standard's own: its first row begins 16, 11, 10, 16."""
    table = np.array(
        [
            [16, 11, 10, 16, 24, 40, 51, 61],
            [12, 12, 14, 19, 26, 58, 60, 55],
            [14, 13, 16, 24, 40, 57, 69, 56],
            [14, 17, 22, 29, 51, 87, 80, 62],
            [18, 22, 37, 56, 68, 109, 103, 77],
            [24, 35, 55, 64, 81, 104, 113, 92],
            [49, 64, 78, 87, 103, 121, 120, 101],
            [72, 92, 95, 98, 112, 100, 103, 99],
        ]
    )
    block = np.random.default_rng(3).integers(0, 256, (8, 8))
    x = torch.from_numpy(block / 255).view(1, 1, 8, 8)
    for quality, scaled in ((50, table), (25, 2 * table), (75, (table + 1) // 2)):
        found = 255 * compressed(x, quality=quality).view(8, 8).numpy()
        np.testing.assert_allclose(found, by_hand(block, scaled), atol=1e-9)


def test_flat_images_stay_and_halves_go_away_from_zero():
    for level in (0, 77, 128, 255):
        x = torch.full((1, 1, 8, 8), level / 255)
        torch.testing.assert_close(compressed(x, quality=100), x)
    # 8 * 3 over the step of 16 is 1.5, which is rounded to 2: 4 grey levels, up and down alike
    for level, expected in ((131, 132), (125, 124)):
        x = torch.full((2, 1, 8, 8), level / 255)
        torch.testing.assert_close(
            255 * compressed(x, quality=50)[0, 0, 0, 0], torch.tensor(expected).float()
        )


def test_bounds_and_dtypes():
    x = scene()
    expected = compressed(x, quality=60)
    torch.testing.assert_close(compressed(4 * x - 1, (-1, 3), quality=60), 4 * expected - 1)
    torch.testing.assert_close(compressed(255 * x, (0, 255), quality=60), 255 * expected)
    assert (compressed(x.double(), quality=60).float() - expected).abs().mean() < 0.1 / 255
    assert compressed(x.bfloat16(), quality=60).dtype == torch.bfloat16
    white = torch.full((1, 1, 8, 8), 0.7)
    assert (compressed(white, (0.1, 0.7), quality=100) <= 0.7).all()
    noise = torch.rand(2, 3, 20, 20)
    found = compressed(noise, quality=5)
    assert found.min() >= 0
    assert found.max() <= 1


def test_a_sample_does_not_depend_on_its_batch():
    x = scene(4)
    assert torch.equal(compressed(x)[2:3], compressed(x[2:3]))


def test_the_model_is_the_inner_one_of_compressed_images():
    x = images()
    model, inner = JpegCompression(convnet(), quality=40), TorchClassifier(convnet())
    for ask in ("logits", "scores", "predict"):
        assert torch.equal(getattr(model, ask)(x), getattr(inner, ask)(model.step(x)))
    leaf = x.clone().requires_grad_()
    assert torch.equal(model.logits(leaf), inner.logits(model.step(x)))


def test_the_gradient_is_large_where_the_quantisation_may_change():
    """A flat block has one coefficient, 8 times its level: its step at quality 25 is 32."""

    class Mean(nn.Module):
        def forward(self, x):
            return torch.stack([torch.zeros(len(x)), x.flatten(1).mean(1)], 1)

    lower, upper = -1, 2
    level = torch.tensor([0, 1, 2, 3, 4]).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    x = (lower + (level + 128.2) / 255 * (upper - lower)).requires_grad_()
    model = JpegCompression(TorchClassifier(Mean(), (lower, upper)), quality=25)
    (grad,) = torch.autograd.grad(model.logits(x)[:, 1].sum(), x)
    distance = torch.tensor([0, 0.25, 0.5, 0.25, 0])
    slope = (2 * distance) ** 2 + 0.1
    torch.testing.assert_close(grad.sum((1, 2, 3)), slope, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("channels", "subsampling"), [(1, True), (3, True), (3, False)])
def test_the_gradient_reaches_every_pixel(channels, subsampling):
    x = scene(1, channels, 19, 21).requires_grad_()
    w = torch.linspace(-1, 2, x.numel())
    net = nn.Sequential(nn.Flatten(), nn.Linear(x.numel(), 2))
    net[1].weight.data[1] = w
    (grad,) = torch.autograd.grad(JpegCompression(net, 30, subsampling).logits(x)[:, 1].sum(), x)
    assert grad.isfinite().all()
    assert (grad != 0).float().mean() > 0.99


def test_an_attack_that_knows_beats_the_identity(real_net, cifar10_test):
    """Why the gradient is not the identity: with that, most images withstand the same attack."""
    net = real_net("cifar10_resnet20", "cifar10_resnet20.pt")
    model = JpegCompression(net)
    x, y = cifar10_test.x[:10], cifar10_test.y[:10]
    attack = attacks.PGD(eps=1 / 255, steps=6, loss="margin")
    known = attack.run(model, x, y).success
    plain = attack.run(StraightThrough(net, model.step), x, y).success
    assert known.float().mean() > plain.float().mean() + 0.1


def test_arguments():
    for wrong, said in ((0, "at least 1, got 0"), (101, "at most 100, got 101")):
        with pytest.raises(ValueError, match=f"`quality` must be {said}"):
            JpegCompression(convnet(), quality=wrong)
    with pytest.raises(TypeError, match="`quality` must be an int"):
        JpegCompression(convnet(), quality=75.0)
    with pytest.raises(TypeError, match="`subsampling` must be True or False"):
        JpegCompression(convnet(), subsampling=2)
    with pytest.raises(ValueError, match=r"`x` must have shape .* got \(4, 6\)"):
        compressed(torch.rand(4, 6))
    with pytest.raises(
        ValueError, match="`x` must have 1 or 3 channels for JpegCompression, got 2"
    ):
        compressed(torch.rand(4, 2, 8, 8))
    assert repr(JpegCompression(convnet(), 9)).endswith("quality=9, subsampling=True)")
