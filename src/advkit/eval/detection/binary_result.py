"""Scores of a detector on clean and adversarial rows, as a table, a dict and ROC curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from advkit.eval import text_tables
from advkit.eval.detection.bootstrap import Bools, Estimate, Floats, describe_intervals
from advkit.eval.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Scores of some adversarial rows against all clean rows.

    Attributes:
        rows: number of the adversarial rows.
        auroc: probability that an adversarial row has a greater anomaly score than a clean one.
        ap: average precision; it depends on the proportion of adversarial rows.
        tpr: true-positive rate by false-positive rate: the share of the adversarial rows above the
            lowest threshold whose false-positive rate is at most the key.
        recall: share of the adversarial rows above the given threshold; `None` without one.
        f1: F1 of the adversarial rows at that threshold; `None` without one.
    """

    rows: int
    auroc: Estimate
    ap: Estimate
    tpr: Mapping[float, Estimate]
    recall: Estimate | None
    f1: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with scores as `Estimate.to_dict`."""
        return {
            "rows": self.rows,
            "auroc": self.auroc.to_dict(),
            "ap": self.ap.to_dict(),
            "tpr": {f"{fpr:g}": score.to_dict() for fpr, score in self.tpr.items()},
            "recall": None if self.recall is None else self.recall.to_dict(),
            "f1": None if self.f1 is None else self.f1.to_dict(),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionScores:
    """Scores of a detector on clean and adversarial rows.

    Attributes:
        adversarial: bool `(n,)`; True for adversarial rows.
        anomaly_score: float64 `(n,)`, the detector's scores.
        attack: name of the attack of each row, or `None`.
        overall: scores of all adversarial rows against all clean rows.
        per_attack: scores of the rows of each attack against all clean rows; empty without
            `attack`.
        threshold: the threshold that was passed, or `None`.
        false_positive_rate: share of the clean rows above that threshold; `None` without one.
        grouped: True if rows of one sample were drawn together.
        bootstrap: number of resamples behind each interval.
    """

    adversarial: Bools
    anomaly_score: Floats
    attack: npt.NDArray[np.str_] | None
    overall: Detection
    per_attack: Mapping[str, Detection]
    threshold: float | None
    false_positive_rate: Estimate | None
    grouped: bool
    bootstrap: int

    def __str__(self) -> str:
        return text_tables.separate([self.table()], self.notes())

    def table(self) -> text_tables.Table:
        """Return a table with a row for each attack and one for all attacks."""
        heading = ["attack", "rows", "AUROC", "AP"]
        heading += [f"TPR at\n{100 * fpr:g} % FPR" for fpr in self.overall.tpr]
        heading += [] if self.threshold is None else ["recall", "F1"]
        rows = [_row(name, scores) for name, scores in self.per_attack.items()]
        title = "Detection: adversarial rows against all clean rows"
        return text_tables.Table(title, tuple(heading), rows, [_row("all attacks", self.overall)])

    def notes(self) -> list[str]:
        """Return sentences on what the numbers mean and on their limits."""
        clean = int((~self.adversarial).sum())
        allowed = [
            f"{int((np.arange(1, clean + 1) / clean <= fpr).sum()):,} at {100 * fpr:g} %"
            for fpr in self.overall.tpr
        ]
        notes = [
            f"There are {clean:,} clean rows. The number that may be above the threshold is "
            f"{', '.join(allowed)} FPR."
        ] * bool(allowed)
        notes.append(describe_intervals(self.bootstrap, grouped=self.grouped))
        if self.false_positive_rate is not None:
            rate = str(self.false_positive_rate).replace("\n", ", interval ")
            notes.append(
                f"At the threshold {self.threshold:.4g} the false-positive rate is {rate}."
            )
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "clean_rows": int((~self.adversarial).sum()),
            "overall": self.overall.to_dict(),
            "per_attack": {name: scores.to_dict() for name, scores in self.per_attack.items()},
            "threshold": self.threshold,
            "false_positive_rate": None
            if self.false_positive_rate is None
            else self.false_positive_rate.to_dict(),
            "grouped": self.grouped,
            "bootstrap": self.bootstrap,
            "notes": self.notes(),
        }

    def plot(self, *, log_x: bool = False) -> Figure:
        """Plot the ROC curve of each attack and of all attacks.

        Args:
            log_x: use a logarithmic axis for the false-positive rate, which shows the low rates
                that a service can accept. The axis starts at half a clean row.

        Returns:
            The figure.

        Raises:
            ImportError: matplotlib is missing; the message names the extra that installs it.
        """
        from sklearn.metrics import roc_curve  # here, since it takes a second to import

        figure = new_figure(5.2, 4.4)
        axes = figure.add_subplot()
        min_fpr = 0.5 / int((~self.adversarial).sum())
        rows_by_name = {"all attacks": self.adversarial}
        rows_by_name |= rows_of_attacks(self.adversarial, self.attack)
        for name, rows in rows_by_name.items():
            part = rows | ~self.adversarial
            fpr, tpr, _ = roc_curve(self.adversarial[part], self.anomaly_score[part])
            axes.plot(np.maximum(fpr, min_fpr) if log_x else fpr, tpr, label=name)
        chance = np.geomspace(min_fpr, 1) if log_x else np.linspace(0, 1)
        axes.plot(chance, chance, color="gray", linestyle="--", linewidth=1, label="chance")
        if log_x:
            axes.set_xscale("log")
        axes.set(xlabel="false-positive rate", ylabel="true-positive rate", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        return figure


def _row(name: str, scores: Detection) -> tuple[str, ...]:
    columns = [scores.auroc, scores.ap, *scores.tpr.values(), scores.recall, scores.f1]
    return (name, f"{scores.rows:,}", *(str(c) for c in columns if c is not None))


def rows_of_attacks(adversarial: Bools, attack: npt.NDArray[np.str_] | None) -> dict[str, Bools]:
    """Return a mask `(n,)` of the rows of each attack, by name in the order of first rows."""
    if attack is None:
        return {}
    names = dict.fromkeys(attack[adversarial].tolist())
    return {name: adversarial & (attack == name) for name in names}
