"""How well adversarial rows are told from clean ones, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from advkit.core import checks
from advkit.eval.detection.bootstrap import (
    Bools,
    Estimate,
    Floats,
    Ranking,
    about_intervals,
    ratio,
    resampled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from advkit.eval import text_tables
from advkit.eval.detection.columns import (
    check_draws,
    checked_column,
    checked_floats,
    checked_samples,
)
from advkit.eval.plotting import new_figure


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
        suspicion: float64 `(n,)`, as given.
        attack: the attack of each row, or `None`.
        overall: all adversarial rows against all clean ones.
        per_attack: the rows of each attack against all clean ones; empty without `attack`.
        threshold: as given.
        false_alarms: share of the clean rows above that threshold; `None` without one.
        grouped: whether rows of one sample were drawn together.
        draws: resamples behind each interval.
    """

    adversarial: Bools
    suspicion: Floats
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
        for name, rows in {"all attacks": self.adversarial, **self._rows()}.items():
            part = rows | ~self.adversarial
            fpr, tpr, _ = roc_curve(self.adversarial[part], self.suspicion[part])
            axes.plot(np.maximum(fpr, least) if log_x else fpr, tpr, label=name)
        chance = np.geomspace(least, 1) if log_x else np.linspace(0, 1)
        axes.plot(chance, chance, color="grey", linestyle="--", linewidth=1, label="chance")
        if log_x:
            axes.set_xscale("log")
        axes.set(xlabel="false-positive rate", ylabel="true-positive rate", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        return figure

    def _rows(self) -> dict[str, Bools]:
        return _rows_of_attacks(self.adversarial, self.attack)


def detection_scores(
    adversarial: npt.ArrayLike,
    suspicion: npt.ArrayLike,
    *,
    attack: npt.ArrayLike | None = None,
    samples: npt.ArrayLike | None = None,
    threshold: float | None = None,
    fpr: Sequence[float] = (0.01, 0.05),
    bootstrap: int = 1000,
    seed: int = 0,
) -> DetectionScores:
    """How well suspicion tells adversarial rows from clean ones, with intervals of 95 %.

    The intervals are percentiles of a bootstrap over samples: each resample draws as many samples
    as there are, with all their rows, and all figures are computed anew, thresholds for a
    false-positive rate too. Resamples without clean or without adversarial rows are left aside.
    They say what other samples would change, not what another detector or another training would.

    Args:
        adversarial: bool `(n,)`; which rows are adversarial, at least one, and at least one not.
        suspicion: `(n,)`, finite; greater is more suspicious. Of a detector that has not seen these
            samples.
        attack: the name of each row's attack, `(n,)`; those of clean rows do not matter. Each
            attack is then also scored by itself, against all clean rows.
        samples: ids `(n,)` of what each row was made from: rows of one image are no independent
            evidence, and go together. `None` if every row is of another one.
        threshold: above which there is an alarm, for recall and F1; best one found on other data,
            as `Guard.calibrate` does. `None` for neither.
        fpr: false-positive rates at which to give the true-positive rate, in [0, 1).
        bootstrap: resamples, at least 1.
        seed: of the resamples, an int.

    Returns:
        Scores that print as a table, convert to a dict and plot as ROC curves.

    Raises:
        ValueError: columns of different lengths, or values out of their range; no clean or no
            adversarial row.
        TypeError: an argument has the wrong type.

    Example:
        >>> import numpy as np
        >>> from advkit.eval import detection_scores
        >>> scores = detection_scores([0, 0, 0, 1, 1], [0.1, 0.2, 0.6, 0.5, 0.9], threshold=0.55)
        >>> float(scores.overall.auroc), float(scores.overall.recall)
        (0.8333333333333334, 0.5)
    """
    wrong = _checked_bools(adversarial)
    values = checked_floats("suspicion", suspicion, (len(wrong),))
    groups = None if attack is None else checked_column("attack", attack, len(wrong)).astype(str)
    ids = checked_samples(samples, len(wrong))
    check_draws(bootstrap, seed)
    rates = tuple(_checked_rate(rate) for rate in fpr)
    if threshold is not None:
        checks.number("threshold", threshold)
        if not math.isfinite(threshold):
            raise ValueError(f"threshold must be finite, got {threshold}")
    parts = {"": wrong, **_rows_of_attacks(wrong, groups)}
    tasks = {
        name: _Told(rows, rows | ~wrong, values, rates, threshold) for name, rows in parts.items()
    }
    clean, alarms = ~wrong, None if threshold is None else values > threshold

    def figures(weights: Floats) -> dict[Any, Floats]:
        found = {
            (name, key): value
            for name, task in tasks.items()
            for key, value in task.figures(weights).items()
        }
        if alarms is not None:
            found["", "false_alarms"] = ratio(weights @ (clean & alarms), weights @ clean)
        return found

    drawn = resampled(figures, ids, bootstrap, seed)
    every = {name: task.detection(name, drawn) for name, task in tasks.items()}
    false_alarms = None
    if alarms is not None:
        share = float(alarms[clean].mean())
        false_alarms = Estimate.of(share, drawn["", "false_alarms"])
    return DetectionScores(
        adversarial=wrong,
        suspicion=values,
        attack=groups,
        overall=every.pop(""),
        per_attack=every,
        threshold=None if threshold is None else float(threshold),
        false_alarms=false_alarms,
        grouped=samples is not None,
        draws=bootstrap,
    )


class _Told:
    """Some adversarial rows to be told from the clean ones."""

    def __init__(
        self,
        wrong: Bools,
        part: Bools,
        suspicion: Floats,
        rates: tuple[float, ...],
        threshold: float | None,
    ) -> None:
        self.part = np.flatnonzero(part)  # all of them, and the clean ones
        self.wrong, self.suspicion = wrong[part], suspicion[part]
        self.rates = rates
        self.alarm = None if threshold is None else self.suspicion > threshold
        self.ranking = Ranking(self.wrong, self.suspicion)

    def points(self) -> dict[Any, float]:
        """The figures of the rows as they are."""
        share, reached, _ = roc_curve(self.wrong, self.suspicion, drop_intermediate=False)
        found: dict[Any, float] = {
            "auroc": roc_auc_score(self.wrong, self.suspicion),
            "ap": average_precision_score(self.wrong, self.suspicion),
            **{rate: reached[share <= rate].max() for rate in self.rates},
        }
        if self.alarm is not None:
            found["recall"] = recall_score(self.wrong, self.alarm)
            found["f1"] = f1_score(self.wrong, self.alarm, zero_division=0.0)
        return found

    def figures(self, weights: Floats) -> dict[Any, Floats]:
        """The same of resamples, from weights `(b, n)` of all rows."""
        weights = weights[:, self.part]
        sums = self.ranking.sums(weights)
        found: dict[Any, Floats] = {
            "auroc": sums.auroc(),
            "ap": sums.average_precision(),
            **{rate: sums.recall_at(rate) for rate in self.rates},
        }
        if self.alarm is not None:
            hit, wrong = weights @ (self.wrong & self.alarm), weights @ self.wrong
            found["recall"] = ratio(hit, wrong)
            found["f1"] = np.where(wrong > 0, ratio(2 * hit, weights @ self.alarm + wrong), np.nan)
        return found

    def detection(self, name: str, drawn: Mapping[Any, Floats]) -> Detection:
        """Figures with the intervals that the resamples `drawn` give."""
        found = {k: Estimate.of(value, drawn[name, k]) for k, value in self.points().items()}
        return Detection(
            rows=int(self.wrong.sum()),
            auroc=found["auroc"],
            ap=found["ap"],
            tpr={rate: found[rate] for rate in self.rates},
            recall=found.get("recall"),
            f1=found.get("f1"),
        )


def _row(name: str, found: Detection) -> tuple[str, ...]:
    figures = [found.auroc, found.ap, *found.tpr.values(), found.recall, found.f1]
    return (name, f"{found.rows:,}", *(str(f) for f in figures if f is not None))


def _rows_of_attacks(adversarial: Bools, attack: npt.NDArray[np.str_] | None) -> dict[str, Bools]:
    """Which rows each attack has, by its name, in the order of their first rows."""
    if attack is None:
        return {}
    names = dict.fromkeys(attack[adversarial].tolist())
    return {name: adversarial & (attack == name) for name in names}


def _checked_bools(values: npt.ArrayLike) -> Bools:
    found = np.asarray(values)
    if found.dtype.kind not in "biu":
        raise TypeError(f"adversarial must be bools, or 0 and 1, got {found.dtype}")
    if found.ndim != 1 or not np.isin(found, (0, 1)).all():
        raise ValueError(f"adversarial must be 0 or 1 of shape (n,), got shape {found.shape}")
    wrong = found.astype(bool)
    if wrong.all() or not wrong.any():
        raise ValueError(
            "adversarial must have both clean and adversarial rows, "
            f"got {int((~wrong).sum())} and {int(wrong.sum())}"
        )
    return wrong


def _checked_rate(rate: float) -> float:
    checks.share("fpr", rate)
    if rate == 1:
        raise ValueError("fpr must be below 1, got 1")
    return float(rate)
