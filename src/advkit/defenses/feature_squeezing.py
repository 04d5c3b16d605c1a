"""Feature squeezing: a reduced set of values and details for an attacker to change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from advkit.core import checks
from advkit.core.tensors import at_least_float32
from advkit.defenses.pixels import check_images, pad_reflect, round_to_grid, window_pixels
from advkit.models import Bounds, StraightThrough, as_classifier

_MAX_BITS = 16  # the depth of a channel in PNG


@dataclass(frozen=True, kw_only=True)
class NonLocalMeans:
    """Non-local means (Buades, Coll and Morel, 2005): weighted mean of pixels with similar patches.

    The weight of a pixel is `exp(-d / strength**2)`, where `d` is the mean squared difference of
    the two patches over all channels.

    Deviations from the paper:
        - Colors are not separated. Xu et al. call OpenCV, which splits color images into lightness
          and color, and uses a strength for each.

    Args:
        search_size: side of the window that is searched for similar pixels, odd, at least 3.
        patch_size: side of the patches that are compared, odd, at least 1.
        strength: tolerated difference of patches, in gray levels: 255ths of the range of values.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range.
    """

    search_size: int = 13
    patch_size: int = 3
    strength: float = 4.0

    def __post_init__(self) -> None:
        _check_odd("search_size", self.search_size, at_least=3)
        _check_odd("patch_size", self.patch_size, at_least=1)
        checks.positive("strength", self.strength)

    def smooth(self, x: Tensor, bounds: Bounds) -> Tensor:
        """Smooth images `(n, channels, height, width)` with values within `bounds`."""
        height, width = x.shape[-2:]
        radius, margin = self.search_size // 2, self.patch_size // 2
        framed = pad_reflect(x, radius + margin, radius + margin)
        rows, columns = height + 2 * margin, width + 2 * margin
        center = framed[..., radius : radius + rows, radius : radius + columns]
        scale = self.strength / 255 * (bounds.upper - bounds.lower)
        total, weights = torch.zeros_like(x), torch.zeros_like(x[:, :1])
        for i in range(self.search_size):
            for j in range(self.search_size):
                other = framed[..., i : i + rows, j : j + columns]
                squares = ((center - other) / scale).square().mean(1, keepdim=True)
                weight = (-F.avg_pool2d(squares, self.patch_size, stride=1)).exp()
                pixel = other[..., margin : margin + height, margin : margin + width]
                total, weights = total + weight * pixel, weights + weight
        return total / weights


class FeatureSqueezing(StraightThrough):
    """Classifier with squeezed inputs (Xu, Evans and Qi, 2018, arXiv:1704.01155).

    Up to three squeezers are applied in this order: fewer bits for each value, a median filter and
    non-local means. They resist attacks that ignore them. An attack on this model is adaptive: in
    the backward pass the rounding is the identity, and the two filters have their own gradients.
    This attack is stronger than one that leaves the filters out; the page on input defenses has the
    figures.

    Deviations from the paper:
        - The prediction for the squeezed input is the output, as in the paper's section on robust
          classification. Its detector compares the outputs for an input and its squeezed versions,
          and takes a large difference as a sign of an attack.

    Windows are those of SciPy, as in the paper. The median of an even number of values is the
    higher of the two middle ones. A window of even side extends further up and to the left. Edges
    are reflected with their outermost pixels repeated.

    Args:
        model: classifier of the squeezed inputs, with any bounds.
        bits: bits of each value, 1 to 16. A value is rounded to the nearest of `2**bits` values
            that are spread evenly over the bounds, which are included. The paper uses 1 for MNIST
            and 4 or 5 for color. `None` for no rounding. Rounding alone accepts inputs of any
            shape.
        median: side of the window of the median filter, at least 2, in pixels; the paper uses 2 and
            3. `None` for no filter. Inputs are `(n, channels, height, width)`.
        non_local_means: settings of the smoothing, for inputs of the same shape; `None` for none.

    Raises:
        TypeError: an argument has the wrong type, or `model` is not a classifier.
        ValueError: an argument is out of its range, or no squeezer is given. In a call, a filter
            got inputs that do not have the shape of images.

    Example:
        >>> import torch
        >>> from advkit import attacks, defenses
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = defenses.FeatureSqueezing(net, bits=1, median=3)
        >>> x = torch.rand(5, 1, 8, 8)
        >>> x_adv = attacks.PGD(eps=0.3, steps=5)(model, x)  # the adaptive attack
        >>> model.step(x_adv).unique()  # the inputs of the net
        tensor([0., 1.])
    """

    def __init__(
        self,
        model: object,
        bits: int | None = None,
        median: int | None = None,
        non_local_means: NonLocalMeans | None = None,
    ) -> None:
        if bits is None and median is None and non_local_means is None:
            raise ValueError(
                "`bits`, `median` or `non_local_means` must be given, got none of them."
            )
        if bits is not None:
            checks.integer("bits", bits, at_least=1)
            if bits > _MAX_BITS:
                raise ValueError(f"`bits` must be at most {_MAX_BITS}, got {bits}.")
        if median is not None:
            checks.integer("median", median, at_least=2)
        if not (non_local_means is None or isinstance(non_local_means, NonLocalMeans)):
            raise TypeError(
                "`non_local_means` must be a NonLocalMeans or None, "
                f"got {type(non_local_means).__name__}: {non_local_means!r}."
            )
        inner = as_classifier(model)
        squeezers = _Squeezers(inner.bounds, bits, median, non_local_means)
        super().__init__(inner, squeezers, backward=squeezers)
        self.bits = bits
        self.median = median
        self.non_local_means = non_local_means

    def __repr__(self) -> str:
        options = {k: getattr(self, k) for k in ("bits", "median", "non_local_means")}
        shown = [f"{k}={v!r}" for k, v in options.items() if v is not None]
        return f"{type(self).__name__}({', '.join([repr(self.model), *shown])})"


@dataclass(frozen=True)
class _Squeezers:
    """Composition of squeezers, each with its gradient."""

    bounds: Bounds
    bits: int | None
    median: int | None
    non_local_means: NonLocalMeans | None

    def __call__(self, x: Tensor) -> Tensor:
        """Return squeezed inputs `(n, *features)`."""
        squeezed = at_least_float32(x)
        if self.bits is not None:
            squeezed = round_to_grid(squeezed, self.bounds, 2**self.bits - 1)
        if self.median is not None:
            squeezed = median_filter(squeezed, self.median)
        if self.non_local_means is not None:
            check_images(x, "non_local_means")
            squeezed = self.non_local_means.smooth(squeezed, self.bounds)
        return squeezed.to(x.dtype)


def median_filter(x: Tensor, side: int) -> Tensor:
    """Return the median of the `side` x `side` window around each pixel, as SciPy for even sides.

    Args:
        x: `(n, channels, height, width)`.
        side: side of the window, at least 2.
    """
    check_images(x, "median")
    pixels = torch.stack(window_pixels(x, side // 2, (side - 1) // 2), dim=-1)
    return pixels.kthvalue(side * side // 2 + 1, dim=-1).values


def _check_odd(name: str, value: int, at_least: int) -> None:
    checks.integer(name, value, at_least=at_least)
    if value % 2 == 0:
        raise ValueError(f"`{name}` must be odd, got {value}.")
