"""Scores of a detector of adversarial rows, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

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
from advkit.eval.detection.binary_result import Detection, DetectionScores, rows_of_attacks
from advkit.eval.detection.bootstrap import Bools, Estimate, Floats, Ints, Ranking, estimates, ratio
from advkit.eval.detection.columns import (
    check_draws,
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
    """How well suspicion tells adversarial rows from clean ones, with intervals of 95 %.

    The intervals are percentiles of a bootstrap over samples: each resample draws as many samples
    as there are, with all their rows, and all figures are computed anew, thresholds for a
    false-positive rate too. Resamples without clean or without adversarial rows are left aside.
    They say what other samples would change, not what another detector or another training would.

    Args:
        adversarial: bool `(n,)`; which rows are adversarial, at least one, and at least one not.
        anomaly_score: `(n,)`, finite; greater is more suspicious. Of a detector that has not seen these
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
    values = checked_floats("anomaly_score", anomaly_score, (len(wrong),))
    groups = None if attack is None else checked_column("attack", attack, len(wrong)).astype(str)
    ids = checked_samples(samples, len(wrong))
    check_draws(bootstrap, seed)
    rates = tuple(_checked_rate(rate) for rate in fpr)
    _check_threshold(threshold)
    tasks = {
        name: _Told(rows, rows | ~wrong, values, rates, threshold)
        for name, rows in {"": wrong, **rows_of_attacks(wrong, groups)}.items()
    }
    found = _estimates(tasks, ids, bootstrap, seed)
    every = {name: task.detection(name, found) for name, task in tasks.items()}
    return DetectionScores(
        adversarial=wrong,
        anomaly_score=values,
        attack=groups,
        overall=every.pop(""),
        per_attack=every,
        threshold=None if threshold is None else float(threshold),
        false_alarms=found.get(("", "false_alarms")),
        grouped=samples is not None,
        draws=bootstrap,
    )


class _Told:
    """Some adversarial rows to be told from the clean ones."""

    def __init__(
        self,
        wrong: Bools,
        part: Bools,
        anomaly_score: Floats,
        rates: tuple[float, ...],
        threshold: float | None,
    ) -> None:
        self.part = np.flatnonzero(part)  # all of them, and the clean ones
        self.wrong, self.anomaly_score = wrong[part], anomaly_score[part]
        self.rates = rates
        self.alarm = None if threshold is None else self.anomaly_score > threshold
        self.ranking = Ranking(self.wrong, self.anomaly_score)

    def points(self) -> dict[Any, float]:
        """The figures of the rows as they are."""
        share, reached, _ = roc_curve(self.wrong, self.anomaly_score, drop_intermediate=False)
        found: dict[Any, float] = {
            "auroc": roc_auc_score(self.wrong, self.anomaly_score),
            "ap": average_precision_score(self.wrong, self.anomaly_score),
            **{rate: reached[share <= rate].max() for rate in self.rates},
        }
        if self.alarm is not None:
            found["recall"] = recall_score(self.wrong, self.alarm)
            found["f1"] = f1_score(self.wrong, self.alarm, zero_division=0.0)
            found["false_alarms"] = self.alarm[~self.wrong].mean()
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
            clean = ~self.wrong
            found["false_alarms"] = ratio(weights @ (clean & self.alarm), weights @ clean)
        return found

    def detection(self, name: str, found: Mapping[Any, Estimate]) -> Detection:
        """Select the estimates that are `found` under this `name`."""
        return Detection(
            rows=int(self.wrong.sum()),
            auroc=found[name, "auroc"],
            ap=found[name, "ap"],
            tpr={rate: found[name, rate] for rate in self.rates},
            recall=found.get((name, "recall")),
            f1=found.get((name, "f1")),
        )


def _estimates(
    tasks: Mapping[str, _Told], samples: Ints, draws: int, seed: int
) -> dict[Any, Estimate]:
    """Estimate the figures of all tasks in the same resamples, by names of task and figure."""

    def figures(weights: Floats) -> dict[Any, Floats]:
        return _flat({name: task.figures(weights) for name, task in tasks.items()})

    points = _flat({name: task.points() for name, task in tasks.items()})
    return estimates(points, figures, samples, draws, seed)


def _flat(nested: Mapping[str, Mapping[Any, Value]]) -> dict[Any, Value]:
    return {(name, key): value for name, part in nested.items() for key, value in part.items()}


def _checked_bools(values: npt.ArrayLike) -> Bools:
    found = plain_array("adversarial", values)
    if found.dtype.kind not in "biu":
        raise TypeError(f"`adversarial` must be bools, or 0 and 1, got {found.dtype}")
    if found.ndim != 1 or not np.isin(found, (0, 1)).all():
        raise ValueError(f"`adversarial` must be 0 or 1 of shape (n,), got shape {found.shape}")
    wrong = found.astype(bool)
    if wrong.all() or not wrong.any():
        raise ValueError(
            "`adversarial` must have both clean and adversarial rows, "
            f"got {int((~wrong).sum())} and {int(wrong.sum())}"
        )
    return wrong


def _checked_rate(rate: float) -> float:
    checks.fraction("fpr", rate)
    if rate == 1:
        raise ValueError("`fpr` must be below 1, got 1")
    return float(rate)


def _check_threshold(threshold: float | None) -> None:
    if threshold is None:
        return
    checks.number("threshold", threshold)
    if not math.isfinite(threshold):
        raise ValueError(f"`threshold` must be finite, got {threshold}")
