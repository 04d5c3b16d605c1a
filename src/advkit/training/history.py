"""What a training tells of its epochs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

_WIDTH = 9  # of a column, in characters, at least


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the data.

    Attributes:
        epoch: its number, from 1.
        loss: mean over its samples, each with the weights that its batch met.
        seconds: of training, without evaluation and checkpoint.
        lr: learning rate of the optimizer's first group as the epoch began.
        evaluated: what `evaluate` found after it, by name.
    """

    epoch: int
    loss: float
    seconds: float
    lr: float
    evaluated: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """The epochs of a training, those before an interruption too. Prints as a table.

    Attributes:
        epochs: from the first to the last.
    """

    epochs: tuple[Epoch, ...]

    def __str__(self) -> str:
        names = names_of(self.epochs)
        rows = (row(epoch, len(self.epochs), names) for epoch in self.epochs)
        return "\n".join([heading(names), *rows])

    def to_dict(self) -> dict[str, list[dict[str, object]]]:
        """Plain values for JSON: `{"epochs": [{"epoch": 1, "loss": ..., ...}, ...]}`."""
        return {"epochs": [asdict(epoch) for epoch in self.epochs]}


def names_of(epochs: Iterable[Epoch]) -> list[str]:
    """What was evaluated, in the order of its first appearance."""
    return list(dict.fromkeys(name for epoch in epochs for name in epoch.evaluated))


def heading(names: Sequence[str]) -> str:
    """The names of the columns, `names` being those of the evaluation."""
    cells = (name.rjust(_WIDTH) for name in ("epoch", "loss", "lr", "seconds", *names))
    return "  ".join(cells)


def row(epoch: Epoch, total: int, names: Sequence[str]) -> str:
    """An epoch of `total` ones under its `heading`; `-` for what was not evaluated after it."""
    cells = [
        f"{epoch.epoch}/{total}".rjust(_WIDTH),
        f"{epoch.loss:{_WIDTH}.4g}",
        f"{epoch.lr:{_WIDTH}.3g}",
        f"{epoch.seconds:{_WIDTH}.1f}",
    ]
    found = (epoch.evaluated.get(name) for name in names)
    wide = (max(_WIDTH, len(name)) for name in names)
    cells += [
        "-".rjust(width) if value is None else f"{value:{width}.4g}"
        for value, width in zip(found, wide, strict=True)
    ]
    return "  ".join(cells)
