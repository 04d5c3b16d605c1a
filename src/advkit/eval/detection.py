"""How well attacks are told from clean inputs, and one kind from another, with intervals."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from advkit.core import checks
from advkit.eval import tables
from advkit.eval.bootstrap import Bools, Estimate, Floats, Ints, Ranking, ratio, resampled

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
        return _printed(self.table(), self.notes())

    def table(self) -> tables.Table:
        """A row for each attack, and one for all of them."""
        heading = ["attack", "rows", "AUROC", "AP"]
        heading += [f"TPR at\n{100 * fpr:g} % FPR" for fpr in self.overall.tpr]
        heading += [] if self.threshold is None else ["recall", "F1"]
        rows = [_row(name, found) for name, found in self.per_attack.items()]
        title = "Detection: adversarial rows against all clean rows"
        return tables.Table(title, tuple(heading), rows, [_row("all attacks", self.overall)])

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
        notes.append(_about_intervals(self.draws, grouped=self.grouped))
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
        from advkit.eval.figures import new_figure

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
    values = _checked_floats("suspicion", suspicion, (len(wrong),))
    groups = None if attack is None else _checked_column("attack", attack, len(wrong)).astype(str)
    ids = _checked_samples(samples, len(wrong))
    _check_draws(bootstrap, seed)
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
        return _printed(self.table(), self.notes())

    def table(self) -> tables.Table:
        """A row for each class, and the mean."""
        rows: list[tuple[str, ...]] = [
            (name, f"{found.rows:,}", str(found.ap), str(found.recall), str(found.f1))
            for name, found in self.per_class.items()
        ]
        mean = ("mean", f"{int(self.confusion.sum()):,}", str(self.mean_ap), "", "")
        heading = ("class", "rows", "AP", "recall", "F1")
        return tables.Table("Classification: each class against all others", heading, rows, [mean])

    def notes(self) -> list[str]:
        """What the numbers mean."""
        return [
            "A row is given to its most probable class. The mean is over the classes that have "
            "rows.",
            _about_intervals(self.draws, grouped=self.grouped),
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
        from advkit.eval.figures import new_figure
        from advkit.eval.heatmap import draw_shares
        from advkit.eval.rates import Rate

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


def classification_scores(
    y: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    classes: Sequence[object],
    *,
    samples: npt.ArrayLike | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> ClassificationScores:
    """How well rows are given to their classes, with intervals as in `detection_scores`.

    Args:
        y: the true class of each row, `(n,)`; two classes or more among them.
        probabilities: `(n, k)`, in [0, 1], as `predict_proba` gives them.
        classes: the `k` classes in the order of the columns, such as `classes_` of an estimator. A
            class without rows has no figures and no part in the mean.
        samples: as in `detection_scores`.
        bootstrap: resamples, at least 1.
        seed: of the resamples, an int.

    Returns:
        Scores that print as a table, convert to a dict and plot as a confusion matrix.

    Raises:
        ValueError: columns of different lengths, values out of their range, a label that is no
            class, or rows of one class only.
        TypeError: an argument has the wrong type.

    Example:
        >>> import numpy as np
        >>> from advkit.eval import classification_scores
        >>> p = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
        >>> scores = classification_scores(["FGSM", "FGSM", "PGD", "PGD"], p, ["FGSM", "PGD"])
        >>> scores.confusion.tolist(), float(scores.mean_ap)
        ([[1, 1], [0, 2]], 1.0)
    """
    names = list(np.asarray(classes).tolist())
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"classes must be two or more different ones, got {names}")
    labels = _checked_labels(y, names)
    n, k = len(labels), len(names)
    given = _checked_floats("probabilities", probabilities, (n, k))
    if given.min() < 0 or given.max() > 1:
        raise ValueError(
            f"probabilities must lie in [0, 1], got values in [{given.min():g}, {given.max():g}]"
        )
    ids = _checked_samples(samples, n)
    _check_draws(bootstrap, seed)
    task = _Sorted(labels, given)
    drawn = resampled(task.figures, ids, bootstrap, seed)
    found = {key: Estimate.of(value, drawn[key]) for key, value in task.points().items()}
    shown = tuple(map(str, names))
    return ClassificationScores(
        classes=shown,
        per_class={
            name: ClassScore(
                rows=int((labels == i).sum()),
                ap=found["ap", i],
                recall=found["recall", i],
                f1=found["f1", i],
            )
            for i, name in enumerate(shown)
        },
        mean_ap=found["mean_ap"],
        confusion=confusion_matrix(labels, given.argmax(1), labels=range(k)).astype(np.int64),
        grouped=samples is not None,
        draws=bootstrap,
    )


class _Sorted:
    """Rows and the classes that they are given to."""

    def __init__(self, labels: Ints, probabilities: Floats) -> None:
        self.labels, self.probabilities = labels, probabilities
        every = np.arange(probabilities.shape[1])
        self.true = labels[:, None] == every  # (n, classes)
        self.given = probabilities.argmax(1)[:, None] == every
        columns = zip(self.true.T, probabilities.T, strict=True)
        self.rankings = [Ranking(true, column) for true, column in columns]

    def points(self) -> dict[Any, float]:
        """The figures of the rows as they are."""
        k = len(self.rankings)
        _, recall, f1, rows = precision_recall_fscore_support(
            self.labels, self.given.argmax(1), labels=range(k), zero_division=np.nan
        )
        columns = zip(self.true.T, self.probabilities.T, strict=True)
        ap = [
            average_precision_score(*c) if r else math.nan
            for c, r in zip(columns, rows, strict=True)
        ]
        return {
            "mean_ap": float(np.nanmean(ap)),
            **{("ap", i): ap[i] for i in range(k)},
            **{("recall", i): float(recall[i]) for i in range(k)},
            **{("f1", i): float(f1[i]) for i in range(k)},
        }

    def figures(self, weights: Floats) -> dict[Any, Floats]:
        """The same of resamples, from weights `(b, n)`."""
        ap = np.stack([r.sums(weights).average_precision() for r in self.rankings])  # (k, b)
        hit, true, given = (
            (weights @ rows).T for rows in (self.true & self.given, self.true, self.given)
        )
        recall, f1 = ratio(hit, true), ratio(2 * hit, true + given)
        return {
            "mean_ap": ratio(np.nansum(ap, axis=0), (~np.isnan(ap)).sum(0)),
            **{("ap", i): row for i, row in enumerate(ap)},
            **{("recall", i): row for i, row in enumerate(recall)},
            **{("f1", i): row for i, row in enumerate(f1)},
        }


def _printed(table: tables.Table, notes: Sequence[str]) -> str:
    shown = [line for part in tables.split(table) for line in ["", *tables.lines([part])]]
    return "\n".join([*shown[1:], "", *(textwrap.fill(note, tables.WIDTH) for note in notes)])


def _row(name: str, found: Detection) -> tuple[str, ...]:
    figures = [found.auroc, found.ap, *found.tpr.values(), found.recall, found.f1]
    return (name, f"{found.rows:,}", *(str(f) for f in figures if f is not None))


def _about_intervals(draws: int, *, grouped: bool) -> str:
    drawn = (
        "all rows of a sample are drawn together"
        if grouped
        else "each row is drawn by itself, as if no two were of the same image"
    )
    return f"Intervals of 95 % are percentiles of {draws:,} bootstrap resamples; {drawn}."


def _rows_of_attacks(adversarial: Bools, attack: npt.NDArray[np.str_] | None) -> dict[str, Bools]:
    """Which rows each attack has, by its name, in the order of their first rows."""
    if attack is None:
        return {}
    names = dict.fromkeys(attack[adversarial].tolist())
    return {name: adversarial & (attack == name) for name in names}


def _checked_column(name: str, values: npt.ArrayLike, n: int) -> npt.NDArray[Any]:
    column = np.asarray(values)
    if column.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), got {column.shape}")
    return column


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


def _checked_floats(name: str, values: npt.ArrayLike, shape: tuple[int, ...]) -> Floats:
    found = np.asarray(values)
    if found.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be numbers, got {found.dtype}")
    if found.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {found.shape}")
    bad = torch.from_numpy(~np.isfinite(found).reshape(len(found), -1).all(1))
    if bad.any():
        raise ValueError(f"{name} must be finite, is not in row {checks.indices(bad)}")
    return found.astype(np.float64)


def _checked_labels(y: npt.ArrayLike, names: list[Any]) -> Ints:
    """Where the class of each row stands among `names`."""
    column = np.asarray(y)
    if column.ndim != 1:
        raise ValueError(f"y must have shape (n,), got {column.shape}")
    place = {name: i for i, name in enumerate(names)}
    unknown = sorted({repr(v) for v in column.tolist() if v not in place})
    if unknown:
        raise ValueError(f"y must be among the classes {names}, got {', '.join(unknown[:5])}")
    labels = np.array([place[v] for v in column.tolist()], dtype=np.intp)
    if len(set(labels.tolist())) < 2:
        raise ValueError("y must have rows of two classes or more")
    return labels


def _checked_samples(samples: npt.ArrayLike | None, n: int) -> Ints:
    """Which sample each row is of, from 0 on."""
    if samples is None:
        return np.arange(n)
    return np.unique(_checked_column("samples", samples, n), return_inverse=True)[1]


def _check_draws(bootstrap: int, seed: int) -> None:
    checks.whole("bootstrap", bootstrap, at_least=1)
    checks.whole("seed", seed, at_least=0)


def _checked_rate(rate: float) -> float:
    checks.share("fpr", rate)
    if rate == 1:
        raise ValueError("fpr must be below 1, got 1")
    return float(rate)
