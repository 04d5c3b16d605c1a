"""Pictures of adversarial examples, embedded in the page."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from advkit.core.extras import require
from advkit.eval.page.content import Example

MAX_SIDE = 72  # pixels of a picture; larger images are reduced
# Colors of the largest decrease, of no change and of the largest increase: orange, white and blue,
# which color-blind readers can tell apart.
DECREASE, NO_CHANGE, INCREASE = (179, 88, 6), (255, 255, 255), (33, 102, 172)

Bytes = npt.NDArray[np.uint8]


class ExamplePictures(NamedTuple):
    """Data URLs of the three pictures of an example.

    Attributes:
        clean: the input.
        adversarial: the adversarial example.
        change: the signed perturbation, in diverging colors.
        scale: change of a feature that has the full color, in input units.
        width: pixels of a row of the input.
        height: rows of the input.
    """

    clean: str
    adversarial: str
    change: str
    scale: float
    width: int
    height: int


def pictures_of(example: Example) -> ExamplePictures:
    """Draw an example.

    Raises:
        ImportError: Pillow is missing; the message names the extra that installs it.
    """
    delta = example.x_adv.double() - example.x.double()
    scale = float(delta.abs().amax())
    clean, adversarial = (_image(v, example.bounds) for v in (example.x, example.x_adv))
    height, width = example.x.shape[1:]
    colors = diverging_colors(_strongest(delta), scale)
    return ExamplePictures(
        clean=_data_url(clean),
        adversarial=_data_url(adversarial),
        change=_data_url(colors),
        scale=scale,
        width=width,
        height=height,
    )


def diverging_colors(change: Tensor, scale: float) -> Bytes:
    """Return the colors `(height, width, 3)` of a signed `change` `(height, width)`.

    Args:
        change: changes in [-scale, scale].
        scale: change with the full color; zero if nothing changed.
    """
    share = (change / scale if scale else change).numpy()[..., None]
    end = np.where(share < 0, np.array(DECREASE), np.array(INCREASE))
    colors = np.array(NO_CHANGE) + np.abs(share) * (end - np.array(NO_CHANGE))
    rounded: Bytes = colors.round().astype(np.uint8)
    return rounded


def _strongest(delta: Tensor) -> Tensor:
    """Return the signed change `(height, width)` of the channel, and pixel, that changes most."""
    by_channel = delta.abs().argmax(0, keepdim=True)
    change = delta.gather(0, by_channel)
    size = _reduced(change.shape[1:])
    if size == change.shape[1:]:
        return change[0]
    largest, indices = F.adaptive_max_pool2d(change.abs(), size, return_indices=True)
    return largest[0] * change.flatten()[indices[0]].sign()


def _image(x: Tensor, bounds: tuple[float, float]) -> Bytes:
    """Return an image `(channels, height, width)` as bytes `(height, width[, 3])`."""
    lower, upper = bounds
    share = ((x.double() - lower) / (upper - lower)).clamp(0, 1)
    size = _reduced(x.shape[1:])
    if size != x.shape[1:]:
        share = F.adaptive_avg_pool2d(share, size)
    pixels: Bytes = (255 * share).round().to(torch.uint8).permute(1, 2, 0).squeeze(2).numpy()
    return pixels


def _reduced(size: torch.Size) -> tuple[int, int]:
    """Return height and width reduced to `MAX_SIDE`, with the ratio of the sides kept."""
    height, width = size
    factor = min(1.0, MAX_SIDE / max(height, width))
    return max(1, round(factor * height)), max(1, round(factor * width))


def _data_url(pixels: Bytes) -> str:
    image = require("PIL.Image", extra="report", needed_by="HTML")
    stream = io.BytesIO()
    image.fromarray(pixels).save(stream, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
