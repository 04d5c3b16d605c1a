"""Percentile bootstrap over samples, and ranking scores under weights."""

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

_AT_ONCE = 200_000  # weights in memory: what fits a cache is fastest
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure, and the interval in which 95 % of its bootstrap resamples lie.

    All three are NaN where the figure is not defined, say the recall of a class without rows.
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
        """Plain values for JSON; `None` for NaN."""
        plain = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if math.isnan(v) else v for name, v in plain.items()}

    @staticmethod
    def of(value: float, resampled: Floats) -> Estimate:
        """`value` with the percentiles of `resampled` `(b,)`, those aside in which it is NaN."""
        known = resampled[~np.isnan(resampled)]
        if math.isnan(value) or not len(known):
            return Estimate(float(value), math.nan, math.nan)
        low, high = np.quantile(known, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        return Estimate(float(value), float(low), float(high))


def estimates(
    points: Mapping[Any, float],
    figures: Callable[[Floats], dict[Any, Floats]],
    samples: Ints,
    draws: int,
    seed: int,
) -> dict[Any, Estimate]:
    """Return the figures `points` of the rows as they are with their intervals, by name.

    The other arguments are those of `resampled`.
    """
    drawn = resampled(figures, samples, draws, seed)
    return {name: Estimate.of(value, drawn[name]) for name, value in points.items()}


def resampled(
    figures: Callable[[Floats], dict[Any, Floats]], samples: Ints, draws: int, seed: int
) -> dict[Any, Floats]:
    """What `figures` says of `draws` resamples.

    Samples are drawn with replacement, as many as there are, and each brings all its rows along.

    Args:
        figures: from the weights of the rows in `b` resamples `(b, n)` to figures `(b,)` by name.
        samples: which sample each of the `n` rows is of, from 0 on, without gaps.
        draws: resamples.
        seed: of the draws, an int.

    Returns:
        Figures `(draws,)` by name.
    """
    parts = [figures(weights) for weights in _weights(samples, draws, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _weights(samples: Ints, draws: int, seed: int) -> Iterator[Floats]:
    """How often each row is in each resample, `(b, n)` at a time."""
    rng, count = np.random.default_rng(seed), int(samples.max()) + 1
    size = max(1, _AT_ONCE // len(samples))
    for first in range(0, draws, size):
        b = min(size, draws - first)
        drawn = rng.integers(count, size=(b, count)) + count * np.arange(b)[:, None]
        times = np.bincount(drawn.ravel(), minlength=b * count).reshape(b, count)
        yield times.astype(np.float64)[:, samples]


class Ranking:
    """Rows in the order of a score, the highest first, some of them positive.

    Rows of the same score share a place: no threshold comes between them.
    """

    def __init__(self, positive: Bools, score: Floats) -> None:
        self._order = np.argsort(-score, kind="stable")
        self._positive = positive[self._order]
        ordered = score[self._order]
        self._last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))

    def sums(self, weights: Floats) -> Sums:
        """Weights of positive and negative rows up to each place, of weights `(b, n)`."""
        ordered = weights[:, self._order]
        everything = ordered.cumsum(1)[:, self._last]
        positive = (ordered * self._positive).cumsum(1)[:, self._last]
        return Sums(positive, everything - positive)


@dataclass(frozen=True, eq=False)
class Sums:
    """Weights of what stands up to each place of a ranking, `(b, places)`.

    The figures are `(b,)`, NaN for a resample without positive or without negative rows.
    """

    positive: Floats
    negative: Floats

    def auroc(self) -> Floats:
        """Chance that a positive row is before a negative one, a tie counted as one half."""
        before = np.diff(self.negative, axis=1, prepend=0)
        after = self.positive - np.diff(self.positive, axis=1, prepend=0) / 2
        return ratio((before * after).sum(1), self.positive[:, -1] * self.negative[:, -1])

    def average_precision(self) -> Floats:
        """Mean precision at the places of the positive rows."""
        precision = ratio(self.positive, self.positive + self.negative, otherwise=0.0)
        gained = np.diff(self.positive, axis=1, prepend=0)
        found = ratio((gained * precision).sum(1), self.positive[:, -1])
        return np.where(self.negative[:, -1] > 0, found, np.nan)

    def recall_at(self, fpr: float) -> Floats:
        """The most recall with at most a share `fpr` of the negative rows before the threshold."""
        total = self.negative[:, -1:]
        within = ratio(self.negative, np.broadcast_to(total, self.negative.shape)) <= fpr
        count = within.sum(1)
        last = np.maximum(count - 1, 0)[:, None]
        reached = np.take_along_axis(self.positive, last, axis=1)[:, 0] * (count > 0)
        found = ratio(reached, self.positive[:, -1])
        return np.where(total[:, 0] > 0, found, np.nan)


def ratio(part: Floats, whole: Floats, otherwise: float = np.nan) -> Floats:
    """`part / whole`, `otherwise` where the whole is zero."""
    found: Floats = np.divide(part, whole, out=np.full(part.shape, otherwise), where=whole > 0)
    return found


def about_intervals(draws: int, *, grouped: bool) -> str:
    """Describe in a sentence how the intervals were found."""
    drawn = (
        "all rows of a sample are drawn together"
        if grouped
        else "each row is drawn by itself, as if no two were of the same image"
    )
    return f"Intervals of 95 % are percentiles of {draws:,} bootstrap resamples; {drawn}."
