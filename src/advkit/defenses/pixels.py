"""Pixels: checks of them, the windows around them, and the grid of values that they may have."""

from __future__ import annotations

import torch
from torch import Tensor

from advkit.models.wrappers import straight_through


def check_images(x: Tensor, wanted_by: str) -> None:
    """Raise unless `x` has the shape of images."""
    if x.ndim != 4:
        raise ValueError(
            f"{wanted_by} needs images (n, channels, height, width), got shape {tuple(x.shape)}"
        )


def check_floats(x: Tensor) -> None:
    """Raise unless `x` is a tensor of a floating dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"`x` must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"`x` must be of a floating dtype, got {x.dtype}; convert it, x.float()")


def on_grid(x: Tensor, bounds: tuple[float, float], steps: int) -> Tensor:
    """The nearest of `steps + 1` values spread evenly over the bounds; the gradient is that of `x`.

    Args:
        x: of float32 at least.
        bounds: the first and the last of the values.
        steps: from one to the other.
    """
    lower, upper = bounds
    share = ((x - lower) / (upper - lower) * steps).round() / steps
    return straight_through(x, (lower + share * (upper - lower)).clamp(lower, upper))


def padded(x: Tensor, before: int, after: int) -> Tensor:
    """Images with `before` more rows and columns at the top and left, `after` at the other ends.

    The image is reflected at its edges, the outermost pixels repeated (`reflect` in SciPy), as
    often as it takes.
    """
    rows, columns = (_reflected(side, before, after, x.device) for side in x.shape[-2:])
    return x[..., rows, :][..., columns]


def shifted(x: Tensor, before: int, after: int) -> list[Tensor]:
    """The pixels of each window from `before` to `after` of a pixel, in reading order.

    Args:
        x: `(n, channels, height, width)`.
        before: how far a window reaches up and to the left.
        after: how far it reaches down and to the right.

    Returns:
        As many views like `x` as a window has pixels.
    """
    wide, (h, w) = padded(x, before, after), x.shape[-2:]
    across = range(before + after + 1)
    return [wide[..., i : i + h, j : j + w] for i in across for j in across]


def _reflected(side: int, before: int, after: int, device: torch.device) -> Tensor:
    """Which of `side` places stands at each place from `-before` to `side + after`."""
    place = torch.arange(-before, side + after, device=device) % (2 * side)
    return torch.where(place < side, place, 2 * side - 1 - place)
