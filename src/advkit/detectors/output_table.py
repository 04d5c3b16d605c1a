"""Table of the outputs of models for clean and attacked inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from advkit.core import checks
from advkit.core.archives import read_npz, write_npz
from advkit.detectors.features import OUTPUTS, Outputs, check_finite

Column = npt.NDArray[Any]

CLEAN = "clean"
_FORMAT = "advkit output table 1"
_COLUMNS = {  # the kinds of NumPy dtypes that each column accepts
    "sample": "iu",
    "model": "U",
    "attack": "U",
    "label": "iu",
    "predicted": "iu",
    "success": "b",
    "distance": "f",
    "norm": "U",
}
_DTYPES = {"iu": np.int64, "b": np.bool_, "f": np.float64, "U": np.str_}
_KIND_NAMES = {"iu": "integers", "b": "bools", "f": "floats", "U": "strings"}


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputTable:
    """A table of `n` outputs of models by columns, on which detectors are fitted.

    Every column except `outputs` can be the label of a detector. `groups` keeps the rows of one
    image together in scikit-learn's splits.

    Args:
        outputs: outputs of the models, `(n, width)`, finite; float32.
        sample: number of the input that each row comes from, `(n,)`; int64. Rows of one input have
            the same number for all models and attacks.
        model: names of the models, `(n,)` strings.
        attack: names of the attacks, `(n,)` strings; `"clean"` for clean inputs.
        label: true labels `(n,)`; int64.
        predicted: labels that the models predict, `(n,)`, int64; -1 for a rejection.
        success: bool `(n,)`; True where the attack reached its goal, a wrong label. False in clean
            rows, even where the model misclassifies them.
        distance: `(n,)`, float64; distance of the input from the clean one, 0 in clean rows.
        norm: norm of each distance, `(n,)` strings; empty in clean rows.
        kind: kind of the outputs, `"scores"` or `"logits"`.

    Raises:
        TypeError: a column is not an array, or has another kind of values.
        ValueError: columns differ in length, a value is not finite or out of its range, or `kind`
            is unknown.

    Example:
        >>> import torch
        >>> from advkit import attacks, detectors
        >>> net, x = torch.nn.Linear(4, 3), torch.rand(5, 4)
        >>> table = detectors.collect({"net": net}, [attacks.FGSM(eps=0.1)], x, torch.arange(5) % 3)
        >>> table.outputs.shape, table.attack.tolist()[4:6]
        ((10, 3), ['clean', 'FGSM(eps=0.1)'])
        >>> len(table.filter(attack="clean")), int(table.adversarial.sum())
        (5, 5)
    """

    outputs: Column
    sample: Column
    model: Column
    attack: Column
    label: Column
    predicted: Column
    success: Column
    distance: Column
    norm: Column
    kind: Outputs = "scores"

    def __post_init__(self) -> None:
        checks.one_of("kind", self.kind, OUTPUTS)
        object.__setattr__(self, "outputs", _checked_outputs(self.outputs))
        for name, kind in _COLUMNS.items():
            column = _checked_column(name, getattr(self, name), kind, len(self.outputs))
            object.__setattr__(self, name, column)
        for name, minimum in (("label", 0), ("predicted", -1), ("distance", 0)):
            column = getattr(self, name)
            bad = ~((column >= minimum) & (column < np.inf))
            if bad.any():
                raise ValueError(
                    f"`{name}` must be finite and at least {minimum}, got {column[bad][0]} "
                    f"({checks.samples(torch.from_numpy(bad), noun='row')})."
                )

    def __len__(self) -> int:
        return len(self.outputs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} rows of {self.width} {self.kind})"

    def __str__(self) -> str:
        """Return the number of rows, accuracy and success of each model and attack as text."""
        lines = [("model", "attack", "rows", "correct", "success", "mean distance")]
        pairs = dict.fromkeys(zip(self.model.tolist(), self.attack.tolist(), strict=True))
        for model, attack in pairs:
            part = self[(self.model == model) & (self.attack == attack)]
            lines.append((model, attack, f"{len(part):,}", *part._figures()))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(_line(cells, widths) for cells in lines)

    def _figures(self) -> tuple[str, str, str]:
        """Return accuracy, success rate and mean distance of rows of one model and attack."""
        correct = _percent(self.predicted == self.label)
        if not self.adversarial.any():
            return correct, "-", "-"
        return correct, _percent(self.success), f"{self.distance.mean():.4g} {self.norm[0]}".strip()

    @property
    def width(self) -> int:
        """Number of entries in a row of `outputs`."""
        return int(self.outputs.shape[1])

    @property
    def adversarial(self) -> npt.NDArray[np.bool_]:
        """Mask of the rows of attacks, successful or not, bool `(n,)`."""
        return np.asarray(self.attack != CLEAN)

    @property
    def groups(self) -> Column:
        """Sample numbers `(n,)`: the `groups` of `GroupKFold` and `GroupShuffleSplit`."""
        return self.sample

    def __getitem__(self, rows: Column | slice) -> OutputTable:
        """Return the table of the rows of a mask `(n,)`, an array of indices, or a slice."""
        if not isinstance(rows, (np.ndarray, slice)):
            raise TypeError(f"`rows` must be an array or a slice, got {type(rows).__name__}.")
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "kind"}
        return OutputTable(**columns, kind=self.kind)

    def filter(self, **values: object) -> OutputTable:
        """Return the table of the rows whose columns have the given values.

        Args:
            values: for each column to filter by, a value or a list of values. Any column except
                `outputs`, or `adversarial`.

        Raises:
            TypeError: there is no such column, or a value has another type than its column.
            ValueError: no row has that name of a model, attack or norm.

        Example:
            >>> import torch
            >>> from advkit import attacks, detectors
            >>> x, y = torch.rand(5, 4), torch.arange(5) % 3
            >>> steps = {str(eps): attacks.FGSM(eps=eps) for eps in (0.1, 0.2)}
            >>> table = detectors.collect([torch.nn.Linear(4, 3)], steps, x, y)
            >>> len(table.filter(attack=["clean", "0.2"], label=0))
            4
        """
        rows = np.ones(len(self), dtype=bool)
        for name, accepted in values.items():
            rows &= self._matches(name, accepted)
        return self[rows]

    def _matches(self, name: str, values: object) -> npt.NDArray[np.bool_]:
        """Return a mask of the rows that have one of `values` in the column `name`."""
        if name not in (*_COLUMNS, "adversarial"):
            raise TypeError(
                f"`filter` must get names of columns ({', '.join(_COLUMNS)}, adversarial), "
                f"got {name!r}."
            )
        column: Column = getattr(self, name)
        choices = np.atleast_1d(np.asarray(values))
        if column.dtype.kind == "U":
            for choice in choices.tolist():
                checks.one_of(name, choice, np.unique(column).tolist())
        elif choices.dtype.kind not in "biuf":
            raise TypeError(f"`{name}` must be a number or a list of numbers, got {values!r}.")
        return np.isin(column, choices)

    def __add__(self, other: OutputTable) -> OutputTable:
        return OutputTable.concatenate([self, other])

    @classmethod
    def concatenate(cls, tables: Iterable[OutputTable]) -> OutputTable:
        """Return one table of all rows.

        Sample numbers do not change. Tables of the same inputs by other models or attacks share
        them; tables of other inputs need other numbers, see `first_sample` of `collect`.

        Raises:
            ValueError: there is no table, or tables differ in the width or kind of outputs.
        """
        tables = list(tables)
        if not tables:
            raise ValueError("`tables` must hold at least one table, got none.")
        for name in ("kind", "width"):
            different = list(dict.fromkeys(getattr(table, name) for table in tables))
            if len(different) > 1:
                raise ValueError(
                    f"`tables` must have outputs of one {name}, "
                    f"got {different[0]} and {different[1]}."
                )
        columns = {
            f.name: np.concatenate([getattr(table, f.name) for table in tables])
            for f in fields(cls)
            if f.name != "kind"
        }
        return cls(**columns, kind=tables[0].kind)

    def save(self, path: str | Path) -> None:
        """Write the table to a `.npz` archive of plain arrays, whole or not at all."""
        columns = {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}
        write_npz(Path(path), {"format": np.asarray(_FORMAT), **columns})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a table that `save` wrote; reading executes no code.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is damaged or does not hold a table of outputs.
        """
        path = Path(path)
        columns = read_npz(path, ("format", *(f.name for f in fields(cls))))
        if str(columns.pop("format")) != _FORMAT:
            raise ValueError(f"`path` must be a file of an OutputTable, got {path}.")
        kind: Any = str(columns.pop("kind"))
        try:
            return cls(**columns, kind=kind)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold a valid OutputTable: {error}") from error


def _checked_outputs(outputs: Column) -> npt.NDArray[np.float32]:
    if not isinstance(outputs, np.ndarray) or outputs.dtype.kind != "f":
        raise TypeError(f"`outputs` must be an array of floats, got {_describe(outputs)}.")
    if outputs.ndim != 2 or outputs.shape[1] == 0:
        raise ValueError(f"`outputs` must have shape (n, width), got {outputs.shape}.")
    outputs = outputs.astype(np.float32, copy=False)
    check_finite(outputs)
    return outputs


def _checked_column(name: str, column: Column, kind: str, n: int) -> Column:
    if not isinstance(column, np.ndarray) or column.dtype.kind not in kind:
        raise TypeError(
            f"`{name}` must be an array of {_KIND_NAMES[kind]}, got {_describe(column)}."
        )
    if column.shape != (n,):
        raise ValueError(f"`{name}` must have shape ({n},) like the rows, got {column.shape}.")
    return column.astype(_DTYPES[kind], copy=False)


def _describe(value: object) -> str:
    return f"{value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def _percent(hits: npt.NDArray[np.bool_]) -> str:
    return f"{100 * hits.mean():.1f} %"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    names = (cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True))
    numbers = (cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True))
    return "  ".join([*names, *numbers]).rstrip()
