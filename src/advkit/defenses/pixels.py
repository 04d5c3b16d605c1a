"""Pixels: checks, windows around them, and the grid of their values."""

from __future__ import annotations

import torch
from torch import Tensor

from advkit.models.wrappers import straight_through


def check_images(x: Tensor, user: str) -> None:
    """Raise unless `x` has the shape of images; `user` is the option or class that needs them."""
    if x.ndim != 4:
        raise ValueError(
            f"`x` must have shape (n, channels, height, width) for {user}, got {tuple(x.shape)}."
        )


def round_to_grid(x: Tensor, bounds: tuple[float, float], steps: int) -> Tensor:
    """Round to the nearest of `steps + 1` values spread evenly over the bounds.

    The gradient is the identity.

    Args:
        x: values, of float32 at least.
        bounds: the first and the last value.
        steps: number of steps from one to the other.
    """
    lower, upper = bounds
    fraction = ((x - lower) / (upper - lower) * steps).round() / steps
    return straight_through(x, (lower + fraction * (upper - lower)).clamp(lower, upper))


def pad_reflect(x: Tensor, before: int, after: int) -> Tensor:
    """Add `before` rows and columns at the top and left of images, and `after` at the other ends.

    The image is reflected at its edges with the outermost pixels repeated (`reflect` in SciPy), as
    often as needed.
    """
    rows, columns = (_reflected_indices(side, before, after, x.device) for side in x.shape[-2:])
    return x[..., rows, :][..., columns]


def window_pixels(x: Tensor, before: int, after: int) -> list[Tensor]:
    """Return the pixels of the window around each pixel, in reading order.

    Args:
        x: `(n, channels, height, width)`.
        before: extent of a window up and to the left.
        after: extent of a window down and to the right.

    Returns:
        Views like `x`, one for each pixel of the window.
    """
    framed, (h, w) = pad_reflect(x, before, after), x.shape[-2:]
    offsets = range(before + after + 1)
    return [framed[..., i : i + h, j : j + w] for i in offsets for j in offsets]


def _reflected_indices(side: int, before: int, after: int, device: torch.device) -> Tensor:
    """Return which of `side` positions is at each position from `-before` to `side + after`."""
    position = torch.arange(-before, side + after, device=device) % (2 * side)
    return torch.where(position < side, position, 2 * side - 1 - position)
