"""The history of a training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

_MIN_COLUMN_WIDTH = 9  # in characters


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the data.

    Attributes:
        epoch: number of the epoch, from 1.
        loss: mean loss of its samples, each with the weights before the step on its batch.
        seconds: duration of the training steps, without evaluation and checkpoint.
        lr: learning rate of the optimizer's first group at the beginning of the epoch.
        metrics: numbers that `evaluate` returned after the epoch, by name.
    """

    epoch: int
    loss: float
    seconds: float
    lr: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """Epochs of a training, including those before an interruption; prints as a table.

    Attributes:
        epochs: all epochs, in order.
    """

    epochs: tuple[Epoch, ...]

    def __str__(self) -> str:
        names = names_of(self.epochs)
        rows = (row(epoch, len(self.epochs), names) for epoch in self.epochs)
        return "\n".join([heading(names), *rows])

    def to_dict(self) -> dict[str, list[dict[str, object]]]:
        """Return plain values for JSON: `{"epochs": [{"epoch": 1, "loss": ..., ...}, ...]}`."""
        return {"epochs": [asdict(epoch) for epoch in self.epochs]}


def names_of(epochs: Iterable[Epoch]) -> list[str]:
    """Return the names of the evaluated numbers, in the order of their first appearance."""
    return list(dict.fromkeys(name for epoch in epochs for name in epoch.metrics))


def heading(names: Sequence[str]) -> str:
    """Return the header of the table, with the `names` of the evaluated numbers."""
    columns = ("epoch", "loss", "lr", "seconds", *names)
    cells = (name.rjust(_MIN_COLUMN_WIDTH) for name in columns)
    return "  ".join(cells)


def row(epoch: Epoch, total: int, names: Sequence[str]) -> str:
    """Return the row of an epoch out of `total`; a number that was not evaluated is `-`."""
    width = _MIN_COLUMN_WIDTH
    cells = [
        f"{epoch.epoch}/{total}".rjust(width),
        f"{epoch.loss:{width}.4g}",
        f"{epoch.lr:{width}.3g}",
        f"{epoch.seconds:{width}.1f}",
    ]
    values = (epoch.metrics.get(name) for name in names)
    widths = (max(width, len(name)) for name in names)
    cells += [
        "-".rjust(w) if value is None else f"{value:{w}.4g}"
        for value, w in zip(values, widths, strict=True)
    ]
    return "  ".join(cells)
