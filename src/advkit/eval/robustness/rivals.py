"""Findings about attacks that fooled a model where stronger ones failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
_ONE_STEP = ("FGSM", "FGM")
# Forward passes for the clean input, a random start and the verification: an attack with gradients
# that succeeds at its start needs no backward pass.
_WITHOUT_SEARCH = 3
# Findings of attacks without gradients, by their name.
_RIVALS_WITHOUT_GRADIENTS = {
    "Square": "scores_beat_gradients",
    "SparseRS": "scores_beat_gradients",
    "Transfer": "transfer_beats_gradients",
    "HopSkipJump": "labels_beat_gradients",
}


def on_rivals(clean: Tensor, outcomes: Sequence[AttackOutcome]) -> Iterator[Finding]:
    """Yield findings about attacks that fooled the model where stronger ones failed.

    An attack of one step, one on scores, one on labels and one on a surrogate are compared with all
    attacks of many steps. Of these, at least one must have the same budget and fail in many steps:
    another one would not search for examples within it.

    Args:
        clean: bool `(n,)`; labeled correctly before any attack.
        outcomes: outcome of each attack.
    """
    texts = dict(zip(map(id, outcomes), budget_texts(outcomes), strict=True))
    for text, budget in budgets_of(outcomes).items():
        same = [o for o in outcomes if o.norm == budget.norm]
        many = [o for o in same if _kind_of_rival(o) is None and not o.minimum_norm]
        compared = [o for o in many if is_long(o) and texts[id(o)] == text]
        if not compared:
            continue
        robust = robust_within(budget, clean, many)
        for outcome in same:
            name = _kind_of_rival(outcome)
            if name is None:
                continue
            beaten = int((robust & outcome.within(budget.radius)).sum())
            if is_much(beaten, len(robust)):
                arguments = budget_arguments(budget.norm, compared[0].eps)
                yield _rival_finding(name, outcome.label, beaten, len(robust), text, arguments)


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
    """Return the finding that an attack gives if it beats many gradient steps.

    The number of passes tells little, since an attack of many steps may succeed at its first one.
    """
    if not outcome.attacked.any() or outcome.name == "RandomNoise":
        return None
    if outcome.name in _ONE_STEP or outcome.settings.get("steps") == 1:
        return "one_step_beats_many"
    if outcome.backward.any() or int(outcome.forward.max()) <= _WITHOUT_SEARCH:
        return _RIVALS_WITHOUT_GRADIENTS.get(outcome.name)
    return _RIVALS_WITHOUT_GRADIENTS.get(outcome.name, "scores_beat_gradients")


def is_much(count: int, total: int) -> bool:
    """Return whether `count` of `total` inputs are more than chance and rounding explain."""
    return count >= max(_FEWEST_BEATEN, MANY_BEATEN * total)


def is_long(outcome: AttackOutcome) -> bool:
    """Return whether an attack took many gradient steps wherever it failed."""
    failed = outcome.attacked & ~outcome.success
    return bool(failed.any()) and int(outcome.backward[failed].min()) >= LONG
