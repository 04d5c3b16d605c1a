"""Archives of arrays: reading them runs no code, and they are written whole or not at all."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advkit.core.files import replacing

# All that NumPy and the zip format raise at a damaged or foreign file.
_UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    TypeError,
    AttributeError,
    KeyError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(path: Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """The arrays `names` of the `.npz` archive at `path`; no pickled objects are read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such archive, or has not all of these arrays.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name in names}
            there = ", ".join(archive.files)
    except _UNREADABLE as error:
        raise ValueError(f"{path} is not an .npz archive of plain arrays: {error}") from error
    if len(arrays) < len(names):
        wanted = f"{', '.join(names[:-1])} and {names[-1]}"
        raise ValueError(f"{path} must hold the arrays {wanted}, holds: {there}")
    return arrays


def write_npz(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Replace the file at `path` by an archive of `arrays`, none of which holds objects."""
    assert not any(array.dtype.hasobject for array in arrays.values())
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # no array is named as a flag
