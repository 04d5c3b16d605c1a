"""Archives of arrays and of tensors: reading them runs no code, and damage is refused.

`.npz` files and the files of `torch.save` are zip archives, whose members carry checksums. Sizes
are compared with the file before memory is taken for them.
"""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from advkit.core.files import atomic_write

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy and torch write
_MOST_UNPACKED = 2**28  # bytes that any archive may unpack to
_MOST_RATIO = 100  # of unpacked bytes to those of a larger file; a bomb has 1,000
_MOST_HEADER = 1000  # bytes in the header of an array: plain ones take 128
_PLAIN = "biufcSU"  # kinds of NumPy's dtypes
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """Read arrays of the `.npz` archive at `path`; no pickled objects are read.

    Args:
        path: the archive.
        names: of the arrays to read; `None` reads all that are there.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged, not such an archive, or does not hold all of these arrays.
    """
    with _opened(path, "an .npz archive of plain arrays") as (_, archive):
        there = [name.removesuffix(".npy") for name in archive.namelist()]
        wanted = there if names is None else [name for name in there if name in names]
        arrays = {name: _array(archive, f"{name}.npy") for name in wanted}
    if any(name not in arrays for name in names or ()):
        all_names = " and ".join(names or ())
        raise ValueError(f"{path} must hold the arrays {all_names}, holds: {', '.join(there)}")
    return arrays


def read_torch(path: Path) -> Any:
    """Read what `torch.save` wrote to `path`, on the CPU: plain values and tensors.

    Files of torch before 1.6 are refused, since they have no checksums.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged, not such an archive, or holds more than plain values.
    """
    with _opened(path, "an archive of torch.save") as (file, archive):
        damaged = archive.testzip()  # torch itself does not look at the checksums
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # its message advises to run what the file holds
            raise ValueError("it holds more than plain values and tensors") from error


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and values of `tensors`, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_digest(path: Path) -> None:
    """Compare the file at `path` with the digest in `PATH.sha256`, if there is such a file.

    That file is written by `sha256sum PATH > PATH.sha256`.

    Raises:
        ValueError: the digest is that of another content.
        OSError: a file cannot be read.
    """
    beside = path.with_name(f"{path.name}.sha256")
    if not beside.exists():
        return
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    wanted = beside.read_text(encoding="ascii", errors="replace").split()[:1]
    if wanted != [found]:
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one in {beside}")


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple[IO[bytes], zipfile.ZipFile]]:
    """Open a zip archive; all errors inside become a ValueError that names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                _check_members(archive.infolist(), os.fstat(file.fileno()).st_size)
                yield file, archive
        except Exception as error:  # a damaged file may fail in any way
            raise ValueError(f"{path} is not {kind}, or is damaged: {error}") from error


def _check_members(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Raise unless `members` can be those of an archive of `size` bytes that is safe to unpack."""
    if len({member.filename for member in members}) < len(members):
        raise ValueError("two of its members have one name")
    if not all(member.compress_type in _METHODS for member in members):
        raise ValueError("it is compressed by an unsupported method")
    if sum(member.compress_size for member in members) > size:
        raise ValueError("its members are longer than the file")
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(_MOST_UNPACKED, _MOST_RATIO * size):
        raise ValueError(f"its {size:,} bytes would unpack to {unpacked:,}")


def _array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """Read one array, once its header agrees with the length of the member."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"{name} is in version {version} of the format")
        shape, _, dtype = _HEADERS[version](member, max_header_size=_MOST_HEADER)
        if dtype.kind not in _PLAIN or not dtype.itemsize:
            raise ValueError(f"{name} holds values of {dtype}")
        declared, stored = math.prod(shape) * dtype.itemsize, archive.getinfo(name).file_size
        if min(shape, default=0) < 0 or declared != stored - member.tell():
            raise ValueError(f"{name} is said to have shape {shape}, which is not its length")
    with archive.open(name) as member:  # the last byte read compares the checksum
        array: npt.NDArray[Any] = np.lib.format.read_array(member, max_header_size=_MOST_HEADER)
    return array


def write_npz(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Replace the file at `path` by an archive of `arrays`, none of which holds objects."""
    assert not any(array.dtype.hasobject for array in arrays.values())
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # no array is named as a flag
