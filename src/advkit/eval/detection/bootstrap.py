"""Percentile bootstrap over samples, and weighted ranking scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]

_WEIGHTS_AT_ONCE = 200_000  # weights in memory, which fit into a processor's cache
_LEVEL = 0.95  # confidence level of the intervals


@dataclass(frozen=True)
class Estimate:
    """A score and the interval that contains 95 % of its bootstrap resamples.

    All three numbers are NaN where the score is undefined, such as the recall of a class without
    rows.

    Attributes:
        value: the score of the rows.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "-"
        return f"{self.value:.3f}\n{self.low:.3f}-{self.high:.3f}"

    def to_dict(self) -> dict[str, float | None]:
        """Return plain values for JSON; `None` for NaN."""
        plain = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if math.isnan(v) else v for name, v in plain.items()}

    @staticmethod
    def of(value: float, resampled: Floats) -> Estimate:
        """Return `value` with percentiles of the `resampled` values `(b,)` that are not NaN."""
        known = resampled[~np.isnan(resampled)]
        if math.isnan(value) or not len(known):
            return Estimate(float(value), math.nan, math.nan)
        low, high = np.quantile(known, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        return Estimate(float(value), float(low), float(high))


def estimates(
    scores: Mapping[Any, float],
    resampled_scores: Callable[[Floats], dict[Any, Floats]],
    samples: Ints,
    resamples: int,
    seed: int,
) -> dict[Any, Estimate]:
    """Return the `scores` of the rows with their intervals, by name.

    The other arguments are those of `bootstrap`.
    """
    resampled = bootstrap(resampled_scores, samples, resamples, seed)
    return {name: Estimate.of(value, resampled[name]) for name, value in scores.items()}


def bootstrap(
    resampled_scores: Callable[[Floats], dict[Any, Floats]],
    samples: Ints,
    resamples: int,
    seed: int,
) -> dict[Any, Floats]:
    """Compute scores of bootstrap resamples.

    A resample draws as many samples as there are, with replacement and with all rows of each.

    Args:
        resampled_scores: function from the weights of the rows in `b` resamples `(b, n)` to scores
            `(b,)` by name.
        samples: number of the sample of each of the `n` rows, from 0 and without gaps.
        resamples: number of resamples.
        seed: int, for the draws.

    Returns:
        Scores `(resamples,)` by name.
    """
    parts = [resampled_scores(weights) for weights in _weights(samples, resamples, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _weights(samples: Ints, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield the number of times that each row is in each resample, `(b, n)` at a time."""
    rng, count = np.random.default_rng(seed), int(samples.max()) + 1
    size = max(1, _WEIGHTS_AT_ONCE // len(samples))
    for first in range(0, resamples, size):
        b = min(size, resamples - first)
        resampled = rng.integers(count, size=(b, count)) + count * np.arange(b)[:, None]
        times = np.bincount(resampled.ravel(), minlength=b * count).reshape(b, count)
        yield times.astype(np.float64)[:, samples]


class Ranking:
    """Positive and negative rows in descending order of a score.

    Rows with equal scores share a rank, since no threshold separates them.
    """

    def __init__(self, positive: Bools, score: Floats) -> None:
        self._order = np.argsort(-score, kind="stable")
        self._positive = positive[self._order]
        ordered = score[self._order]
        self._last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))

    def sums(self, weights: Floats) -> Sums:
        """Return cumulative weights of positive and negative rows, for weights `(b, n)`."""
        ordered = weights[:, self._order]
        total = ordered.cumsum(1)[:, self._last]
        positive = (ordered * self._positive).cumsum(1)[:, self._last]
        return Sums(positive, total - positive)


@dataclass(frozen=True, eq=False)
class Sums:
    """Cumulative weights `(b, ranks)` of the positive and negative rows up to each rank.

    The scores are `(b,)`, and NaN for a resample without positive or without negative rows.
    """

    positive: Floats
    negative: Floats

    def auroc(self) -> Floats:
        """Return the probability that a positive row outranks a negative one; ties count half."""
        before = np.diff(self.negative, axis=1, prepend=0)
        after = self.positive - np.diff(self.positive, axis=1, prepend=0) / 2
        return ratio((before * after).sum(1), self.positive[:, -1] * self.negative[:, -1])

    def average_precision(self) -> Floats:
        """Return the mean precision at the ranks of the positive rows."""
        precision = ratio(self.positive, self.positive + self.negative, otherwise=0.0)
        gained = np.diff(self.positive, axis=1, prepend=0)
        mean = ratio((gained * precision).sum(1), self.positive[:, -1])
        return np.where(self.negative[:, -1] > 0, mean, np.nan)

    def recall_at(self, fpr: float) -> Floats:
        """Return the greatest recall with a false-positive rate of at most `fpr`."""
        total = self.negative[:, -1:]
        within = ratio(self.negative, np.broadcast_to(total, self.negative.shape)) <= fpr
        count = within.sum(1)
        last = np.maximum(count - 1, 0)[:, None]
        reached = np.take_along_axis(self.positive, last, axis=1)[:, 0] * (count > 0)
        recall = ratio(reached, self.positive[:, -1])
        return np.where(total[:, 0] > 0, recall, np.nan)


def ratio(part: Floats, whole: Floats, otherwise: float = np.nan) -> Floats:
    """Return `part / whole`, and `otherwise` where `whole` is zero."""
    quotient: Floats = np.divide(part, whole, out=np.full(part.shape, otherwise), where=whole > 0)
    return quotient


def describe_intervals(resamples: int, *, grouped: bool) -> str:
    """Return a sentence on how the intervals were computed."""
    unit = (
        "all rows of a sample are resampled together"
        if grouped
        else "each row is resampled independently, as if every row came from another image"
    )
    return f"Intervals of 95 % are percentiles of {resamples:,} bootstrap resamples; {unit}."
