"""Findings about attacks that fooled a model where stronger ones failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from advkit.eval.budgets import budget_arguments
from advkit.eval.findings.finding import Finding, severity_of
from advkit.eval.findings.kinds import make_finding
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.worst_case import budget_texts, budgets_of, robust_within
from advkit.eval.text_tables import format_count

# Inputs that an attack fools and a stronger one does not, from which on it is one: share, number.
MANY_BEATEN, _FEWEST_BEATEN = 0.03, 3
LONG = 10  # backward passes of a failure from which on an attack has many steps
# Findings of attacks without gradients other than those that use scores, by their name.
_RIVALS_WITHOUT_GRADIENTS = {
    "Transfer": "transfer_beats_gradients",
    "HopSkipJump": "labels_beat_gradients",
}


def on_rivals(clean: Tensor, outcomes: Sequence[AttackOutcome]) -> Iterator[Finding]:
    """Yield findings about attacks that fooled the model where stronger ones failed.

    An attack of one step, one on scores, one on labels and one on a surrogate are compared with all
    attacks of many steps. Of these, at least one must have the same budget: another one would not
    search for examples within it.
    """
    texts = dict(zip(map(id, outcomes), budget_texts(outcomes), strict=True))
    for text, budget in budgets_of(outcomes).items():
        same = [o for o in outcomes if o.norm == budget.norm]
        many = [o for o in same if is_long(o) and not o.minimum_norm]
        if all(texts[id(outcome)] != text for outcome in many):
            continue
        robust = robust_within(budget, clean, many)
        for outcome in same:
            name = _kind_of_rival(outcome)
            beaten = robust & (outcome.within(budget.radius) if name else torch.tensor(False))
            if name and is_much(int(beaten.sum()), len(beaten)):
                yield _rival_finding(
                    name, outcome.label, int(beaten.sum()), len(beaten), text,
                    budget_arguments(budget.norm, many[0].eps),
                )  # fmt: skip


def _rival_finding(
    name: str, label: str, beaten: int, total: int, against: str, budget: str
) -> Finding:
    """Return the finding that an attack fooled the model where attacks of many steps failed."""
    return make_finding(
        name,
        severity_of(beaten, total),
        f"{label} fooled the model on {format_count(beaten, 'input')} of {total:,} that withstood "
        f"the attacks with many gradient steps ({against}).",
        budget=budget,
        inputs=beaten,
        total=total,
    )


def _kind_of_rival(outcome: AttackOutcome) -> str | None:
    """Return the finding that an attack gives if it beats many gradient steps."""
    if not outcome.attacked.any() or outcome.name == "RandomNoise":
        return None
    most = int(outcome.backward.max())
    if most == 1:
        return "one_step_beats_many"
    if most:
        return None
    return _RIVALS_WITHOUT_GRADIENTS.get(outcome.name, "scores_beat_gradients")


def is_much(count: int, total: int) -> bool:
    """Return whether `count` of `total` inputs are more than chance and rounding explain."""
    return count >= max(_FEWEST_BEATEN, MANY_BEATEN * total)


def is_long(outcome: AttackOutcome) -> bool:
    """Return whether an attack took many gradient steps wherever it failed."""
    failed = outcome.attacked & ~outcome.success
    return bool(failed.any()) and int(outcome.backward[failed].min()) >= LONG
