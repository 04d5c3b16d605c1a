"""JPEG compression as a defense: what the compression throws away is gone before the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from advkit.core import checks
from advkit.core.tensors import at_least_float32
from advkit.defenses.pixels import check_images
from advkit.models import Bounds, StraightThrough, as_classifier
from advkit.models.wrappers import straight_through

Table = tuple[tuple[int, ...], ...]

_SIDE = 8  # of the blocks that are transformed

# Tables K.1 and K.2 of the standard (ITU-T T.81, Annex K), rows of vertical frequency.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114  # shares of the luminance (JFIF)
_TO_BLUE, _TO_RED = 2 * (1 - _BLUE), 2 * (1 - _RED)  # ranges of the chrominances over the bytes
_POWER, _LEAST = 2, 0.1  # of the gradient of the quantisation
_TIE = 1e-4  # floats that should be a half may fall short of it


class JpegCompression(StraightThrough):
    """A model that sees images after JPEG compression (Dziugaite et al., 2016, arXiv:1608.00853).

    What compression throws away is gone before the model looks; Das et al. (2017, arXiv:1705.02900)
    and Guo et al. (2018, arXiv:1711.00117) proposed the same. An attack on this
    model knows of it: backward every rounding is the identity but that of the quantisation, whose
    gradient is largest for coefficients that a small change rounds to another value. On ResNet-20
    at 1/255 and quality 75 that leaves 18 % of 40 images where the identity for all of the step
    leaves 55 % (the page on input defenses has more).

    The lossy part of baseline JPEG (ITU-T T.81) runs on whole batches, on any device: rounding to
    8 bits, luminance and chrominance (JFIF), half of the chrominance's resolution, the cosine
    transform of blocks of 8 x 8, the quantisation, and all of that back. Entropy coding, which
    loses nothing, is left out. Sides that are no multiple of a block go on with their last row or
    column.

    Deviations: where the papers do not name the tables, these are those of Annex K, scaled as
    libjpeg does. Arithmetic is in floats where libjpeg's is in integers: CIFAR-10 images differ
    from those of Pillow by 0.1 to 0.5 grey levels on average. Guo et al. also train on such images.

    Args:
        model: what sees the compressed images `(n, channels, height, width)`, gray ones or those of
            red, green and blue, within any bounds.
        quality: 1 to 100, of which libjpeg makes the steps of the quantisation.
        subsampling: halve the resolution of the chrominance along both axes (4:2:0).

    Raises:
        TypeError: an argument is of the wrong type, or `model` is no classifier.
        ValueError: `quality` is out of its range; at a call, the input is no such image.

    Example:
        >>> import torch
        >>> from advkit import attacks, defenses
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
        >>> model = defenses.JpegCompression(net, quality=75)
        >>> x = torch.rand(2, 3, 8, 8)
        >>> x_adv = attacks.PGD(eps=8 / 255, steps=5)(model, x)  # knows of the compression
        >>> model.step(x_adv).shape  # what the net sees
        torch.Size([2, 3, 8, 8])
    """

    def __init__(self, model: object, quality: int = 75, subsampling: bool = True) -> None:
        checks.integer("quality", quality, at_least=1)
        if quality > 100:
            raise ValueError(f"`quality` must be at most 100, got {quality}")
        checks.boolean("subsampling", subsampling)
        inner = as_classifier(model)
        codec = _Codec(inner.bounds, quality, subsampling)
        super().__init__(inner, codec, backward=codec)
        self.quality = quality
        self.subsampling = subsampling

    def __repr__(self) -> str:
        given = f"quality={self.quality}, subsampling={self.subsampling}"
        return f"{type(self).__name__}({self.model!r}, {given})"


@dataclass(frozen=True)
class _Codec:
    """Compression of images within `bounds`, and what is read back."""

    bounds: Bounds
    quality: int
    subsampling: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Images `(n, channels, height, width)` after the round trip."""
        check_images(x, JpegCompression.__name__)
        if x.shape[1] not in (1, 3):
            raise ValueError(f"JpegCompression needs 1 or 3 channels, got {x.shape[1]}")
        lower, upper = self.bounds
        pixels = _byte((at_least_float32(x) - lower) / (upper - lower) * 255 - 128)
        pixels = self._colour(pixels) if x.shape[1] == 3 else self._coded(pixels, _LUMINANCE)
        back = lower + (pixels + 128) / 255 * (upper - lower)
        return straight_through(back, back.clamp(lower, upper)).to(x.dtype)

    def _colour(self, pixels: Tensor) -> Tensor:
        """The round trip of red, green and blue `(n, 3, height, width)`."""
        light, chroma = _from_rgb(pixels)
        light = self._coded(light, _LUMINANCE)
        if not self.subsampling:
            return _to_rgb(light, self._coded(chroma, _CHROMINANCE))
        height, width = chroma.shape[-2:]
        half = self._coded(_halved(chroma), _CHROMINANCE)
        half = half[..., : -(-height // 2), : -(-width // 2)]
        return _to_rgb(light, _doubled(half)[..., :height, :width])

    def _coded(self, plane: Tensor, base: Table) -> Tensor:
        """What the quantisation leaves of bytes around zero, `(n, channels, height, width)`."""
        height, width = plane.shape[-2:]
        blocks = _blocks(_continued(plane, _SIDE, _SIDE))
        cosine, table = _cosine(plane), self._table(base, plane)
        found = _nearest(cosine @ blocks @ cosine.T / table) * table
        return _byte(_joined(cosine.T @ found @ cosine)[..., :height, :width])

    def _table(self, base: Table, like: Tensor) -> Tensor:
        """`base` for the quality, `(8, 8)`."""
        percent = 5000 // self.quality if self.quality < 50 else 200 - 2 * self.quality
        table = (torch.tensor(base) * percent + 50) // 100
        return table.clamp(1, 255).to(like)


def _byte(v: Tensor) -> Tensor:
    """Whole numbers from -128 to 127; the gradient is that of `v`."""
    return straight_through(v, v.round().clamp(-128, 127))


def _nearest(v: Tensor) -> Tensor:
    """Whole numbers; halves go away from zero, as in libjpeg.

    Pixels are whole numbers, so that halves are frequent and rounding errors must not decide them.
    The gradient is `(2 d)**2 + 0.1` times that of `v`, `d` being the distance to the nearest whole
    number: a small change moves only what is near a half, a large one, for which the rest is there,
    moves anything.
    """
    d = v - v.detach().round()
    power = _POWER + 1
    likeness = d.sign() * (2 * d).abs() ** power / (2 * power) + _LEAST * v
    return straight_through(likeness, v.sign() * (v.abs() + (0.5 + _TIE)).floor())


def _from_rgb(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance `(n, 1, height, width)` and chrominance `(n, 2, height, width)`, around zero."""
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    light = _RED * red + _GREEN * green + _BLUE * blue
    return _byte(light), _byte(torch.cat([(blue - light) / _TO_BLUE, (red - light) / _TO_RED], 1))


def _to_rgb(light: Tensor, chroma: Tensor) -> Tensor:
    """The inverse."""
    to_blue, to_red = chroma[:, :1], chroma[:, 1:]
    red, blue = light + _TO_RED * to_red, light + _TO_BLUE * to_blue
    green = (light - _RED * red - _BLUE * blue) / _GREEN
    return _byte(torch.cat([red, green, blue], dim=1))


def _halved(plane: Tensor) -> Tensor:
    """Means of 2 x 2; their halves go down and up in turn, as in libjpeg.

    That repeats the last column up to a block before it takes the means, the last row after it.
    """
    means = F.avg_pool2d(_continued(plane, 2, 2 * _SIDE), 2)
    up = torch.tensor([0.25, 0.5], device=plane.device).repeat(means.shape[-1] // 2)
    return straight_through(means, (means + up).floor())


def _doubled(plane: Tensor) -> Tensor:
    """Twice the resolution; each value is 9/16 of the nearest one and the rest of three others."""
    doubled: Tensor = F.interpolate(plane, scale_factor=2, mode="bilinear", align_corners=False)
    return straight_through(doubled, doubled.round())


def _continued(plane: Tensor, rows: int, columns: int) -> Tensor:
    """The last row and column repeated up to multiples of `rows` and `columns`."""
    height, width = plane.shape[-2:]
    return F.pad(plane, (0, -width % columns, 0, -height % rows), mode="replicate")


def _blocks(plane: Tensor) -> Tensor:
    """`(n, channels, rows, columns)` as blocks `(n, channels, rows / 8, columns / 8, 8, 8)`."""
    n, channels, height, width = plane.shape
    rows = plane.reshape(n, channels, height // _SIDE, _SIDE, width // _SIDE, _SIDE)
    return rows.transpose(-3, -2)


def _joined(blocks: Tensor) -> Tensor:
    """The inverse."""
    return blocks.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def _cosine(like: Tensor) -> Tensor:
    """The orthonormal cosine transform `(8, 8)`, a row for each frequency."""
    place = torch.arange(_SIDE, dtype=torch.float64)
    waves = torch.cos(torch.outer(place, 2 * place + 1) * math.pi / (2 * _SIDE)) / 2
    waves[0] /= math.sqrt(2)
    return waves.to(like)
