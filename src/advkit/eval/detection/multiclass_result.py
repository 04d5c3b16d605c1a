"""How well rows are given to their classes: a table, a dict, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from advkit.eval import text_tables
from advkit.eval.accuracy import Rate
from advkit.eval.detection.bootstrap import Estimate, about_intervals
from advkit.eval.plotting import draw_shares, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """How well the rows of one class are told from all others.

    Attributes:
        rows: how many the class has.
        ap: average precision of its probability.
        recall: share of its rows that are given to it.
        f1: F1 of the rows that are given to it.
    """

    rows: int
    ap: Estimate
    recall: Estimate
    f1: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, figures as `Estimate.to_dict`."""
        figures = {"ap": self.ap, "recall": self.recall, "f1": self.f1}
        return {"rows": self.rows, **{name: v.to_dict() for name, v in figures.items()}}


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassificationScores:
    """How well rows are given to their classes, say to attacks or to models.

    Attributes:
        classes: their names, in the order of the probabilities.
        per_class: by name.
        mean_ap: mean of the average precision over the classes that have rows.
        confusion: int `(classes, classes)`; rows of each true class by the class that they are
            given to.
        grouped: whether rows of one sample were drawn together.
        draws: resamples behind each interval.
    """

    classes: tuple[str, ...]
    per_class: Mapping[str, ClassScore]
    mean_ap: Estimate
    confusion: npt.NDArray[np.int64]
    grouped: bool
    draws: int

    def __str__(self) -> str:
        return text_tables.separate([self.table()], self.notes())

    def table(self) -> text_tables.Table:
        """A row for each class, and the mean."""
        rows: list[tuple[str, ...]] = [
            (name, f"{found.rows:,}", str(found.ap), str(found.recall), str(found.f1))
            for name, found in self.per_class.items()
        ]
        mean = ("mean", f"{int(self.confusion.sum()):,}", str(self.mean_ap), "", "")
        heading = ("class", "rows", "AP", "recall", "F1")
        return text_tables.Table(
            "Classification: each class against all others", heading, rows, [mean]
        )

    def notes(self) -> list[str]:
        """What the numbers mean."""
        return [
            "A row is given to its most probable class. The mean is over the classes that have "
            "rows.",
            about_intervals(self.draws, grouped=self.grouped),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "classes": list(self.classes),
            "per_class": {name: found.to_dict() for name, found in self.per_class.items()},
            "mean_ap": self.mean_ap.to_dict(),
            "confusion": self.confusion.tolist(),
            "grouped": self.grouped,
            "draws": self.draws,
            "notes": self.notes(),
        }

    def plot(self) -> Figure:
        """The confusion matrix as a heat map: of each true class, the shares in percent.

        Raises:
            ImportError: matplotlib is missing, naming the extra that brings it.
        """
        k = len(self.classes)
        figure = new_figure(0.62 * k + 3.2, 0.46 * k + 2.2)
        axes = figure.add_subplot()
        rows = [
            (
                name,
                {g: Rate(int(c), int(row.sum())) for g, c in zip(self.classes, row, strict=True)},
            )
            for name, row in zip(self.classes, self.confusion, strict=True)
        ]
        drawn = draw_shares(axes, rows, self.classes)
        axes.set(xlabel="given to", ylabel="true class")
        figure.colorbar(drawn, ax=axes, label="%", shrink=0.8, pad=0.02)
        return figure
