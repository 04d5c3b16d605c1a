"""Which attack finds most for how much, among those that look for the same thing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advkit.eval.accuracy import Rate
from advkit.eval.robustness.outcome import AttackOutcome, finite, median
from advkit.eval.text_tables import Table, length, mean, mebibytes, percent

_NEARLY = 0.01  # a point: what may be missing of the best
_HEADING = (
    "attack",
    "found\n%",
    "median\ndistance",
    "floors",
    "forward\nper input",
    "backward\nper input",
    "seconds",
    "peak\nMiB",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackCost:
    """What one attack found, and what it took.

    Attributes:
        outcome: what it did, input by input; its seconds are the median over the rounds.
        floors: its time in bare passes of the same batches, the median over the rounds.
        peak_memory: the most bytes that it had in tensors at once, on the first batch.
    """

    outcome: AttackOutcome
    floors: float
    peak_memory: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: those of the outcome and the cost."""
        cost = {"floors": self.floors, "peak_memory": self.peak_memory}
        return {**self.outcome.to_dict(), **cost}


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """An attack in a group.

    Attributes:
        name: the attack without what the whole group shares, where that tells it from the others.
        cost: what the attack found and took.
        found: share of the attacked inputs that it turned within the budget of the group, at any
            distance in a group without one.
        median_distance: lower median over the attacked inputs, infinite where nothing is found.
        merit: what the group is sorted by, the best first.
    """

    name: str
    cost: AttackCost
    found: Rate
    median_distance: float
    merit: tuple[float, ...]

    def beats(self, other: Row) -> bool:
        """Whether this one is as good for fewer floors, or better for no more."""
        mine, theirs = (self.merit, self.cost.floors), (other.merit, other.cost.floors)
        return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Attacks that look for the same thing, so that their figures may be compared.

    Attributes:
        title: what they look for.
        norm: what their distances are measured in.
        budget: whether they look within a budget; else for the nearest at any distance.
        rows: the best first; the cheapest first of those that are as good.
    """

    title: str
    norm: str
    budget: bool
    rows: tuple[Row, ...]

    @property
    def front(self) -> tuple[Row, ...]:
        """The rows that none beats: who wants more has to pay more."""
        return tuple(row for row in self.rows if not any(other.beats(row) for other in self.rows))

    @property
    def best(self) -> Row:
        """The row that finds most; in a group without a budget the one that comes nearest."""
        return self.rows[0]

    @property
    def thrifty(self) -> Row:
        """The cheapest row that is nearly as good as the best, which may be the best itself.

        Nearly as good is what finds at most one point less, and without a budget has a median
        distance at most 1 % above.
        """
        least = float(self.best.found) - _NEARLY
        farthest = math.inf if self.budget else self.best.median_distance * (1 + _NEARLY)
        good = [r for r in self.rows if float(r.found) >= least and r.median_distance <= farthest]
        return min(good, key=lambda row: row.cost.floors)

    @property
    def verdict(self) -> str:
        """Who finds most and what it costs, and who nearly as much for less, in a sentence."""
        best, thrifty = self.best, self.thrifty
        if not best.found.count:
            return "No attack finds anything."
        if len(self.rows) == 1:
            return f"{best.name}, alone here, finds {self._figures(best)}."
        most = self.budget or math.isinf(best.median_distance)
        words = ("finds most", "nearly as much") if most else ("comes nearest", "nearly as near")
        text = f"{best.name} {words[0]}: {self._figures(best)}"
        if thrifty is not best:
            text += f"; {thrifty.name} {words[1]}: {self._figures(thrifty)}"
        return f"{text}."

    def _figures(self, row: Row) -> str:
        distance = "" if self.budget else f" at {length(row.median_distance)}"
        return f"{percent(row.found)} %{distance} for {row.cost.floors:.1f} floors"

    def table(self) -> Table:
        """A line for each row, those on the front marked, and the verdict below."""
        front = set(map(id, self.front))
        marked = [(row, "* " if id(row) in front else "  ") for row in self.rows]
        lines = [_line(row, mark) for row, mark in marked]
        return Table(self.title, _HEADING, lines, [], note=self.verdict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no infinity: `None` stands for it."""
        front = set(map(id, self.front))
        return {
            "title": self.title,
            "norm": self.norm,
            "budget": self.budget,
            "rows": [
                {
                    "attack": row.cost.outcome.label,
                    "found": row.found.to_dict(),
                    "median_distance": finite(row.median_distance),
                    "floors": row.cost.floors,
                    "front": id(row) in front,
                }
                for row in self.rows
            ],
            "verdict": self.verdict,
        }


