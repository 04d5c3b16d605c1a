"""SHA-256 digests of texts, arrays and tensors, in which equal values have equal digests.

Values are hashed in row-major and little-endian order, straight from their memory where it has this
order, so that hashing runs at about the speed of SHA-256 and large arrays are not copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_BUFFER_SIZE = 2**16  # values of an array that are brought into order at a time
_INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes
_PADDED = "gG"  # long doubles, whose unused bytes are arbitrary


def combine(*parts: bytes | str) -> bytes:
    """Return the digest of a sequence of texts and digests, each with its length."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(b"%s%d:" % (b"s" if isinstance(part, str) else b"b", len(content)))
        total.update(content)
    return total.digest()


def array_digest(array: npt.NDArray[Any]) -> bytes | None:
    """Return the digest of the dtype, shape and values of an array; `None` if it has objects.

    Structured arrays are hashed field by field, since the bytes between fields are arbitrary.
    Long doubles have no digest either, for the same reason.
    """
    if array.dtype.names is not None:
        fields = [(name, array_digest(array[name])) for name in array.dtype.names]
        if any(digest is None for _, digest in fields):
            return None
        return combine("fields", *(part for field in fields for part in field if part is not None))
    if array.dtype.hasobject or array.dtype.char in _PADDED:
        return None
    dtype = array.dtype.newbyteorder("<")
    total = hashlib.sha256()
    for values in _ordered(array, dtype):
        total.update(values.view(np.uint8).data)
    return combine("array", dtype.str, str(array.shape), total.digest())


def _ordered(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield the values in row-major and little-endian order, in parts `(n,)`."""
    if not array.size or not dtype.itemsize:
        return
    if array.flags.c_contiguous and array.dtype == dtype:
        yield np.asarray(array).reshape(-1)
        return
    yield from np.nditer(  # type: ignore[call-overload]  # its types lack "contig"
        array, ["external_loop", "buffered"], [["readonly", "contig"]], dtype, order="C",
        casting="equiv", buffersize=_BUFFER_SIZE,
    )  # fmt: skip


def tensor_digest(tensor: Tensor) -> bytes:
    """Return the digest of the dtype, shape and values of a strided tensor on any device."""
    plain = tensor.detach().as_subclass(Tensor)
    values = torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain
    flat = values.resolve_neg().contiguous().reshape(-1).cpu()
    digest = array_digest(flat.view(_INTS[flat.element_size()]).numpy())
    assert digest is not None
    return combine("tensor", str(plain.dtype), str(tuple(plain.shape)), digest)
