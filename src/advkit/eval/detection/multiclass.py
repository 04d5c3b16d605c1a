"""How well rows are given to their classes, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_recall_fscore_support,
)

from advkit.eval.detection.bootstrap import (
    Estimate,
    Floats,
    Ints,
    Ranking,
    about_intervals,
    ratio,
    resampled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from advkit.eval import text_tables
from advkit.eval.accuracy import Rate
from advkit.eval.detection.columns import (
    check_draws,
    checked_floats,
    checked_samples,
)
from advkit.eval.plotting import draw_shares, new_figure


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
    given = checked_floats("probabilities", probabilities, (n, k))
    if given.min() < 0 or given.max() > 1:
        raise ValueError(
            f"probabilities must lie in [0, 1], got values in [{given.min():g}, {given.max():g}]"
        )
    ids = checked_samples(samples, n)
    check_draws(bootstrap, seed)
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
