"""Archives of arrays and tensors: reading them runs no code, and damaged files are refused.

`.npz` files and the files of `torch.save` are zip archives, whose members have checksums. Sizes
are compared with the file before memory is allocated.
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

_COMPRESSION_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # NumPy and torch write these
_ALWAYS_ALLOWED_SIZE = 2**28  # bytes that any archive may unpack to
_MAX_COMPRESSION_RATIO = 100  # of archives that unpack to more; a zip bomb has 1,000
_MAX_HEADER_SIZE = 1000  # bytes in the header of an array; plain headers take 128
_PLAIN_KINDS = "biufcSU"  # kinds of NumPy dtypes without objects
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """Read arrays of the `.npz` archive at `path`; no pickled objects are read.

    Args:
        path: the archive.
        names: names of the arrays to read; `None` reads all arrays of the archive.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged, is not such an archive, or lacks one of these arrays.
    """
    with _opened(path, "an .npz archive of plain arrays") as (_, archive):
        members = [name for name in archive.namelist() if name.endswith(".npy")]
        available = [name.removesuffix(".npy") for name in members]
        wanted = available if names is None else [name for name in available if name in names]
        arrays = {name: _array(archive, f"{name}.npy") for name in wanted}
    if any(name not in arrays for name in names or ()):
        all_names = " and ".join(names or ())
        raise ValueError(
            f"{path} must hold the arrays {all_names}, got {', '.join(available) or 'none'}."
        )
    return arrays


def read_torch(path: Path) -> Any:
    """Read the plain values and tensors that `torch.save` wrote to `path`, on the CPU.

    Files from before torch 1.6 are refused, since they have no checksums.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged, is not such an archive, or holds other than plain values.
    """
    with _opened(path, "an archive of torch.save") as (file, archive):
        damaged = archive.testzip()  # torch itself does not compare the checksums
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong.")
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # its message recommends to run the code in the file
            raise ValueError("it holds more than plain values and tensors.") from error


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and values of `tensors`, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} ".encode())
        digest.update(_hashed_bytes(tensor))
    return digest.hexdigest()


def digest_of_tensor(tensor: Tensor) -> str:
    """Return the SHA-256 of the dtype, shape and values of `tensor`, in hexadecimal.

    The hashed bytes are a line such as "torch.float32 (1, 8, 8)", its newline, and the values in
    row-major order, in the byte order of the machine.
    """
    return hashlib.sha256(_hashed_bytes(tensor)).hexdigest()


def _hashed_bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().resolve_neg().contiguous()
    # An empty tensor from NumPy has strides of zero, which a view of bytes refuses.
    values = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return f"{plain.dtype} {tuple(plain.shape)}\n".encode() + values


def check_digest(path: Path) -> None:
    """Compare the file at `path` with the digest in `PATH.sha256`, if that file exists.

    The command `sha256sum PATH > PATH.sha256` writes it.

    Raises:
        ValueError: the digest belongs to other content.
        OSError: a file cannot be read.
    """
    digest_path = path.with_name(f"{path.name}.sha256")
    if not digest_path.exists():
        return
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    wanted = digest_path.read_text(encoding="ascii", errors="replace").split()[:1]
    if wanted != [digest]:
        raise ValueError(
            f"{path} must have the SHA-256 in {digest_path}, got {digest}. The file is damaged."
        )


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple[IO[bytes], zipfile.ZipFile]]:
    """Open a zip archive, and turn all errors inside into a ValueError that names the file."""
    if not path.is_file():
        kind = "not a file" if path.exists() else "no such file"
        raise FileNotFoundError(f"{kind}: {path}")
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                _check_members(archive.infolist(), os.fstat(file.fileno()).st_size)
                yield file, archive
        except Exception as error:  # a damaged file may fail in any way
            raise ValueError(f"{path} is not {kind}, or is damaged: {error}") from error


def _check_members(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Raise unless an archive of `size` bytes can have `members` and is safe to unpack."""
    if len({member.filename for member in members}) < len(members):
        raise ValueError("two of its members have the same name.")
    if not all(member.compress_type in _COMPRESSION_METHODS for member in members):
        raise ValueError("it is compressed by an unsupported method.")
    if sum(member.compress_size for member in members) > size:
        raise ValueError("its members are longer than the file.")
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(_ALWAYS_ALLOWED_SIZE, _MAX_COMPRESSION_RATIO * size):
        raise ValueError(f"its {size:,} bytes would unpack to {unpacked:,}.")


def _array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """Read one array, after its header was compared with the length of the member."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        if version not in _HEADER_READERS:
            raise ValueError(f"{name} has the unknown format version {version}.")
        shape, _, dtype = _HEADER_READERS[version](member, max_header_size=_MAX_HEADER_SIZE)
        if dtype.kind not in _PLAIN_KINDS or not dtype.itemsize:
            raise ValueError(f"{name} holds values of dtype {dtype}.")
        declared, stored = math.prod(shape) * dtype.itemsize, archive.getinfo(name).file_size
        if min(shape, default=0) < 0 or declared != stored - member.tell():
            raise ValueError(f"{name} declares the shape {shape}, which does not match its length.")
    with archive.open(name) as member:  # reading the last byte compares the checksum
        array: npt.NDArray[Any] = np.lib.format.read_array(member, max_header_size=_MAX_HEADER_SIZE)
    return array


def write_npz(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Write `arrays`, none of which holds objects, to an archive that replaces `path`."""
    assert not any(array.dtype.hasobject for array in arrays.values())
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # no array has the name of an option
