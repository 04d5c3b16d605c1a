"""Data sets: the digits of scikit-learn, and `.npz` archives on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.archives import read_npz
from advkit.core.bounds import checked_bounds
from advkit.core.layouts import Layout

_CHANNEL_COUNTS = (1, 3, 4)  # gray, RGB and RGBA images
_DIGITS_TEST_SIZE = 500  # images at the end of the digits


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs and their labels.

    Attributes:
        x: float32 `(n, *features)`; images as `(n, channels, height, width)`.
        y: int64 `(n,)`.
        name: name of the data set, for reports.
    """

    x: Tensor
    y: Tensor
    name: str

    def __len__(self) -> int:
        return len(self.x)

    def head(self, limit: int | None) -> Dataset:
        """Return the first `limit` samples; `None` means all."""
        return Dataset(self.x[:limit], self.y[:limit], self.name)


def digits(split: Literal["train", "test"]) -> Dataset:
    """Load the 8x8 digits in scikit-learn (Alpaydin and Kaynak, 1998), with values in [0, 1].

    The test split is the last 500 of the 1,797 images. Nearly all of its writers are absent from
    the train split.

    Example:
        >>> from advkit import data
        >>> data.digits("test").x.shape
        torch.Size([500, 1, 8, 8])
    """
    from sklearn.datasets import load_digits

    checks.one_of("split", split, ("train", "test"))
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    y = torch.from_numpy(labels).long()
    test_size = _DIGITS_TEST_SIZE
    part = slice(-test_size) if split == "train" else slice(-test_size, None)
    return Dataset(x[part], y[part], f"scikit-learn digits ({split})")


def load_npz(
    path: str | Path, bounds: tuple[float, float] = (0.0, 1.0), layout: Layout = "auto"
) -> Dataset:
    """Read a `.npz` archive with the arrays `images` and `labels`.

    Bytes 0..255 are scaled to `bounds`, floats are unchanged. Images `(n, height, width)` get a
    channel axis, and `(n, height, width, channels)` becomes `(n, channels, height, width)`. Arrays
    of two axes are tables. This is the layout of the MNIST and CIFAR-10 archives of the
    documentation.

    Args:
        path: the archive; no pickled objects are read.
        bounds: the values that 0 and 255 are scaled to.
        layout: meaning of four axes. `"auto"` takes the axis of length 1, 3 or 4 as the channels,
            and raises if there are two such axes. `"as_is"` leaves every array unchanged.

    Raises:
        FileNotFoundError: the file does not exist.
        TypeError: `bounds` are not two numbers.
        ValueError: it is damaged, is not such an archive, or its arrays have a wrong shape, dtype
            or value.
    """
    path, bounds = Path(path), checked_bounds(bounds)
    arrays = read_npz(path, ("images", "labels"))
    images, labels = arrays["images"], arrays["labels"]
    if images.ndim < 2:
        raise ValueError(f"{path}: `images` must have two axes or more, got shape {images.shape}.")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{path}: `labels` must have shape ({len(images)},) like the {len(images)} images, "
            f"got {labels.shape}. Each image needs one label."
        )
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{path}: `labels` must be integers, got {labels.dtype}.")
    bad = (labels < 0) | (labels >= 2**63)
    if bad.any():
        raise ValueError(
            f"{path}: `labels` must be at least 0 and below 2**63, got {labels[bad][0]}."
        )
    labels = labels.astype(np.int64)
    x = _channels_first(_in_bounds(images, bounds, path), layout, path)
    return Dataset(x.contiguous(), torch.from_numpy(labels), path.name)


def _in_bounds(images: npt.NDArray[np.generic], bounds: tuple[float, float], path: Path) -> Tensor:
    if images.dtype == np.uint8:
        lower, upper = bounds
        return torch.from_numpy(images).float() / 255 * (upper - lower) + lower
    if images.dtype.kind != "f":
        raise ValueError(f"{path}: `images` must be uint8 or float, got {images.dtype}.")
    with np.errstate(over="ignore"):
        x = torch.from_numpy(images.astype(np.float32))
    bad = ~x.flatten(1).isfinite().all(1)
    if bad.any():
        where = checks.samples(bad)
        raise ValueError(f"{path}: `images` must be finite, got NaN or infinity ({where}).")
    return x


def _channels_first(x: Tensor, layout: Layout, path: Path) -> Tensor:
    checks.one_of("layout", layout, get_args(Layout))
    if layout == "as_is" or x.ndim not in (3, 4):
        return x
    if x.ndim == 3:
        return x.unsqueeze(1)
    if layout == "auto":
        first, last = x.shape[1] in _CHANNEL_COUNTS, x.shape[3] in _CHANNEL_COUNTS
        if first == last:
            raise ValueError(
                f"{path}: `images` must have one axis of 1, 3 or 4 channels, got shape "
                f"{tuple(x.shape)}. Set `layout` to 'channels_first', 'channels_last' or 'as_is'."
            )
        layout = "channels_last" if last else "channels_first"
    return x.permute(0, 3, 1, 2) if layout == "channels_last" else x
