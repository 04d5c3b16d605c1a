"""Tables of the page of a report: attacks within each budget, distances, costs and classes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from advkit.core.boxes import format_norm
from advkit.eval.accuracy import Rate
from advkit.eval.page.content import AttackGroup, AttackRow, ClassRow, ClassTable, Cost
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.page_budgets import ShownBudget
from advkit.eval.robustness.worst_case import robust_within
from advkit.eval.text_tables import format_distance, format_mean

# Classes up to which all of them are shown; of more, the worst ones.
MAX_CLASSES, WORST_CLASSES = 20, 10


def budget_group(
    shown: ShownBudget,
    clean: Tensor,
    outcomes: Sequence[AttackOutcome],
    worst_case: Rate,
    noise: Rate | None,
) -> AttackGroup:
    """Return the results within a budget, of its attacks and of minimum-norm attacks in its norm.

    Args:
        shown: the budget.
        clean: bool `(n,)`; labeled correctly before any attack.
        outcomes: outcomes of all attacks.
        worst_case: robust accuracy under all attacks.
        noise: accuracy under random noise, `None` without it.
    """
    rows = [_row(o, o.robust_accuracy, o.success_rate) for o in shown.outcomes]
    for outcome in outcomes:
        if outcome.minimum_norm and outcome.norm == shown.budget.norm:
            robust = robust_within(shown.budget, clean, [outcome])
            success = Rate.of(~robust[outcome.attacked])
            row = _row(outcome, Rate.of(robust), success)
            rows.append(replace(row, name=f"{row.name}, minimum-norm"))
    return AttackGroup(
        title=shown.title, rows=_with_most_successes(rows), noise=noise, worst_case=worst_case
    )


def distance_groups(outcomes: Sequence[AttackOutcome]) -> list[AttackGroup]:
    """Return the results of the minimum-norm attacks of `outcomes`, by norm."""
    groups: dict[str, list[AttackOutcome]] = {}
    for outcome in outcomes:
        if outcome.minimum_norm:
            groups.setdefault(outcome.norm, []).append(outcome)
    return [
        AttackGroup(title=format_norm(norm), rows=_distance_rows(own))
        for norm, own in groups.items()
    ]


def _distance_rows(outcomes: Sequence[AttackOutcome]) -> tuple[AttackRow, ...]:
    """Return a row for each outcome; the strongest has the smallest median, then most successes."""
    strengths = [_strength(outcome) for outcome in outcomes]
    return tuple(
        replace(
            _row(outcome, None, outcome.success_rate),
            strongest=bool(outcome.success_rate.count) and strength == max(strengths),
        )
        for outcome, strength in zip(outcomes, strengths, strict=True)
    )


def _strength(outcome: AttackOutcome) -> tuple[float, int]:
    median = outcome.median_distance
    return -math.inf if median is None else -median, outcome.success_rate.count


def _row(outcome: AttackOutcome, robust: Rate | None, success: Rate) -> AttackRow:
    distance = format_distance(outcome.median_distance)
    return AttackRow(
        name=outcome.label, strongest=False, robust=robust, success=success, distance=distance
    )


def _with_most_successes(rows: Sequence[AttackRow]) -> tuple[AttackRow, ...]:
    """Mark the rows with the most successes as the strongest; none without a success."""
    most = max(row.success.count for row in rows)
    return tuple(replace(row, strongest=row.success.count == most > 0) for row in rows)


def costs(outcomes: Sequence[AttackOutcome], budgets: Sequence[ShownBudget]) -> list[Cost]:
    """Return the cost of each attack."""
    titles = {id(o): shown.title for shown in budgets for o in shown.outcomes}
    return [
        Cost(
            name=outcome.label,
            budget=titles.get(id(outcome), f"{format_norm(outcome.norm)}, any"),
            forward=format_mean(outcome.mean_of_attacked(outcome.forward)),
            backward=format_mean(outcome.mean_of_attacked(outcome.backward)),
            seconds=f"{outcome.seconds:.2f}",
        )
        for outcome in outcomes
    ]


def class_name(number: int, names: Sequence[str]) -> str:
    """Return the name of a class, such as "class 3" without `names`."""
    return names[number] if 0 <= number < len(names) else f"class {number}"


def class_table(
    label: Tensor,
    clean: Tensor,
    robust: Mapping[str, Tensor],
    outcomes: Sequence[AttackOutcome],
    names: Sequence[str],
) -> ClassTable:
    """Return the figures of each class that has an input.

    Args:
        label: int64 `(n,)`; true labels.
        clean: bool `(n,)`; labeled correctly before any attack.
        robust: bool `(n,)` for each budget; robust under all attacks.
        outcomes: outcomes of all attacks.
        names: names of the classes, empty if unknown.
    """
    rows = []
    for number in sorted(set(label.tolist())):
        own = label == number
        confused = _most_frequent([o.prediction[o.success & own] for o in outcomes])
        rows.append(
            ClassRow(
                name=class_name(number, names),
                clean=Rate.of(clean[own]),
                robust=tuple(Rate.of(mask[own]) for mask in robust.values()),
                confused="" if confused is None else class_name(confused, names),
            )
        )
    shown, folded = rows, []
    if len(rows) > MAX_CLASSES:
        ranked = sorted(rows, key=_accuracy)
        shown, folded = ranked[:WORST_CLASSES], ranked[WORST_CLASSES:]
    return ClassTable(budgets=tuple(robust), rows=tuple(shown), folded=tuple(folded))


def _most_frequent(predictions: Sequence[Tensor]) -> int | None:
    """Return the most frequent label, the smallest one of several; `None` for no labels."""
    counts = Counter(torch.cat(list(predictions)).tolist())
    counts.pop(-1, None)  # the label is unknown
    return min(counts, key=lambda number: (-counts[number], number), default=None)


def _accuracy(row: ClassRow) -> tuple[float, float]:
    """Return the mean of the robust accuracies of a class, and its clean accuracy."""
    mean = sum(map(float, row.robust)) / max(1, len(row.robust))
    return mean, float(row.clean)