def _line(row: Row, mark: str) -> tuple[str, ...]:
    outcome = row.cost.outcome
    return (
        mark + row.name,
        percent(row.found),
        length(row.median_distance),
        f"{row.cost.floors:.1f}",
        mean(outcome.sent(outcome.forward)),
        mean(outcome.sent(outcome.backward)),
        f"{outcome.seconds:.3f}",
        mebibytes(row.cost.peak_memory),
    )


def groups_of(costs: Sequence[AttackCost]) -> tuple[Group, ...]:
    """The attacks in groups, each with at least one attack that is made for it.

    Budget attacks are compared within a norm and a budget, and minimum-norm attacks of that norm
    have a say there with what they found within it. By themselves these are compared by norm.
    """
    nearest: dict[str, list[AttackCost]] = {}
    budgets: dict[tuple[Any, ...], list[AttackCost]] = {}
    for cost in costs:
        outcome = cost.outcome
        if outcome.minimum_norm:
            nearest.setdefault(outcome.norm, []).append(cost)
        else:
            budgets.setdefault((outcome.norm, *outcome.radius.tolist()), []).append(cost)
    within = [_within(found, nearest.get(found[0].outcome.norm, [])) for found in budgets.values()]
    return (*within, *(_anywhere(norm, found) for norm, found in nearest.items()))


def _within(made: Sequence[AttackCost], others: Sequence[AttackCost]) -> Group:
    """The group of a budget: attacks `made` for it, and minimum-norm `others`."""
    first = made[0].outcome
    words = first.budget or f"{first.norm}, a budget of its own for each input"
    hits = [(cost, cost.outcome.success) for cost in made]
    hits += [(cost, cost.outcome.within(first.radius)) for cost in others]
    rows = _rows(hits, budget=True)
    return Group(title=f"Within {words}", norm=first.norm, budget=True, rows=rows)


def _anywhere(norm: str, costs: Sequence[AttackCost]) -> Group:
    """The group of the minimum-norm attacks of a norm."""
    title = f"Nearest in {norm}, at any distance"
    hits = [(cost, cost.outcome.success) for cost in costs]
    return Group(title=title, norm=norm, budget=False, rows=_rows(hits, budget=False))


def _rows(hits: Sequence[tuple[AttackCost, Tensor]], *, budget: bool) -> tuple[Row, ...]:
    """A row for each attack with what counts as found of it, bool `(n,)`; the best first."""
    families = Counter(cost.outcome.family for cost, _ in hits)
    rows = (_row(cost, hit, families, budget=budget) for cost, hit in hits)
    return tuple(sorted(rows, key=lambda row: (row.merit, row.cost.floors)))


def _row(cost: AttackCost, hit: Tensor, families: Counter[str], *, budget: bool) -> Row:
    outcome = cost.outcome
    found = Rate.of(hit[outcome.attacked])
    distance = median(torch.where(hit, outcome.distance, math.inf)[outcome.attacked])
    middle = math.inf if distance is None else distance
    return Row(
        name=outcome.family if families[outcome.family] == 1 else outcome.label,
        cost=cost,
        found=found,
        median_distance=middle,
        merit=(-float(found),) if budget else (middle, -float(found)),
    )
