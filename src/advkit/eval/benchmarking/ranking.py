"""Ranking of attacks by attack success rate, distance and cost, in groups with the same goal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advkit.core.boxes import format_norm
from advkit.eval.accuracy import Rate
from advkit.eval.benchmarking.distances import mean_distance_ratio
from advkit.eval.robustness.outcome import AttackOutcome, finite, median, number_or_none
from advkit.eval.robustness.worst_case import nearest_distances
from advkit.eval.text_tables import (
    Table,
    format_distance,
    format_mean,
    format_mebibytes,
    format_percent,
    format_score,
)

# Difference to the best attack that counts as nearly as good: one point of the attack success rate,
# and 1 % of the median distance.
NEAR_BEST_TOLERANCE = 0.01
_QUALITY = ("attack", "success\nrate in %", "median\ndistance")
_PASSES = ("passes", "forward\nper input", "backward\nper input")
_WITHIN_HEADING = (*_QUALITY, *_PASSES, "seconds", "peak\nMiB")
# Without a budget the distance ratio takes the space of the seconds, which the passes imply.
_NEAREST_HEADING = (*_QUALITY, "distance\nratio", *_PASSES, "peak\nMiB")


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackCost:
    """Outcome and cost of one attack.

    Attributes:
        outcome: outcome of the attack, input by input; its seconds are the median over the rounds.
        passes: time of the attack in bare passes of the same batches, the median over the rounds.
        peak_memory: the most bytes that its tensors hold at once, on the first batch.
    """

    outcome: AttackOutcome
    passes: float
    peak_memory: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: those of the outcome, and the cost."""
        cost = {"passes": self.passes, "peak_memory": self.peak_memory}
        return {**self.outcome.to_dict(), **cost}


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """An attack in a group.

    Attributes:
        name: the attack without hyperparameters that the group shares, if this name is unique.
        cost: outcome and cost of the attack.
        success_rate: attack success rate among the attacked inputs, within the budget of the group,
            or at any distance in a group without one.
        median_distance: lower median over the attacked inputs, a failure counted as inf.
        distance_ratio: mean of the nearest distance of all attacks in the norm over the distance of
            this one, in [0, 1]: see `distance_ratio`. `None` in a group with a budget, and NaN if
            no attack found an example.
        sort_key: key that sorts the rows of a group, the best first.
    """

    name: str
    cost: AttackCost
    success_rate: Rate
    median_distance: float
    distance_ratio: float | None
    sort_key: tuple[float, ...]

    def dominates(self, other: Row) -> bool:
        """Return true if this row is as good as `other` for fewer passes, or better for no more."""
        own, others = (self.sort_key, self.cost.passes), (other.sort_key, other.cost.passes)
        return own != others and own[0] <= others[0] and own[1] <= others[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Attacks with the same goal, whose figures are comparable.

    Attributes:
        title: the goal of the attacks.
        norm: norm of their distances.
        has_budget: true if the attacks search within a budget, false if they search for the nearest
            adversarial example at any distance.
        rows: the attacks, the best first; equally good ones from the cheapest on.
    """

    title: str
    norm: str
    has_budget: bool
    rows: tuple[Row, ...]

    @property
    def pareto_front(self) -> tuple[Row, ...]:
        """Rows that no other row dominates: a better attack costs more passes."""
        return tuple(r for r in self.rows if not any(other.dominates(r) for other in self.rows))

    @property
    def best(self) -> Row:
        """Row with the highest attack success rate, or without a budget the smallest distance."""
        return self.rows[0]

    @property
    def cheapest_near_best(self) -> Row:
        """Cheapest row that is nearly as good as the best one, which may be the best one itself.

        A row is nearly as good if its attack success rate is at most one point lower. Without a
        budget its median distance must also be at most 1 % greater.
        """
        min_rate = float(self.best.success_rate) - NEAR_BEST_TOLERANCE
        max_distance = math.inf
        if not self.has_budget:
            max_distance = self.best.median_distance * (1 + NEAR_BEST_TOLERANCE)
        near_best = [
            row
            for row in self.rows
            if float(row.success_rate) >= min_rate and row.median_distance <= max_distance
        ]
        return min(near_best, key=lambda row: row.cost.passes)

    @property
    def summary(self) -> str:
        """Sentence on the best attack, the cheapest nearly as good one, and their costs."""
        best, cheap = self.best, self.cheapest_near_best
        if not best.success_rate.count:
            return "No attack succeeds on any input."
        if len(self.rows) == 1:
            return f"Only attack: {self._figures(best)}."
        if self.has_budget or math.isinf(best.median_distance):
            best_title, cheap_title = "Highest success rate", "cheapest within one point"
        else:
            best_title, cheap_title = "Smallest median distance", "cheapest within 1 %"
        text = f"{best_title}: {self._figures(best)}"
        if cheap is not best:
            text += f"; {cheap_title}: {self._figures(cheap)}"
        return f"{text}."

    def _figures(self, row: Row) -> str:
        """Return the name of an attack with its figures and cost."""
        parts = [f"{format_percent(row.success_rate)} %"]
        if not self.has_budget:
            parts.append(f"median distance {format_distance(row.median_distance)}")
        parts.append(f"{row.cost.passes:.1f} passes")
        return f"{row.name} ({', '.join(parts)})"

    def table(self) -> Table:
        """Return a table with the rows, a mark for the Pareto front, and the summary below."""
        on_front = set(map(id, self.pareto_front))
        marked = [(row, "* " if id(row) in on_front else "  ") for row in self.rows]
        lines = [_line(row, mark) for row, mark in marked]
        heading = _WITHIN_HEADING if self.has_budget else _NEAREST_HEADING
        return Table(self.title, heading, lines, [], note=self.summary)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an infinite distance is `None`."""
        on_front = set(map(id, self.pareto_front))
        return {
            "title": self.title,
            "norm": self.norm,
            "has_budget": self.has_budget,
            "rows": [
                {
                    "attack": row.cost.outcome.label,
                    "success_rate": row.success_rate.to_dict(),
                    "median_distance": finite(row.median_distance),
                    "distance_ratio": number_or_none(row.distance_ratio),
                    "passes": row.cost.passes,
                    "pareto_front": id(row) in on_front,
                }
                for row in self.rows
            ],
            "summary": self.summary,
        }


def _line(row: Row, mark: str) -> tuple[str, ...]:
    outcome, ratio = row.cost.outcome, row.distance_ratio
    quality = (
        mark + row.name,
        format_percent(row.success_rate),
        format_distance(row.median_distance),
    )
    passes = (
        f"{row.cost.passes:.1f}",
        format_mean(outcome.mean_of_attacked(outcome.forward)),
        format_mean(outcome.mean_of_attacked(outcome.backward)),
    )
    peak = format_mebibytes(row.cost.peak_memory)
    if ratio is None:
        return (*quality, *passes, f"{outcome.seconds:.3f}", peak)
    return (*quality, format_score(ratio), *passes, peak)


def groups_of(costs: Sequence[AttackCost]) -> tuple[Group, ...]:
    """Group attacks by goal: within each norm and budget, and nearest in each norm.

    Budget attacks are compared within their norm and budget. Minimum-norm attacks of that norm are
    added with their adversarial examples within the budget. They also have a group of their own for
    each norm.
    """
    nearest: dict[str, list[AttackCost]] = {}
    budgets: dict[tuple[Any, ...], list[AttackCost]] = {}
    for cost in costs:
        outcome = cost.outcome
        if outcome.minimum_norm:
            nearest.setdefault(outcome.norm, []).append(cost)
        else:
            budgets.setdefault((outcome.norm, *outcome.radius.tolist()), []).append(cost)
    within = [_within(group, nearest.get(group[0].outcome.norm, [])) for group in budgets.values()]
    at_any_distance = (
        _at_any_distance(norm, group, [c.outcome for c in costs if c.outcome.norm == norm])
        for norm, group in nearest.items()
    )
    return (*within, *at_any_distance)


def _within(budgeted: Sequence[AttackCost], minimum_norm: Sequence[AttackCost]) -> Group:
    """Return the group of a budget, with minimum-norm attacks of the same norm."""
    first = budgeted[0].outcome
    successes = [(cost, cost.outcome.success) for cost in budgeted]
    successes += [(cost, cost.outcome.within(first.radius)) for cost in minimum_norm]
    rows = _rows(successes, nearest=None)
    return Group(title=f"Within {first.budget}", norm=first.norm, has_budget=True, rows=rows)


def _at_any_distance(
    norm: str, costs: Sequence[AttackCost], outcomes: Sequence[AttackOutcome]
) -> Group:
    """Return the group of the minimum-norm attacks of a norm.

    Args:
        norm: the norm.
        costs: the minimum-norm attacks.
        outcomes: outcomes of all attacks in the norm, whose nearest examples are the reference.
    """
    title = f"Nearest in {format_norm(norm)}, at any distance"
    successes = [(cost, cost.outcome.success) for cost in costs]
    rows = _rows(successes, nearest=nearest_distances(outcomes))
    return Group(title=title, norm=norm, has_budget=False, rows=rows)


def _rows(
    successes: Sequence[tuple[AttackCost, Tensor]], *, nearest: Tensor | None
) -> tuple[Row, ...]:
    """Return a row for each attack and mask `(n,)` of its successes; the best first.

    Args:
        successes: the attacks with their masks.
        nearest: distances `(n,)` of the nearest examples, `None` in a group with a budget.
    """
    families = Counter(cost.outcome.family for cost, _ in successes)
    rows = (_row(cost, success, families, nearest) for cost, success in successes)
    return tuple(sorted(rows, key=lambda row: (row.sort_key, row.cost.passes)))


def _row(cost: AttackCost, success: Tensor, families: Counter[str], nearest: Tensor | None) -> Row:
    outcome = cost.outcome
    rate = Rate.of(success[outcome.attacked])
    middle = median(torch.where(success, outcome.distance, math.inf)[outcome.attacked])
    distance = math.inf if middle is None else middle
    ratio = None if nearest is None else mean_distance_ratio(nearest_distances([outcome]), nearest)
    return Row(
        name=outcome.family if families[outcome.family] == 1 else outcome.label,
        cost=cost,
        success_rate=rate,
        median_distance=distance,
        distance_ratio=ratio,
        sort_key=(-float(rate),) if nearest is None else (distance, -float(rate)),
    )
