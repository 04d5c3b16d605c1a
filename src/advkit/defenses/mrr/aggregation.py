"""Aggregation of the scores of all defenders to one risk.

A voting rule passes at a level if enough defenders have a score of at least that level. The risk is
the greatest level at which the rule passes, an order statistic of the scores. A risk above `1 - a`
means that the rule passes with the votes of the defenders whose score is above `1 - a`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advkit.core import checks

_WEIGHT_TOLERANCE = 1e-9  # rounding: exactly half of the votes is not a majority

RuleName = Literal["max", "vote", "noisy_or", "mean"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Aggregation of scores to a risk.

    Attributes:
        name: `"max"`, any defender; `"vote"`, more than half of them; `"noisy_or"`, defenders whose
            noisy-or is above 1/2; `"mean"`, the mean score, without votes.
        precision: for `"noisy_or"`: the probability, between 0 and 1, that an input is adversarial
            if a defender flags it. One number for all defenders, or one for each.
    """

    name: RuleName = "max"
    precision: float | tuple[float, ...] = 0.9

    def __post_init__(self) -> None:
        checks.one_of("aggregate", self.name, ("max", "vote", "noisy_or", "mean"))
        for value in self.precision if isinstance(self.precision, tuple) else (self.precision,):
            checks.fraction("precision", value, "(0, 1)")

    def risk(self, scores: Tensor) -> Tensor:
        """Return the risks `(n,)` of scores `(n, defenders)`."""
        if self.name == "mean":
            return scores.mean(1)
        return self._vote_level(scores)

    def parts(self, margins: Tensor) -> Tensor:
        """Return the margins `(n, parts)` of which any positive one flags the input.

        With `"max"` each defender is a part. With any other rule the rule is the only part.

        Args:
            margins: margin of each defender over its threshold, `(n, defenders)`.
        """
        return margins if self.name == "max" else self._vote_level(margins)[:, None]

    def _vote_level(self, values: Tensor) -> Tensor:
        """Return for each row the greatest level that enough of `(n, defenders)` reach."""
        if self.name == "max":
            return values.amax(1)
        ordered, order = values.sort(dim=1, descending=True)
        weights = self._weights(values.shape[1]).to(values.device)
        passes = weights[order].cumsum(1) > 1 + _WEIGHT_TOLERANCE
        first = passes.int().argmax(1, keepdim=True)
        level = ordered.gather(1, first).squeeze(1)
        return level.where(passes[:, -1], torch.zeros_like(level))  # all votes may be too few

    def _weights(self, count: int) -> Tensor:
        """Return the vote weights of `count` defenders; votes pass if they sum to more than 1."""
        if self.name == "vote":
            return torch.full((count,), 2.0 / count, dtype=torch.float64)
        given = self.precision
        precision = given if isinstance(given, tuple) else (given,) * count
        return torch.tensor([math.log(1 - p) / math.log(0.5) for p in precision]).double()


def pearson_correlation(scores: Tensor) -> Tensor:
    """Return the correlations of the columns of `(n, defenders)`: `(defenders, defenders)`."""
    deviations = scores - scores.mean(0)
    products = deviations.T @ deviations
    norms = products.diag().sqrt()
    return products / (norms[:, None] * norms)
