"""Scores of a classifier of rows into several classes, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from advkit.eval.detection.bootstrap import Floats, Ints, Ranking, estimates, ratio
from advkit.eval.detection.columns import (
    check_bootstrap,
    checked_floats,
    checked_samples,
    plain_array,
)
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
    """Score how well rows are classified, with 95 % intervals.

    The intervals are percentiles of a bootstrap over samples, as in `detection_scores`.

    Args:
        y: true class of each row, `(n,)`, with at least two different classes.
        probabilities: predicted probabilities `(n, k)` in [0, 1], as `predict_proba` returns them.
        classes: the `k` classes in the order of the columns, such as `classes_` of an estimator. A
            class without rows has undefined scores and is not part of the mean.
        samples: id `(n,)` of the sample that each row comes from. Rows of one sample are drawn
            together. `None` if every row comes from another sample.
        bootstrap: number of resamples, at least 1.
        seed: int, for the resamples.

    Returns:
        Scores that print as a table, convert to a dict and plot as a confusion matrix.

    Raises:
        ValueError: columns differ in length, values are out of range, a label is not among the
            classes, or all rows have the same class.
        TypeError: an argument has the wrong type.

    Example:
        >>> import numpy as np
        >>> from advkit.eval import classification_scores
        >>> p = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
        >>> scores = classification_scores(["FGSM", "FGSM", "PGD", "PGD"], p, ["FGSM", "PGD"])
        >>> scores.confusion.tolist(), float(scores.mean_ap)
        ([[1, 1], [0, 2]], 1.0)
    """
    from sklearn.metrics import confusion_matrix  # here, since it takes a second to import

    names = _checked_classes(classes)
    labels = _checked_labels(y, names)
    p = _checked_probabilities(probabilities, (len(labels), len(names)))
    ids = checked_samples(samples, len(labels))
    check_bootstrap(bootstrap, seed)
    task = _MulticlassScores(labels, p)
    scores = estimates(task.scores(), task.resampled_scores, ids, bootstrap, seed)
    confusion = confusion_matrix(labels, p.argmax(1), labels=range(len(names)))
    return ClassificationScores(
        classes=tuple(map(str, names)),
        per_class={
            str(name): ClassScore(
                rows=int((labels == i).sum()),
                ap=scores["ap", i],
                recall=scores["recall", i],
                f1=scores["f1", i],
            )
            for i, name in enumerate(names)
        },
        mean_ap=scores["mean_ap"],
        confusion=confusion.astype(np.int64),
        grouped=samples is not None,
        bootstrap=bootstrap,
    )


class _MulticlassScores:
    """Scores of each class against all others."""

    def __init__(self, labels: Ints, probabilities: Floats) -> None:
        self.labels, self.probabilities = labels, probabilities
        classes = np.arange(probabilities.shape[1])
        self.true = labels[:, None] == classes  # (n, classes)
        self.predicted = probabilities.argmax(1)[:, None] == classes
        columns = zip(self.true.T, probabilities.T, strict=True)
        self.rankings = [Ranking(true, column) for true, column in columns]

    def scores(self) -> dict[Any, float]:
        """Return the scores of the rows by name."""
        from sklearn import metrics  # here, since it takes a second to import

        k = len(self.rankings)
        _, recall, f1, rows = metrics.precision_recall_fscore_support(
            self.labels, self.predicted.argmax(1), labels=range(k), zero_division=np.nan
        )
        columns = zip(self.true.T, self.probabilities.T, strict=True)
        ap = [
            metrics.average_precision_score(*c) if r else math.nan
            for c, r in zip(columns, rows, strict=True)
        ]
        return {
            "mean_ap": float(np.nanmean(ap)),
            **{("ap", i): ap[i] for i in range(k)},
            **{("recall", i): float(recall[i]) for i in range(k)},
            **{("f1", i): float(f1[i]) for i in range(k)},
        }

    def resampled_scores(self, weights: Floats) -> dict[Any, Floats]:
        """Return the scores `(b,)` of resamples by name, from weights `(b, n)`."""
        ap = np.stack([r.sums(weights).average_precision() for r in self.rankings])  # (k, b)
        correct, true, predicted = (
            (weights @ rows).T for rows in (self.true & self.predicted, self.true, self.predicted)
        )
        recall, f1 = ratio(correct, true), ratio(2 * correct, true + predicted)
        return {
            "mean_ap": ratio(np.nansum(ap, axis=0), (~np.isnan(ap)).sum(0)),
            **{("ap", i): row for i, row in enumerate(ap)},
            **{("recall", i): row for i, row in enumerate(recall)},
            **{("f1", i): row for i, row in enumerate(f1)},
        }


def _checked_classes(classes: Sequence[object]) -> list[Any]:
    names = list(np.asarray(classes).tolist())
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"`classes` must be at least 2 different classes, got {names}.")
    return names


def _checked_probabilities(values: npt.ArrayLike, shape: tuple[int, int]) -> Floats:
    p = checked_floats("probabilities", values, shape)
    if p.min() < 0 or p.max() > 1:
        raise ValueError(
            f"`probabilities` must lie in [0, 1], got values in [{p.min():g}, {p.max():g}]."
        )
    return p


def _checked_labels(y: npt.ArrayLike, names: list[Any]) -> Ints:
    """Return the index of the class of each row in `names`."""
    column = plain_array("y", y)
    if column.ndim != 1:
        raise ValueError(f"`y` must have shape (n,), got {column.shape}.")
    index = {name: i for i, name in enumerate(names)}
    unknown = sorted({repr(v) for v in column.tolist() if v not in index})
    if unknown:
        raise ValueError(f"`y` must be among the classes {names}, got {', '.join(unknown[:5])}.")
    labels = np.array([index[v] for v in column.tolist()], dtype=np.intp)
    if len(set(labels.tolist())) < 2:
        raise ValueError(f"`y` must hold at least 2 classes, got {len(set(labels.tolist()))}.")
    return labels
