"""How well adversarial rows are told from clean ones: a table, a dict, and ROC curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_curve

from advkit.eval import text_tables
from advkit.eval.detection.bootstrap import Bools, Estimate, Floats, about_intervals
from advkit.eval.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well some adversarial rows are told from all the clean ones.

    Attributes:
        rows: how many adversarial ones there are.
        auroc: chance that one of them is more suspicious than a clean one.
        ap: average precision; it depends on how many of the rows are adversarial.
        tpr: share of them above the least threshold that leaves at most a share of the clean rows
            above, by that share.
        recall: share of them above the threshold given; `None` without one.
        f1: F1 of the adversarial rows at that threshold; `None` without one.
    """

    rows: int
    auroc: Estimate
    ap: Estimate
    tpr: Mapping[float, Estimate]
    recall: Estimate | None
    f1: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, figures as `Estimate.to_dict`."""
        return {
            "rows": self.rows,
            "auroc": self.auroc.to_dict(),
            "ap": self.ap.to_dict(),
            "tpr": {f"{fpr:g}": figure.to_dict() for fpr, figure in self.tpr.items()},
            "recall": None if self.recall is None else self.recall.to_dict(),
            "f1": None if self.f1 is None else self.f1.to_dict(),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionScores:
    """How well a detector tells adversarial rows from clean ones.

    Attributes:
        adversarial: bool `(n,)`, as given.
        anomaly_score: float64 `(n,)`, as given.
        attack: the attack of each row, or `None`.
        overall: all adversarial rows against all clean ones.
        per_attack: the rows of each attack against all clean ones; empty without `attack`.
        threshold: as given.
        false_alarms: share of the clean rows above that threshold; `None` without one.
        grouped: whether rows of one sample were drawn together.
        draws: resamples behind each interval.
    """

    adversarial: Bools
    anomaly_score: Floats
    attack: npt.NDArray[np.str_] | None
    overall: Detection
    per_attack: Mapping[str, Detection]
    threshold: float | None
    false_alarms: Estimate | None
    grouped: bool
    draws: int

    def __str__(self) -> str:
        return text_tables.separate([self.table()], self.notes())

    def table(self) -> text_tables.Table:
        """A row for each attack, and one for all of them."""
        heading = ["attack", "rows", "AUROC", "AP"]
        heading += [f"TPR at\n{100 * fpr:g} % FPR" for fpr in self.overall.tpr]
        heading += [] if self.threshold is None else ["recall", "F1"]
        rows = [_row(name, found) for name, found in self.per_attack.items()]
        title = "Detection: adversarial rows against all clean rows"
        return text_tables.Table(title, tuple(heading), rows, [_row("all attacks", self.overall)])

    def notes(self) -> list[str]:
        """What the numbers mean, and what a reader must not overlook."""
        clean = int((~self.adversarial).sum())
        allowed = [
            f"{int((np.arange(1, clean + 1) / clean <= fpr).sum()):,} at {100 * fpr:g} %"
            for fpr in self.overall.tpr
        ]
        notes = [
            f"There are {clean:,} clean rows; of these may be above a threshold: "
            f"{', '.join(allowed)}."
        ] * bool(allowed)
        notes.append(about_intervals(self.draws, grouped=self.grouped))
        if self.false_alarms is not None:
            shown = str(self.false_alarms).replace("\n", ", interval ")
            notes.append(
                f"Above the threshold of {self.threshold:.4g} is a share of {shown}, of the clean "
                "rows."
            )
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "clean_rows": int((~self.adversarial).sum()),
            "overall": self.overall.to_dict(),
            "per_attack": {name: found.to_dict() for name, found in self.per_attack.items()},
            "threshold": self.threshold,
            "false_alarms": None if self.false_alarms is None else self.false_alarms.to_dict(),
            "grouped": self.grouped,
            "draws": self.draws,
            "notes": self.notes(),
        }

    def plot(self, *, log_x: bool = False) -> Figure:
        """The ROC curve of each attack, and of all of them.

        Args:
            log_x: draw the false-positive rate on a logarithmic axis, which shows what is left at
                rates that a service can bear; it begins at half a clean row.

        Raises:
            ImportError: matplotlib is missing, naming the extra that brings it.
        """
        figure = new_figure(5.2, 4.4)
        axes = figure.add_subplot()
        least = 0.5 / int((~self.adversarial).sum())
        rows_by_name = {"all attacks": self.adversarial}
        rows_by_name |= rows_of_attacks(self.adversarial, self.attack)
        for name, rows in rows_by_name.items():
            part = rows | ~self.adversarial
            fpr, tpr, _ = roc_curve(self.adversarial[part], self.anomaly_score[part])
            axes.plot(np.maximum(fpr, least) if log_x else fpr, tpr, label=name)
        chance = np.geomspace(least, 1) if log_x else np.linspace(0, 1)
        axes.plot(chance, chance, color="grey", linestyle="--", linewidth=1, label="chance")
        if log_x:
            axes.set_xscale("log")
        axes.set(xlabel="false-positive rate", ylabel="true-positive rate", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        return figure


def _row(name: str, found: Detection) -> tuple[str, ...]:
    figures = [found.auroc, found.ap, *found.tpr.values(), found.recall, found.f1]
    return (name, f"{found.rows:,}", *(str(f) for f in figures if f is not None))


def rows_of_attacks(adversarial: Bools, attack: npt.NDArray[np.str_] | None) -> dict[str, Bools]:
    """Return which rows are of each attack, bool `(n,)`, by name in the order of first rows."""
    if attack is None:
        return {}
    names = dict.fromkeys(attack[adversarial].tolist())
    return {name: adversarial & (attack == name) for name in names}
