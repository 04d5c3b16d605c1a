"""Feature squeezing: fewer values for an attacker to choose from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from advkit.core import checks
from advkit.core.tensors import at_least_float32
from advkit.defenses.pixels import check_images, on_grid, padded, shifted
from advkit.models import Bounds, StraightThrough, as_classifier

_MOST_BITS = 16


@dataclass(frozen=True, kw_only=True)
class NonLocalMeans:
    """Non-local means (Buades, Coll and Morel, 2005): the mean of pixels that look alike.

    The weight of a pixel is `exp(-d / strength**2)` with the mean squared difference `d` of the two
    patches, over all channels.

    Deviations: Xu et al. call OpenCV, which splits colour images into lightness and colour first,
    and gives each a strength.

    Args:
        search: side of the window in which pixels are looked for, odd, at least 3.
        patch: side of the patches that are compared, odd, at least 1.
        strength: how different patches may look, in grey levels: 255ths of the range of values.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range.
    """

    search: int = 13
    patch: int = 3
    strength: float = 4.0

    def __post_init__(self) -> None:
        _odd("search", self.search, at_least=3)
        _odd("patch", self.patch, at_least=1)
        checks.positive("strength", self.strength)

    def of(self, x: Tensor, bounds: Bounds) -> Tensor:
        """Images `(n, channels, height, width)` of values within `bounds`, smoothed."""
        height, width = x.shape[-2:]
        reach, frame = self.search // 2, self.patch // 2
        around = padded(x, reach + frame, reach + frame)
        high, broad = height + 2 * frame, width + 2 * frame
        centre = around[..., reach : reach + high, reach : reach + broad]
        scale = self.strength / 255 * (bounds.upper - bounds.lower)
        total, weights = torch.zeros_like(x), torch.zeros_like(x[:, :1])
        for i in range(self.search):
            for j in range(self.search):
                other = around[..., i : i + high, j : j + broad]
                squares = ((centre - other) / scale).square().mean(1, keepdim=True)
                weight = (-F.avg_pool2d(squares, self.patch, stride=1)).exp()
                pixel = other[..., frame : frame + height, frame : frame + width]
                total, weights = total + weight * pixel, weights + weight
        return total / weights


class FeatureSqueezing(StraightThrough):
    """A model that sees squeezed inputs (Xu, Evans and Qi, 2018, arXiv:1704.01155).

    Up to three squeezers, one after another in this order: fewer bits for each value, a median
    filter, non-local means. They withstand attacks that do not know of them. An attack on this
    model does: backward the rounding is the identity, and the two filters are what they are, which
    is a stronger attack than to leave them out (the page on input defenses has the figures).

    Deviations: the paper compares the model's answers to an input and to each squeezed one, and
    takes a large difference for an attack; here the answer to the squeezed input is the answer, as
    in its section on robust classification. Windows are SciPy's, as in the paper: the median of an
    even number of values is the higher one of the two in the middle, a window of even side reaches
    up and to the left, and edges are reflected with their outermost pixels repeated.

    Args:
        model: what sees the squeezed inputs, within any bounds.
        bits: of each value, 1 to 16: it is rounded to the nearest of `2**bits` that are spread
            evenly over the bounds, these included. The paper has 1 for MNIST and 4 or 5 for colour.
            `None` for no rounding; alone it takes inputs of any shape.
        median: side of the window of the median filter, at least 2, in pixels; the paper has 2 and
            3. `None` for no filter. Inputs are `(n, channels, height, width)`.
        non_local_means: how to smooth, likewise; `None` for not.

    Raises:
        TypeError: an argument is of the wrong type, or `model` is no classifier.
        ValueError: an argument is out of its range, or nothing is to be squeezed; at a call, a
            filter met what has not the shape of images.

    Example:
        >>> import torch
        >>> from advkit import attacks, defenses
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = defenses.FeatureSqueezing(net, bits=1, median=3)
        >>> x = torch.rand(5, 1, 8, 8)
        >>> x_adv = attacks.PGD(eps=0.3, steps=5)(model, x)  # knows of the squeezing
        >>> model.step(x_adv).unique()  # what the net sees
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
            raise ValueError("one of bits, median and non_local_means must be given, got none")
        if bits is not None:
            checks.integer("bits", bits, at_least=1)
            if bits > _MOST_BITS:
                raise ValueError(f"`bits` must be at most {_MOST_BITS}, got {bits}")
        if median is not None:
            checks.integer("median", median, at_least=2)
        if not (non_local_means is None or isinstance(non_local_means, NonLocalMeans)):
            raise TypeError(
                "`non_local_means` must be a NonLocalMeans or None, "
                f"got {type(non_local_means).__name__}: {non_local_means!r}"
            )
        inner = as_classifier(model)
        squeezers = _Squeezers(inner.bounds, bits, median, non_local_means)
        super().__init__(inner, squeezers, backward=squeezers)
        self.bits = bits
        self.median = median
        self.non_local_means = non_local_means

    def __repr__(self) -> str:
        given = {k: getattr(self, k) for k in ("bits", "median", "non_local_means")}
        shown = [f"{k}={v!r}" for k, v in given.items() if v is not None]
        return f"{type(self).__name__}({', '.join([repr(self.model), *shown])})"


@dataclass(frozen=True)
class _Squeezers:
    """One after another, each with its gradient."""

    bounds: Bounds
    bits: int | None
    median: int | None
    non_local_means: NonLocalMeans | None

    def __call__(self, x: Tensor) -> Tensor:
        """Inputs `(n, *features)`, squeezed."""
        squeezed = at_least_float32(x)
        if self.bits is not None:
            squeezed = on_grid(squeezed, self.bounds, 2**self.bits - 1)
        if self.median is not None:
            squeezed = median_filtered(squeezed, self.median)
        if self.non_local_means is not None:
            check_images(x, "non_local_means")
            squeezed = self.non_local_means.of(squeezed, self.bounds)
        return squeezed.to(x.dtype)


def median_filtered(x: Tensor, side: int) -> Tensor:
    """The median of the `side` x `side` window around each pixel, SciPy's for even sides.

    Args:
        x: `(n, channels, height, width)`.
        side: of the window, at least 2.
    """
    check_images(x, "median")
    pixels = torch.stack(shifted(x, side // 2, (side - 1) // 2), dim=-1)
    return pixels.kthvalue(side * side // 2 + 1, dim=-1).values


def _odd(name: str, value: int, at_least: int) -> None:
    checks.integer(name, value, at_least=at_least)
    if value % 2 == 0:
        raise ValueError(f"{name} must be odd, got {value}")
