"""What models answer to clean and to attacked inputs, one row for each answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from advkit.core import checks
from advkit.core.archives import read_npz, write_npz
from advkit.detectors.features import OUTPUTS, Outputs, check_finite

Column = npt.NDArray[Any]

CLEAN = "clean"
_FORMAT = "advkit output table 1"
_KINDS = {
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
_IN_WORDS = {"iu": "integers", "b": "bools", "f": "floats", "U": "strings"}


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputTable:
    """A table of `n` answers of models, kept by columns; what detectors learn from.

    Every column but `outputs` can be a label for a detector, and `groups` keeps the rows of one
    image together in scikit-learn's splits.

    Args:
        outputs: what the models answered, `(n, width)`, finite; float32.
        sample: which input each row comes from, `(n,)`; int64. Rows of one input have the same
            number, also those of other models and attacks.
        model: names of the models, `(n,)` strings.
        attack: names of the attacks, `(n,)` strings; `"clean"` for inputs as they are.
        label: true labels `(n,)`; int64.
        predicted: the models' labels `(n,)`, int64; -1 for none.
        success: bool `(n,)`; whether the attack reached its goal, a wrong label. False in clean
            rows, also where the model is wrong there: nobody attacked.
        distance: `(n,)`, float64; how far the input is from the clean one, 0 in clean rows.
        norm: what each distance is measured in, `(n,)` strings; empty in clean rows.
        kind: what the outputs are, `"scores"` or `"logits"`.

    Raises:
        TypeError: a column is no array, or of another kind of values.
        ValueError: columns do not fit together, outputs are NaN or infinite, or `kind` is unknown.

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
        for name, kind in _KINDS.items():
            column = _checked_column(name, getattr(self, name), kind, len(self.outputs))
            object.__setattr__(self, name, column)
        for name, least in (("label", 0), ("predicted", -1), ("distance", 0)):
            column = getattr(self, name)
            if not ((column >= least) & (column < np.inf)).all():
                raise ValueError(f"{name} must be finite and at least {least}, is not in all rows")

    def __len__(self) -> int:
        return len(self.outputs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} rows of {self.width} {self.kind})"

    def __str__(self) -> str:
        """How many rows each model and attack have, and how the attacks fared."""
        lines = [("model", "attack", "rows", "correct", "success", "mean distance")]
        pairs = dict.fromkeys(zip(self.model.tolist(), self.attack.tolist(), strict=True))
        for model, attack in pairs:
            part = self[(self.model == model) & (self.attack == attack)]
            lines.append((model, attack, f"{len(part):,}", *part._figures()))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(_line(cells, widths) for cells in lines)

    def _figures(self) -> tuple[str, str, str]:
        """Correct labels, successes and mean distance of rows of one model and attack."""
        correct = _percent(self.predicted == self.label)
        if not self.adversarial.any():
            return correct, "-", "-"
        return correct, _percent(self.success), f"{self.distance.mean():.4g} {self.norm[0]}".strip()

    @property
    def width(self) -> int:
        """Numbers in a row of `outputs`."""
        return int(self.outputs.shape[1])

    @property
    def adversarial(self) -> npt.NDArray[np.bool_]:
        """Whether each row is of an attack, `(n,)`, successful or not."""
        return np.asarray(self.attack != CLEAN)

    @property
    def groups(self) -> Column:
        """The samples, for `groups` of scikit-learn's `GroupKFold` and `GroupShuffleSplit`."""
        return self.sample

    def __getitem__(self, rows: Column | slice) -> OutputTable:
        """The rows where a bool array `(n,)` is true, at an array of indices, or of a slice."""
        if not isinstance(rows, (np.ndarray, slice)):
            raise TypeError(f"`rows` must be an array or a slice, got {type(rows).__name__}")
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "kind"}
        return OutputTable(**columns, kind=self.kind)

    def filter(self, **wanted: object) -> OutputTable:
        """The rows whose columns have the `wanted` values.

        Args:
            wanted: a value, or a list of them, for each column that is to be looked at: any but
                `outputs`, or `adversarial`.

        Raises:
            TypeError: there is no such column, or a value is of another kind than it.
            ValueError: no row has such a name of a model, attack or norm.

        Example:
            >>> import torch
            >>> from advkit import attacks, detectors
            >>> x, y = torch.rand(5, 4), torch.arange(5) % 3
            >>> made = {str(eps): attacks.FGSM(eps=eps) for eps in (0.1, 0.2)}
            >>> table = detectors.collect([torch.nn.Linear(4, 3)], made, x, y)
            >>> len(table.filter(attack=["clean", "0.2"], label=0))
            4
        """
        rows = np.ones(len(self), dtype=bool)
        for name, values in wanted.items():
            rows &= self._has(name, values)
        return self[rows]

    def _has(self, name: str, values: object) -> npt.NDArray[np.bool_]:
        """Whether each row has one of `values` in the column `name`."""
        if name not in (*_KINDS, "adversarial"):
            raise TypeError(f"filter takes {', '.join(_KINDS)} or adversarial, got {name!r}")
        column: Column = getattr(self, name)
        choices = np.atleast_1d(np.asarray(values))
        if column.dtype.kind == "U":
            for choice in choices.tolist():
                checks.one_of(name, choice, np.unique(column).tolist())
        elif choices.dtype.kind not in "biuf":
            raise TypeError(f"{name} must be a number or a list of them, got {values!r}")
        return np.isin(column, choices)

    def __add__(self, other: OutputTable) -> OutputTable:
        return OutputTable.concatenate([self, other])

    @classmethod
    def concatenate(cls, tables: Iterable[OutputTable]) -> OutputTable:
        """One table of all rows.

        The numbers of samples stay as they are: tables of the same inputs (by other models or
        attacks) agree in them, tables of other inputs must not, see `first_sample` of `collect`.

        Raises:
            ValueError: no table, or tables of different widths or kinds of outputs.
        """
        tables = list(tables)
        if not tables:
            raise ValueError("`tables` must hold at least one table, got none")
        for trait in ("kind", "width"):
            found = list(dict.fromkeys(getattr(table, trait) for table in tables))
            if len(found) > 1:
                raise ValueError(
                    f"`tables` must have outputs of one {trait}, got {found[0]} and {found[1]}"
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
        """Read what `save` wrote; reading runs no code.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: it is damaged, or no such table.
        """
        path = Path(path)
        columns = read_npz(path, ("format", *(f.name for f in fields(cls))))
        if str(columns.pop("format")) != _FORMAT:
            raise ValueError(f"{path} is no table of outputs")
        kind: Any = str(columns.pop("kind"))
        try:
            return cls(**columns, kind=kind)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is no valid table of outputs: {error}") from error


def _checked_outputs(outputs: Column) -> npt.NDArray[np.float32]:
    if not isinstance(outputs, np.ndarray) or outputs.dtype.kind != "f":
        raise TypeError(f"`outputs` must be an array of floats, got {_described(outputs)}")
    if outputs.ndim != 2 or outputs.shape[1] == 0:
        raise ValueError(f"`outputs` must have shape (n, width), got {outputs.shape}")
    outputs = outputs.astype(np.float32, copy=False)
    check_finite(outputs)
    return outputs


def _checked_column(name: str, column: Column, kind: str, n: int) -> Column:
    if not isinstance(column, np.ndarray) or column.dtype.kind not in kind:
        raise TypeError(f"{name} must be an array of {_IN_WORDS[kind]}, got {_described(column)}")
    if column.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},) like the rows, got {column.shape}")
    return column.astype(_DTYPES[kind], copy=False)


def _described(value: object) -> str:
    return f"{value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def _percent(hits: npt.NDArray[np.bool_]) -> str:
    return f"{100 * hits.mean():.1f} %"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    names = (cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True))
    numbers = (cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True))
    return "  ".join([*names, *numbers]).rstrip()
