"""Files of a store: one archive of plain arrays for each unit of work."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from advkit.core.archives import read_npz, write_npz
from advkit.eval.units.examples import Examples
from advkit.eval.units.unit_result import UnitResult

_NAME = re.compile(r"(\d{6,})-(clean|\d{3,})-([0-9a-f]{32})\.npz")
_EXAMPLES = tuple(field.name for field in fields(Examples))


class UnitName(NamedTuple):
    """Name of the file of a unit.

    Attributes:
        chunk: number of the chunk.
        attack: number of the attack; `None` for the clean passes.
        key: hash of all that the result depends on.
    """

    chunk: int
    attack: int | None
    key: str

    @property
    def file(self) -> str:
        """Name of the file."""
        work = "clean" if self.attack is None else f"{self.attack:03}"
        return f"{self.chunk:06}-{work}-{self.key}.npz"

    @staticmethod
    def parse(file: str) -> UnitName | None:
        """Return the unit of a file name, `None` for the name of another file."""
        found = _NAME.fullmatch(file)
        if found is None:
            return None
        chunk, work, key = found.groups()
        return UnitName(int(chunk), None if work == "clean" else int(work), key)


def write_unit(path: Path, name: UnitName, result: UnitResult) -> None:
    """Write the result of a unit to `path`, whole or not at all."""
    arrays: dict[str, npt.NDArray[Any]] = {
        f"column {key}": column.numpy() for key, column in result.columns.items()
    }
    if result.examples is not None:
        parts = {key: getattr(result.examples, key) for key in _EXAMPLES}
        arrays |= {f"examples {key}": _as_array(part) for key, part in parts.items()}
    # The checksums of an archive do not cover its table of contents.
    header = json.dumps({"unit": name.file, "facts": dict(result.facts), "arrays": [*arrays]})
    arrays["header"] = np.frombuffer(header.encode(), np.uint8)
    write_npz(path, arrays)


def read_unit(path: Path, name: UnitName) -> UnitResult:
    """Read the result of a unit from `path`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged, or holds another unit.
    """
    arrays = read_npz(path)
    try:
        header = json.loads(bytes(arrays.pop("header")))
        if header["arrays"] != [*arrays]:
            raise ValueError("it lacks arrays")
        columns = _with_prefix(arrays, "column ")
        examples = _with_prefix(arrays, "examples ")
        if header["unit"] != name.file or len({each.shape[-1] for each in columns.values()}) != 1:
            raise ValueError("it holds another unit")
        return UnitResult(
            columns=columns,
            facts=header["facts"],
            examples=Examples(**examples) if examples else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


def _with_prefix(arrays: dict[str, npt.NDArray[Any]], prefix: str) -> dict[str, Tensor]:
    """Return the arrays whose names have a prefix as tensors, by the rest of their names."""
    return {
        name.removeprefix(prefix): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _as_array(tensor: Tensor) -> npt.NDArray[Any]:
    """Return a tensor as an array; NumPy has no bfloat16."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
