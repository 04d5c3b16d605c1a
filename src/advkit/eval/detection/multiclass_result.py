"""Scores of a classifier of rows, as a table, a dict and a confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from advkit.eval import text_tables
from advkit.eval.accuracy import Rate
from advkit.eval.detection.bootstrap import Estimate, describe_intervals
from advkit.eval.plotting import draw_shares, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """Scores of one class against all others.

    Attributes:
        rows: number of rows of the class.
        ap: average precision of the class's probability.
        recall: share of the rows of the class that are assigned to it.
        f1: F1 of the rows that are assigned to the class.
    """

    rows: int
    ap: Estimate
    recall: Estimate
    f1: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with scores as `Estimate.to_dict`."""
        scores = {"ap": self.ap, "recall": self.recall, "f1": self.f1}
        return {"rows": self.rows, **{name: v.to_dict() for name, v in scores.items()}}


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassificationScores:
    """Scores of a classifier of rows into classes such as attacks or models.

    Attributes:
        classes: names of the classes, in the order of the probabilities.
        per_class: scores of each class by name.
        mean_ap: mean of the average precision over the classes that have rows.
        confusion: int `(classes, classes)`; number of rows by true class and assigned class.
        grouped: True if rows of one sample were drawn together.
        bootstrap: number of resamples behind each interval.
    """

    classes: tuple[str, ...]
    per_class: Mapping[str, ClassScore]
    mean_ap: Estimate
    confusion: npt.NDArray[np.int64]
    grouped: bool
    bootstrap: int

    def __str__(self) -> str:
        return text_tables.separate([self.table()], self.notes())

    def table(self) -> text_tables.Table:
        """Return a table with a row for each class and one for the mean."""
        rows: list[tuple[str, ...]] = [
            (name, f"{scores.rows:,}", str(scores.ap), str(scores.recall), str(scores.f1))
            for name, scores in self.per_class.items()
        ]
        mean = ("mean", f"{int(self.confusion.sum()):,}", str(self.mean_ap), "", "")
        heading = ("class", "rows", "AP", "recall", "F1")
        return text_tables.Table(
            "Classification: each class against all others", heading, rows, [mean]
        )

    def notes(self) -> list[str]:
        """Return sentences on what the numbers mean."""
        return [
            "A row is assigned to its most probable class. The mean is over the classes that have "
            "rows.",
            describe_intervals(self.bootstrap, grouped=self.grouped),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "classes": list(self.classes),
            "per_class": {name: scores.to_dict() for name, scores in self.per_class.items()},
            "mean_ap": self.mean_ap.to_dict(),
            "confusion": self.confusion.tolist(),
            "grouped": self.grouped,
            "bootstrap": self.bootstrap,
            "notes": self.notes(),
        }

    def plot(self) -> Figure:
        """Plot the confusion matrix as a heat map, in percent of each true class.

        Returns:
            The figure.

        Raises:
            ImportError: matplotlib is missing; the message names the extra that installs it.
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
        image = draw_shares(axes, rows, self.classes)
        axes.set(xlabel="assigned class", ylabel="true class")
        figure.colorbar(image, ax=axes, label="%", shrink=0.8, pad=0.02)
        return figure
