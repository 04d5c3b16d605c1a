"""JPEG compression as a defense: it removes details before the model processes the image."""

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

_BLOCK_SIZE = 8  # side of a block, in pixels (ITU-T T.81)

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
_RED = 0.299  # weight in the luminance (JFIF)
_GREEN = 0.587  # weight in the luminance (JFIF)
_BLUE = 0.114  # weight in the luminance (JFIF)
_TO_BLUE = 2 * (1 - _BLUE)  # range of the blue chrominance relative to bytes (JFIF)
_TO_RED = 2 * (1 - _RED)  # range of the red chrominance relative to bytes (JFIF)
_GRADIENT_POWER = 2  # of the gradient of the quantization, see `_round_half_away`
_MIN_GRADIENT = 0.1  # at whole numbers, where the power is 0
_TIE_TOLERANCE = 1e-4  # rounding errors of floats that should be exactly one half


class JpegCompression(StraightThrough):
    """Classifier of images after JPEG compression (Dziugaite et al., 2016, arXiv:1608.00853).

    Compression removes details, adversarial ones included, before the model processes the image.
    Das et al. (2017, arXiv:1705.02900) and Guo et al. (2018, arXiv:1711.00117) proposed the same.

    An attack on this model is adaptive: in the backward pass every rounding is the identity, except
    for the quantization. The gradient of the quantization is largest for coefficients that a small
    change rounds to another value. On ResNet-20 at 1/255 and quality 75, the attack leaves 18 % of
    40 images correct; with the identity for the whole step it leaves 55 %. The page on input
    defenses has more figures.

    The lossy part of baseline JPEG (ITU-T T.81) runs on whole batches, on any device. Pixels are
    rounded to 8 bits and converted to luminance and chrominance (JFIF), and the resolution of the
    chrominance is halved. The cosine transform of blocks of 8 x 8 is quantized, and all steps are
    inverted. Entropy coding is lossless and left out. Sides that are not a multiple of a block are
    padded with their last row or column.

    Deviations from the paper:
        - The papers do not name the quantization tables. The tables are those of Annex K, scaled as
          in libjpeg.
        - Arithmetic uses floats, that of libjpeg integers. CIFAR-10 images differ from those of
          Pillow by 0.1 to 0.5 gray levels on average.
        - The model is not trained on compressed images. Guo et al. do that, too.

    Args:
        model: classifier of the compressed images `(n, channels, height, width)`, gray or red,
            green and blue, with any bounds.
        quality: 1 to 100, as in libjpeg; it determines the steps of the quantization.
        subsampling: halve the resolution of the chrominance along both axes (4:2:0).

    Raises:
        TypeError: an argument has the wrong type, or `model` is not a classifier.
        ValueError: `quality` is out of its range; in a call, the input is not such an image.

    Example:
        >>> import torch
        >>> from advkit import attacks, defenses
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
        >>> model = defenses.JpegCompression(net, quality=75)
        >>> x = torch.rand(2, 3, 8, 8)
        >>> x_adv = attacks.PGD(eps=8 / 255, steps=5)(model, x)  # the adaptive attack
        >>> model.step(x_adv).shape  # the inputs of the net
        torch.Size([2, 3, 8, 8])
    """

    def __init__(self, model: object, quality: int = 75, subsampling: bool = True) -> None:
        checks.integer("quality", quality, at_least=1)
        if quality > 100:
            raise ValueError(f"`quality` must be at most 100, got {quality}.")
        checks.boolean("subsampling", subsampling)
        inner = as_classifier(model)
        codec = _Codec(inner.bounds, quality, subsampling)
        super().__init__(inner, codec, backward=codec)
        self.quality = quality
        self.subsampling = subsampling

    def __repr__(self) -> str:
        options = f"quality={self.quality}, subsampling={self.subsampling}"
        return f"{type(self).__name__}({self.model!r}, {options})"


