"""Data sets: the digits of scikit-learn, `.npz` archives and folders of images on disk."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import data as torch_data

from advkit.core import checks
from advkit.core.archives import read_npz
from advkit.core.bounds import checked_bounds
from advkit.core.extras import require
from advkit.core.layouts import ImageMode, Layout

_CHANNEL_COUNTS = (1, 3, 4)  # gray, RGB and RGBA images
_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # no others are decoded
_DIGITS_TEST_SIZE = 500  # images at the end of the digits


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs and their labels in memory; an indexed data set.

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

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], int(self.y[index])

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
        return _scaled(torch.from_numpy(images), bounds)
    if images.dtype.kind != "f":
        raise ValueError(f"{path}: `images` must be uint8 or float, got {images.dtype}.")
    with np.errstate(over="ignore"):
        x = torch.from_numpy(images.astype(np.float32))
    bad = ~x.flatten(1).isfinite().all(1)
    if bad.any():
        where = checks.samples(bad)
        raise ValueError(f"{path}: `images` must be finite, got NaN or infinity ({where}).")
    return x


def _scaled(images: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return bytes as float32, with 0 and 255 at the ends of `bounds`."""
    lower, upper = bounds
    return images.float() / 255 * (upper - lower) + lower


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


class ImageFolder(torch_data.Dataset[tuple[Tensor, int]]):
    """Images in a folder with one subfolder for each class; an indexed data set.

    An image is read when it is indexed, so that memory does not grow with the number of images.
    Classes are the names of the subfolders, and labels their places in sorted order, as in
    torchvision. Images may lie deeper in a subfolder. Hidden files and files without the suffix of
    an image are ignored. The order is the same on every system: by class, and then by path.

    Pillow rejects images of more than about 179 million pixels.

    Args:
        folder: the folder of the subfolders.
        bounds: the values that the bytes 0 and 255 are scaled to.
        size: height and width of the images, which are resized until they cover it (bilinear), and
            cropped at the center; `None` leaves them as they are. All images of a batch must have
            one size.
        mode: `"RGB"` for three channels, or `"L"` for one channel of gray. All images are
            converted, and transparency is dropped.

    Attributes:
        classes: names of the classes; the label of a class is its index.
        paths: paths of the images.
        y: labels of the images `(n,)`, int64.
        name: name of the folder, for reports.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it has no subfolder, or one without images; an argument has a wrong value; or,
            when it is indexed, an image cannot be read or has more than 8 bits per channel.
        ImportError: Pillow is missing; the extra `images` installs it.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        bounds: tuple[float, float] = (0.0, 1.0),
        size: tuple[int, int] | None = None,
        mode: ImageMode = "RGB",
    ) -> None:
        require("PIL.Image", extra="images", needed_by="ImageFolder")
        checks.one_of("mode", mode, get_args(ImageMode))
        self.bounds, self.mode = checked_bounds(bounds), mode
        self.size = None if size is None else _checked_size(size)
        folder = Path(folder)
        self.name = folder.resolve().name
        of_classes = _images_of_classes(folder)
        self.classes = tuple(of_classes)
        self.paths = tuple(path for paths in of_classes.values() for path in paths)
        counts = torch.tensor([len(paths) for paths in of_classes.values()])
        self.y = torch.arange(len(counts)).repeat_interleave(counts)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read one image: float32 `(channels, height, width)` within `bounds`, and its label."""
        path = self.paths[index]
        try:
            pixels = _read_image(path, self.mode, self.size)
        except Exception as error:
            raise ValueError(
                f"{path} must be an image that Pillow can read, got {type(error).__name__}: {error}"
            ) from error
        x = _scaled(torch.from_numpy(pixels), self.bounds)
        x = x.permute(2, 0, 1) if x.ndim == 3 else x[None]
        return x.contiguous(), int(self.y[index])

    def subsample(self, limit: int | None) -> ImageFolder:
        """Return `limit` images at even distances, so that all classes are represented.

        `None`, or a number above that of the images, means all. Classes and labels are unchanged.
        """
        if limit is not None:
            checks.integer("limit", limit, at_least=1)
        n = len(self)
        if limit is None or limit >= n:
            return self
        chosen = [i * n // limit for i in range(limit)]
        part = copy.copy(self)
        part.paths, part.y = tuple(self.paths[i] for i in chosen), self.y[chosen]
        return part


def _checked_size(size: object) -> tuple[int, int]:
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise TypeError(f"`size` must be a pair (height, width), got {size!r}.")
    for length in size:
        checks.integer("size", length, at_least=1)
    return size[0], size[1]


def _images_of_classes(folder: Path) -> dict[str, list[Path]]:
    """Return the paths of the images of each class, all in sorted order."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    found = {name: _images_in(folder / name) for name in names if not name.startswith(".")}
    if not found:
        raise ValueError(
            f"{folder} must hold one subfolder of images for each class, got no subfolder."
        )
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        raise ValueError(
            f"{folder} must hold images in every subfolder, got none in {empty[0]!r}. Files with "
            f"these suffixes are read: {', '.join(_SUFFIXES)}."
        )
    return found


def _images_in(folder: Path) -> list[Path]:
    """Return the paths of the images at any depth of `folder`, in sorted order."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if _is_image(name)]
    return sorted(found, key=lambda path: path.parts)


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")


def _read_image(path: Path, mode: str, size: tuple[int, int] | None) -> npt.NDArray[np.uint8]:
    """Read an image as bytes: `(height, width)` in mode "L", or else `(height, width, 3)`."""
    pillow = require("PIL.Image", extra="images", needed_by="ImageFolder")
    with pillow.open(path, formats=_FORMATS) as image:
        if image.mode.startswith(("I", "F")):  # Pillow would clip the values to bytes
            raise ValueError(f"the image must have 8 bits per channel, got mode {image.mode!r}.")
        opaque = image.convert("RGBA") if "transparency" in image.info else image
        converted = opaque.convert(mode)
    if size is not None:
        box = _visible_box((converted.height, converted.width), size)
        converted = converted.resize(size[::-1], pillow.Resampling.BILINEAR, box)
    return np.array(converted)


def _visible_box(given: tuple[int, int], size: tuple[int, int]) -> tuple[float, ...]:
    """Return the part of an image that `size` shows: left, upper, right and lower end in pixels.

    It is that of `Resize` and `CenterCrop` in torchvision: the image is scaled until it covers
    `size`, to whole pixels, and cropped by whole pixels. Pillow scales this part alone, so that
    memory does not depend on the proportions of the image.

    Args:
        given: height and width of the image.
        size: height and width of the result.
    """
    (height, width), (h, w) = given, size
    covering = (h, width * h // height) if h * width >= w * height else (height * w // width, w)
    ends = []
    for length, scaled, shown in zip(given, covering, size, strict=True):
        first = round((scaled - shown) / 2)
        ends.append((first * length / scaled, (first + shown) * length / scaled))
    (upper, lower), (left, right) = ends
    return left, upper, right, lower
