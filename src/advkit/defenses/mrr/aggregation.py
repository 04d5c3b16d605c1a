"""From the scores of all defenders to one risk.

A rule that votes on alarms carries at a level where enough defenders alarm. So the risk by such a
rule is the greatest level at which it still carries, an order statistic of the scores: a risk above
`1 - a` is the rule's alarm when each defender alarms at a score above `1 - a`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advkit.core import checks

_ROUNDING = 1e-9  # half of the defenders are not more than half

RuleName = Literal["max", "vote", "noisy_or", "mean"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How scores become a risk.

    Attributes:
        name: `"max"`, any alarm; `"vote"`, more than half of them; `"noisy_or"`, alarms whose
            noisy-or is above 1/2; `"mean"`, of the scores, which has no alarms.
        precision: of `"noisy_or"`: the probability that an input is adversarial if a defender
            alarms, one for all or one for each, between 0 and 1.
    """

    name: RuleName = "max"
    precision: float | tuple[float, ...] = 0.9

    def __post_init__(self) -> None:
        checks.one_of("aggregate", self.name, ("max", "vote", "noisy_or", "mean"))
        for value in self.precision if isinstance(self.precision, tuple) else (self.precision,):
            checks.number("precision", value)
            if not 0 < value < 1:
                raise ValueError(f"`precision` must lie between 0 and 1, got {value}")

    def risk(self, scores: Tensor) -> Tensor:
        """Of `(n, defenders)`: `(n,)`."""
        if self.name == "mean":
            return scores.mean(1)
        return self._carried(scores)

    def parts(self, excess: Tensor) -> Tensor:
        """Of each defender's excess `(n, defenders)`, what decides: `(n, parts)`.

        Every defender is a part where one alarm is enough; else the rule is the only one.
        """
        return excess if self.name == "max" else self._carried(excess)[:, None]

    def _carried(self, values: Tensor) -> Tensor:
        """For each row the greatest level that enough of `(n, defenders)` are above or at."""
        if self.name == "max":
            return values.amax(1)
        ordered, order = values.sort(dim=1, descending=True)
        weights = self._weights(values.shape[1]).to(values.device)
        carried = weights[order].cumsum(1) > 1 + _ROUNDING
        first = carried.int().argmax(1, keepdim=True)
        level = ordered.gather(1, first).squeeze(1)
        return level.where(carried[:, -1], torch.zeros_like(level))  # all together may not suffice

    def _weights(self, count: int) -> Tensor:
        """What an alarm of each of `count` defenders adds, where more than 1 carries."""
        if self.name == "vote":
            return torch.full((count,), 2.0 / count, dtype=torch.float64)
        given = self.precision
        precision = given if isinstance(given, tuple) else (given,) * count
        return torch.tensor([math.log(1 - p) / math.log(0.5) for p in precision]).double()
