"""Robust accuracy under all attacks at once, for each perturbation budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.eval.robustness.outcome import AttackOutcome


class Budget(NamedTuple):
    """A perturbation budget: a norm and the radius of each of `n` inputs.

    Attributes:
        norm: norm of the radii.
        radius: float64 `(n,)`; zero for inputs that were not attacked.
    """

    norm: str
    radius: Tensor


def budgets_of(outcomes: Sequence[AttackOutcome]) -> dict[str, Budget]:
    """Return the distinct budgets of `outcomes`, by their text.

    Budgets with the same text, which are equal to six digits, are one with the greater radii.
    """
    found: dict[str, Budget] = {}
    for text, outcome in zip(budget_texts(outcomes), outcomes, strict=True):
        if text:
            same = found.get(text, Budget(outcome.norm, outcome.radius))
            found[text] = Budget(outcome.norm, torch.maximum(same.radius, outcome.radius))
    return found


def budget_texts(outcomes: Sequence[AttackOutcome]) -> list[str]:
    """Return the text of the budget of each outcome, empty for a minimum-norm attack.

    The second of several budgets with one `eps` for each input gets a number, and so on.
    """
    return numbered_texts(
        outcomes, lambda a, b: torch.equal(outcomes[a].radius, outcomes[b].radius)
    )


def numbered_texts(
    outcomes: Sequence[AttackOutcome], equal_radii: Callable[[int, int], bool]
) -> list[str]:
    """Return the text of the budget of each outcome, as `budget_texts`, without their radii.

    Args:
        outcomes: outcome of each attack.
        equal_radii: returns whether the outcomes of two numbers have the same radii.
    """
    texts: list[str] = []
    distinct: dict[str, list[int]] = {}  # outcomes with one eps for each input, by norm
    for number, outcome in enumerate(outcomes):
        if outcome.minimum_norm or outcome.eps is not None:
            texts.append(outcome.budget)
            continue
        known = distinct.setdefault(outcome.norm, [])
        same = [place for place, other in enumerate(known) if equal_radii(other, number)]
        if not same:
            known.append(number)
        place = same[0] if same else len(known) - 1
        texts.append(f"{outcome.budget} ({place + 1})" if place else outcome.budget)
    return texts


def robust_within(budget: Budget, clean: Tensor, outcomes: Sequence[AttackOutcome]) -> Tensor:
    """Return a mask `(n,)` of the inputs that are correct and that no attack fooled in a budget.

    Every adversarial example in the norm of the budget counts that lies within it, whatever the
    budget of the attack that found it. A success of an attack with the same or a smaller budget
    counts without a comparison of distances, which are rounded.

    Args:
        budget: the budget.
        clean: bool `(n,)`; labeled correctly before any attack.
        outcomes: outcome of each attack.
    """
    robust = clean
    for outcome in outcomes:
        if outcome.norm == budget.norm:
            smaller = outcome.radius <= budget.radius
            robust = robust & ~(outcome.within(budget.radius) | (outcome.success & smaller))
    return robust


def nearest_distances(outcomes: Sequence[AttackOutcome]) -> Tensor:
    """Return the distance `(n,)` of the nearest example of all attacks, inf where there is none.

    Args:
        outcomes: outcomes of attacks in one norm, at least one.
    """
    distances = torch.stack([outcome.distance.double() for outcome in outcomes])
    return torch.where(distances.isnan(), math.inf, distances).amin(0)
