"""Scores of a detector on clean and adversarial rows, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from advkit.core import checks
from advkit.eval.detection.binary_result import Detection, DetectionScores, rows_of_attacks
from advkit.eval.detection.bootstrap import Bools, Estimate, Floats, Ints, Ranking, estimates, ratio
from advkit.eval.detection.columns import (
    check_bootstrap,
    checked_column,
    checked_floats,
    checked_samples,
    plain_array,
)

Value = TypeVar("Value")


def detection_scores(
    adversarial: npt.ArrayLike,
    anomaly_score: npt.ArrayLike,
    *,
    attack: npt.ArrayLike | None = None,
    samples: npt.ArrayLike | None = None,
    threshold: float | None = None,
    fpr: Sequence[float] = (0.01, 0.05),
    bootstrap: int = 1000,
    seed: int = 0,
) -> DetectionScores:
    """Score how well anomaly scores separate adversarial from clean rows, with 95 % intervals.

    The intervals are percentiles of a bootstrap over samples. Each resample draws as many samples
    as there are, with all their rows, and recomputes all scores, including the thresholds for a
    false-positive rate. Resamples without clean or without adversarial rows are excluded. The
    intervals show the variation over samples, not over detectors or their training.

    Args:
        adversarial: bool `(n,)`; True for adversarial rows. There must be rows of both kinds.
        anomaly_score: `(n,)`, finite; greater is more anomalous. The detector should not have been
            fitted on these samples.
        attack: name of the attack of each row, `(n,)`; ignored for clean rows. If given, each
            attack is also scored by itself against all clean rows.
        samples: id `(n,)` of the sample that each row comes from. Rows of one image are not
            independent and are drawn together. `None` if every row comes from another sample.
        threshold: the threshold of recall, F1 and the false-positive rate, above which a row is
            predicted to be adversarial. It should come from other data, as in `Guard.calibrate`.
            `None` omits these scores.
        fpr: false-positive rates at which the true-positive rate is given, in [0, 1).
        bootstrap: number of resamples, at least 1.
        seed: int, for the resamples.

    Returns:
        Scores that print as a table, convert to a dict and plot as ROC curves.

    Raises:
        ValueError: columns differ in length, values are out of range, or there are no clean or no
            adversarial rows.
        TypeError: an argument has the wrong type.

    Example:
        >>> import numpy as np
        >>> from advkit.eval import detection_scores
        >>> scores = detection_scores([0, 0, 0, 1, 1], [0.1, 0.2, 0.6, 0.5, 0.9], threshold=0.55)
        >>> float(scores.overall.auroc), float(scores.overall.recall)
        (0.8333333333333334, 0.5)
    """
    is_adversarial = _checked_bools(adversarial)
    n = len(is_adversarial)
    values = checked_floats("anomaly_score", anomaly_score, (n,))
    attacks = None if attack is None else checked_column("attack", attack, n).astype(str)
    ids = checked_samples(samples, n)
    check_bootstrap(bootstrap, seed)
    rates = tuple(_checked_rate(rate) for rate in fpr)
    _check_threshold(threshold)
    tasks = {
        name: _BinaryScores(rows, rows | ~is_adversarial, values, rates, threshold)
        for name, rows in {"": is_adversarial, **rows_of_attacks(is_adversarial, attacks)}.items()
    }
    scores = _estimates(tasks, ids, bootstrap, seed)
    detections = {name: task.detection(name, scores) for name, task in tasks.items()}
    return DetectionScores(
        adversarial=is_adversarial,
        anomaly_score=values,
        attack=attacks,
        overall=detections.pop(""),
        per_attack=detections,
        threshold=None if threshold is None else float(threshold),
        false_positive_rate=scores.get(("", "false_positive_rate")),
        grouped=samples is not None,
        bootstrap=bootstrap,
    )


class _BinaryScores:
    """Scores of some adversarial rows against all clean rows."""

    def __init__(
        self,
        adversarial: Bools,
        part: Bools,
        anomaly_score: Floats,
        rates: tuple[float, ...],
        threshold: float | None,
    ) -> None:
        self.part = np.flatnonzero(part)  # the adversarial rows and all clean rows
        self.adversarial, self.anomaly_score = adversarial[part], anomaly_score[part]
        self.rates = rates
        self.above = None if threshold is None else self.anomaly_score > threshold
        self.ranking = Ranking(self.adversarial, self.anomaly_score)

    def scores(self) -> dict[Any, float]:
        """Return the scores of the rows by name."""
        from sklearn import metrics  # here, since it takes a second to import

        true, anomaly_score = self.adversarial, self.anomaly_score
        fpr, tpr, _ = metrics.roc_curve(true, anomaly_score, drop_intermediate=False)
        scores: dict[Any, float] = {
            "auroc": metrics.roc_auc_score(true, anomaly_score),
            "ap": metrics.average_precision_score(true, anomaly_score),
            **{rate: tpr[fpr <= rate].max() for rate in self.rates},
        }
        if self.above is not None:
            scores["recall"] = metrics.recall_score(true, self.above)
            scores["f1"] = metrics.f1_score(true, self.above, zero_division=0.0)
            scores["false_positive_rate"] = self.above[~self.adversarial].mean()
        return scores

    def resampled_scores(self, weights: Floats) -> dict[Any, Floats]:
        """Return the scores `(b,)` of resamples by name, from weights `(b, n)` of all rows."""
        weights = weights[:, self.part]
        sums = self.ranking.sums(weights)
        scores: dict[Any, Floats] = {
            "auroc": sums.auroc(),
            "ap": sums.average_precision(),
            **{rate: sums.recall_at(rate) for rate in self.rates},
        }
        if self.above is not None:
            positive = weights @ self.adversarial
            true_positive = weights @ (self.adversarial & self.above)
            scores["recall"] = ratio(true_positive, positive)
            f1 = ratio(2 * true_positive, weights @ self.above + positive)
            scores["f1"] = np.where(positive > 0, f1, np.nan)
            clean = ~self.adversarial
            false_positive = weights @ (clean & self.above)
            scores["false_positive_rate"] = ratio(false_positive, weights @ clean)
        return scores

    def detection(self, name: str, scores: Mapping[Any, Estimate]) -> Detection:
        """Select the estimates under `name` from `scores`."""
        return Detection(
            rows=int(self.adversarial.sum()),
            auroc=scores[name, "auroc"],
            ap=scores[name, "ap"],
            tpr={rate: scores[name, rate] for rate in self.rates},
            recall=scores.get((name, "recall")),
            f1=scores.get((name, "f1")),
        )


def _estimates(
    tasks: Mapping[str, _BinaryScores], samples: Ints, resamples: int, seed: int
) -> dict[Any, Estimate]:
    """Estimate the scores of all tasks on the same resamples, by names of task and score."""

    def resampled_scores(weights: Floats) -> dict[Any, Floats]:
        return _flatten({name: task.resampled_scores(weights) for name, task in tasks.items()})

    scores = _flatten({name: task.scores() for name, task in tasks.items()})
    return estimates(scores, resampled_scores, samples, resamples, seed)


def _flatten(nested: Mapping[str, Mapping[Any, Value]]) -> dict[Any, Value]:
    return {(name, key): value for name, part in nested.items() for key, value in part.items()}


def _checked_bools(values: npt.ArrayLike) -> Bools:
    array = plain_array("adversarial", values)
    if array.dtype.kind not in "biu":
        raise TypeError(f"`adversarial` must be bools, or 0 and 1, got {array.dtype}.")
    if array.ndim != 1:
        raise ValueError(f"`adversarial` must have shape (n,), got shape {array.shape}.")
    bad = torch.from_numpy(~np.isin(array, (0, 1)))
    if bad.any():
        value = array[bad.numpy()][0]
        raise ValueError(
            f"`adversarial` must be 0 or 1, got {value} ({checks.samples(bad, noun='row')})."
        )
    adversarial = array.astype(bool)
    if adversarial.all() or not adversarial.any():
        raise ValueError(
            "`adversarial` must have both clean and adversarial rows, "
            f"got {int((~adversarial).sum())} and {int(adversarial.sum())}."
        )
    return adversarial


def _checked_rate(rate: float) -> float:
    checks.fraction("fpr", rate, "[0, 1)")
    return float(rate)


def _check_threshold(threshold: float | None) -> None:
    if threshold is None:
        return
    checks.number("threshold", threshold)
    if not math.isfinite(threshold):
        raise ValueError(f"`threshold` must be finite, got {threshold}.")