@dataclass(frozen=True)
class _Codec:
    """Compression and decompression of images within `bounds`."""

    bounds: Bounds
    quality: int
    subsampling: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Return images `(n, channels, height, width)` after compression and decompression."""
        check_images(x, JpegCompression.__name__)
        if x.shape[1] not in (1, 3):
            raise ValueError(
                f"`x` must have 1 or 3 channels for JpegCompression, got {x.shape[1]}."
            )
        lower, upper = self.bounds
        pixels = _round_to_byte((at_least_float32(x) - lower) / (upper - lower) * 255 - 128)
        pixels = (
            self._code_color(pixels) if x.shape[1] == 3 else self._code_plane(pixels, _LUMINANCE)
        )
        decoded = lower + (pixels + 128) / 255 * (upper - lower)
        return straight_through(decoded, decoded.clamp(lower, upper)).to(x.dtype)

    def _code_color(self, pixels: Tensor) -> Tensor:
        """Code red, green and blue `(n, 3, height, width)`."""
        luma, chroma = _from_rgb(pixels)
        luma = self._code_plane(luma, _LUMINANCE)
        if not self.subsampling:
            return _to_rgb(luma, self._code_plane(chroma, _CHROMINANCE))
        height, width = chroma.shape[-2:]
        half = self._code_plane(_downsample(chroma), _CHROMINANCE)
        half = half[..., : -(-height // 2), : -(-width // 2)]
        return _to_rgb(luma, _upsample(half)[..., :height, :width])

    def _code_plane(self, plane: Tensor, base: Table) -> Tensor:
        """Quantize bytes around zero, `(n, channels, height, width)`, and decode them."""
        height, width = plane.shape[-2:]
        blocks = _split_blocks(_pad_to_multiple(plane, _BLOCK_SIZE, _BLOCK_SIZE))
        cosine, table = _cosine_transform(plane), self._table(base, plane)
        coefficients = _round_half_away(cosine @ blocks @ cosine.T / table) * table
        return _round_to_byte(_join_blocks(cosine.T @ coefficients @ cosine)[..., :height, :width])

    def _table(self, base: Table, like: Tensor) -> Tensor:
        """Return `base` scaled by the quality, `(8, 8)`."""
        percent = 5000 // self.quality if self.quality < 50 else 200 - 2 * self.quality
        table = (torch.tensor(base) * percent + 50) // 100
        return table.clamp(1, 255).to(like)


def _round_to_byte(v: Tensor) -> Tensor:
    """Round to whole numbers from -128 to 127; the gradient is the identity."""
    return straight_through(v, v.round().clamp(-128, 127))


def _round_half_away(v: Tensor) -> Tensor:
    """Round to whole numbers, with halves away from zero as in libjpeg.

    Pixels are whole numbers, so halves are frequent, and rounding errors must not decide them. The
    gradient is `(2 d)**2 + 0.1` times that of `v`, where `d` is the distance to the nearest whole
    number. A small change only moves values near a half; the constant accounts for large changes,
    which move any value.
    """
    d = v - v.detach().round()
    power = _GRADIENT_POWER + 1
    surrogate = d.sign() * (2 * d).abs() ** power / (2 * power) + _MIN_GRADIENT * v
    return straight_through(surrogate, v.sign() * (v.abs() + (0.5 + _TIE_TOLERANCE)).floor())


def _from_rgb(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return luminance `(n, 1, ...)` and chrominance `(n, 2, ...)` of images, around zero."""
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    luma = _RED * red + _GREEN * green + _BLUE * blue
    return _round_to_byte(luma), _round_to_byte(
        torch.cat([(blue - luma) / _TO_BLUE, (red - luma) / _TO_RED], 1)
    )


def _to_rgb(luma: Tensor, chroma: Tensor) -> Tensor:
    """Convert luminance and chrominance to red, green and blue."""
    to_blue, to_red = chroma[:, :1], chroma[:, 1:]
    red, blue = luma + _TO_RED * to_red, luma + _TO_BLUE * to_blue
    green = (luma - _RED * red - _BLUE * blue) / _GREEN
    return _round_to_byte(torch.cat([red, green, blue], dim=1))


def _downsample(plane: Tensor) -> Tensor:
    """Return the means of 2 x 2 pixels, with halves rounded down and up in turn, as in libjpeg.

    Like libjpeg it repeats the last column up to a block before the means are taken, and the last
    row afterwards.
    """
    means = F.avg_pool2d(_pad_to_multiple(plane, 2, 2 * _BLOCK_SIZE), 2)
    up = torch.tensor([0.25, 0.5], device=plane.device).repeat(means.shape[-1] // 2)
    return straight_through(means, (means + up).floor())


def _upsample(plane: Tensor) -> Tensor:
    """Double the resolution; each value is 9/16 of the nearest one and the rest of three others."""
    doubled: Tensor = F.interpolate(plane, scale_factor=2, mode="bilinear", align_corners=False)
    return straight_through(doubled, doubled.round())


def _pad_to_multiple(plane: Tensor, rows: int, columns: int) -> Tensor:
    """Repeat the last row and column up to multiples of `rows` and `columns`."""
    height, width = plane.shape[-2:]
    return F.pad(plane, (0, -width % columns, 0, -height % rows), mode="replicate")


def _split_blocks(plane: Tensor) -> Tensor:
    """Split planes `(..., rows, columns)` into blocks `(..., rows / 8, columns / 8, 8, 8)`."""
    n, channels, height, width = plane.shape
    rows = plane.reshape(
        n, channels, height // _BLOCK_SIZE, _BLOCK_SIZE, width // _BLOCK_SIZE, _BLOCK_SIZE
    )
    return rows.transpose(-3, -2)


def _join_blocks(blocks: Tensor) -> Tensor:
    """Join blocks to planes, the inverse of `_split_blocks`."""
    return blocks.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def _cosine_transform(like: Tensor) -> Tensor:
    """Return the orthonormal cosine transform `(8, 8)`, with a row for each frequency."""
    index = torch.arange(_BLOCK_SIZE, dtype=torch.float64)
    waves = torch.cos(torch.outer(index, 2 * index + 1) * math.pi / (2 * _BLOCK_SIZE)) / 2
    waves[0] /= math.sqrt(2)
    return waves.to(like)
