"""Findings about the obstacles that one attack met."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from advkit.core import checks
from advkit.eval.accuracy import Rate
from advkit.eval.budgets import budget_arguments
from advkit.eval.findings.finding import Finding, severity_of
from advkit.eval.findings.kinds import make_finding
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.rivals import LONG
from advkit.eval.robustness.worst_case import Budget, robust_within
from advkit.eval.text_tables import format_count

_NO_EVIDENCE = "this is not evidence of robustness"
# Share of the failures of an attack from which on their progress in the last steps is a finding.
MANY_IMPROVING = 0.1
_FEWEST_IMPROVING = 3
# Lower end of the 95 % interval of the successes that rounding undoes, from which on it is one.
# Examples that are barely misclassified are undone half the time.
MOST_UNDONE, _FEWEST_UNDONE = 0.5, 5
MANY_QUERIES = 100  # forward passes from which on an attack without gradients is long
# Attacks that take the detector into account. Rejections are what they try to avoid.
_AWARE_OF_DETECTOR = ("Adaptive", "FeatureMatching", "JointCarliniWagner", "SelectivePGD")
FEWEST_STEPS = 100  # of an attack that a remedy names, and four times as many as before
DLR_CLASSES = 4  # that targeted DLR needs; the untargeted loss is constant on a part of three


def on_obstacles(
    outcome: AttackOutcome, clean: Tensor, outcomes: Sequence[AttackOutcome], classes: int | None
) -> Iterator[Finding]:
    """Yield findings about one attack, next to all `outcomes` of the evaluation.

    Args:
        outcome: outcome of the attack.
        clean: bool `(n,)`; labeled correctly before any attack.
        outcomes: outcomes of all attacks.
        classes: number of classes of the model, `None` if unknown.
    """
    robust = robust_within(Budget(outcome.norm, outcome.radius), clean, outcomes)
    for name, (mask, sentence) in _obstacles(outcome).items():
        if (count := int(mask.sum())) and _is_enough(name, count, outcome):
            settled = _settled(outcome, outcomes, differentiated=name == "no_gradient")
            affected = int((mask & robust & ~settled).sum())
            inputs = numbered(mask) if name == "not_finite_logits" else _count(mask)
            aware = name == "rejection_counts_as_robust" and outcome.name in _AWARE_OF_DETECTOR
            yield make_finding(
                name,
                "low" if aware else severity_of(affected, len(robust)),
                f"{outcome.label} {sentence.format(inputs)}.{_not_in_doubt(affected)}",
                budget=budget_arguments(outcome.norm, outcome.eps),
                steps=max(FEWEST_STEPS, 4 * int(outcome.backward.max())),
                inputs=count,
                in_doubt=affected,
                total=len(robust),
            )
    yield from _on_rounding(outcome)
    yield from _on_classes(outcome, classes)


def _obstacles(outcome: AttackOutcome) -> Mapping[str, tuple[Tensor, str]]:
    """Return the failures that say little about robustness, with what they are, by finding.

    Each text has a place for the number of inputs.
    """
    return {
        "no_gradient": (
            outcome.no_gradient,
            "had no usable gradient on {} and failed there: " + _NO_EVIDENCE,
        ),
        "no_start": (
            outcome.no_start,
            "could not begin on {}, for lack of a starting point or of queries: " + _NO_EVIDENCE,
        ),
        "not_finite_logits": (
            outcome.not_finite,
            "failed on {}, for which the model returned NaN or infinite logits: " + _NO_EVIDENCE,
        ),
        "rejection_counts_as_robust": (
            outcome.rejected,
            "failed on {} after the model rejected an iterate. A rejection counts as robust, even "
            "if the model rejects clean inputs of the same kind",
        ),
        "steps_run_out": (
            outcome.improving,
            "failed on {} while the margin still shrank. In the last tenth of the steps it shrank "
            "at least half as fast as on average",
        ),
        "last_iterate_returned": (
            outcome.success_lost,
            "returned its last iterate on {}, where an earlier one was misclassified",
        ),
    }


def _is_enough(name: str, count: int, outcome: AttackOutcome) -> bool:
    """Return whether `count` inputs make a finding; each one does, except for late progress."""
    if name != "steps_run_out":
        return True
    failed = int((outcome.attacked & ~outcome.success).sum())
    return count >= max(_FEWEST_IMPROVING, MANY_IMPROVING * failed)


def _settled(
    outcome: AttackOutcome, outcomes: Sequence[AttackOutcome], *, differentiated: bool
) -> Tensor:
    """Return a mask `(n,)` of the inputs that another attack withstood at least as well.

    It failed there with many passes, in a ball at least as large, and without an obstacle. If
    `differentiated`, only attacks with gradients count.
    """
    settled = torch.zeros_like(outcome.robust)
    for other in outcomes:
        if other is not outcome and other.norm == outcome.norm:
            many = other.backward >= LONG
            if not differentiated:
                many = many | (other.forward >= MANY_QUERIES)
            withstood = other.robust
            if other.minimum_norm:  # its nearest example may lie outside the budget
                withstood = other.attacked & ~other.within(outcome.radius)
            found = withstood & many & (other.radius >= outcome.radius)
            for mask, _ in _obstacles(other).values():
                found = found & ~mask
            settled |= found
    return settled


def _not_in_doubt(affected: int) -> str:
    if affected:
        return ""
    return " The figures do not rest on these failures: other attacks decide about these inputs."


def _on_rounding(outcome: AttackOutcome) -> Iterator[Finding]:
    """Yield a finding if rounding to bytes undoes more than a few of the successes."""
    undone = Rate(int(outcome.undone.sum()), int(outcome.rounded.sum()))
    if undone.count >= _FEWEST_UNDONE and undone.interval[0] > MOST_UNDONE:
        yield make_finding(
            "rounding_undoes_attack",
            "medium",
            f"Rounding to bytes undoes {undone.count} of {undone.total} checked adversarial "
            f"examples of {outcome.label}, although the clean inputs are bytes. An attacker who "
            "must send image files would find fewer.",
            undone=undone.count,
            rounded=undone.total,
        )


def _on_classes(outcome: AttackOutcome, classes: int | None) -> Iterator[Finding]:
    """Yield a finding if an attack used a loss for more classes than the model has."""
    uses_dlr = outcome.name == "AutoAttack" or outcome.settings.get("loss") == "dlr"
    if uses_dlr and classes is not None and classes < DLR_CLASSES:
        yield few_classes(outcome.label, classes, budget_arguments(outcome.norm, outcome.eps))


def few_classes(label: str, classes: int, budget: str) -> Finding:
    """Return the finding that the attack `label` uses DLR on a model of few `classes`.

    With three classes the loss without a target is defined, but it is constant on a part of them.
    """
    return make_finding(
        "too_few_classes",
        "low" if classes == DLR_CLASSES - 1 else "medium",
        f"{label} uses the DLR loss on a model of {classes} classes. The loss needs 3 classes, and "
        f"{DLR_CLASSES} to aim at one of them. AutoAttack maximizes the margin where it is not "
        "defined, so it is not the published attack.",
        budget=budget,
        classes=classes,
        needed=DLR_CLASSES,
    )


def _count(mask: Tensor) -> str:
    return format_count(int(mask.sum()), "input")


def numbered(mask: Tensor) -> str:
    """Return the count of true values in `mask` `(n,)`, and the numbers of the first of them."""
    return f"{_count(mask)} (number {checks.indices(mask)})"
