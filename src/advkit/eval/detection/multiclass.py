"""Scores of a classifier of rows, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_recall_fscore_support,
)

from advkit.eval.detection.bootstrap import Floats, Ints, Ranking, estimates, ratio
from advkit.eval.detection.columns import check_draws, checked_floats, checked_samples, plain_array
from advkit.eval.detection.multiclass_result import ClassificationScores, ClassScore


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
    names = _checked_classes(classes)
    labels = _checked_labels(y, names)
    given = _checked_probabilities(probabilities, (len(labels), len(names)))
    ids = checked_samples(samples, len(labels))
    check_draws(bootstrap, seed)
    task = _Sorted(labels, given)
    found = estimates(task.points(), task.figures, ids, bootstrap, seed)
    confusion = confusion_matrix(labels, given.argmax(1), labels=range(len(names)))
    return ClassificationScores(
        classes=tuple(map(str, names)),
        per_class={
            str(name): ClassScore(
                rows=int((labels == i).sum()),
                ap=found["ap", i],
                recall=found["recall", i],
                f1=found["f1", i],
            )
            for i, name in enumerate(names)
        },
        mean_ap=found["mean_ap"],
        confusion=confusion.astype(np.int64),
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


def _checked_classes(classes: Sequence[object]) -> list[Any]:
    names = list(np.asarray(classes).tolist())
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"`classes` must be two or more different ones, got {names}")
    return names


def _checked_probabilities(values: npt.ArrayLike, shape: tuple[int, int]) -> Floats:
    given = checked_floats("probabilities", values, shape)
    if given.min() < 0 or given.max() > 1:
        raise ValueError(
            f"`probabilities` must lie in [0, 1], got values in [{given.min():g}, {given.max():g}]"
        )
    return given


def _checked_labels(y: npt.ArrayLike, names: list[Any]) -> Ints:
    """Where the class of each row stands among `names`."""
    column = plain_array("y", y)
    if column.ndim != 1:
        raise ValueError(f"`y` must have shape (n,), got {column.shape}")
    place = {name: i for i, name in enumerate(names)}
    unknown = sorted({repr(v) for v in column.tolist() if v not in place})
    if unknown:
        raise ValueError(f"`y` must be among the classes {names}, got {', '.join(unknown[:5])}")
    labels = np.array([place[v] for v in column.tolist()], dtype=np.intp)
    if len(set(labels.tolist())) < 2:
        raise ValueError("`y` must have rows of two classes or more")
    return labels
