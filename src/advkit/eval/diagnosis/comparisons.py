"""Findings that follow from the comparison of probes by their roles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.eval.findings.finding import Finding, severity_of
from advkit.eval.findings.kinds import make_finding
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.own_findings import budget_arguments, is_much
from advkit.eval.text_tables import format_count

REFERENCE = "many_steps"
UNBOUNDED = "unbounded"
# Finding of a role whose attack should not fool the model where the reference fails.
RIVALS = {
    "more_steps": "more_steps_help",
    "restarts": "restarts_help",
    "one_step": "one_step_beats_many",
    "scores": "scores_beat_gradients",
    "labels": "labels_beat_gradients",
    "transfer": "transfer_beats_gradients",
}
ROLES = (REFERENCE, *RIVALS, UNBOUNDED)
# Share of the attacked inputs that an attack without a budget may leave.
LEFT_WITHOUT_BUDGET = 0.02


class Figure(NamedTuple):
    """The figure to diagnose.

    Attributes:
        robust: bool `(n,)`; the inputs that it counts as robust.
        reported: whether a report states it; otherwise it is that of the reference probe.
    """

    robust: Tensor
    reported: bool


def compare(outcomes: Mapping[str, AttackOutcome], figure: Figure) -> Iterator[Finding]:
    """Yield the findings about the `outcomes` of the probes, by their roles.

    An input that a probe fools and the reference does not is evidence against gradients, steps or
    restarts. The severity depends on how many of these the figure counts as robust.
    """
    reference = outcomes.get(REFERENCE)
    if reference is not None:
        for role, name in RIVALS.items():
            if role in outcomes:
                yield from _rival(name, outcomes[role], reference, figure)
    if UNBOUNDED in outcomes:
        yield from _unbounded(outcomes[UNBOUNDED])
    if figure.reported:
        yield from _stronger(outcomes, reference, figure)


def _rival(
    name: str, rival: AttackOutcome, reference: AttackOutcome, figure: Figure
) -> Iterator[Finding]:
    """Yield the finding `name` if `rival` fools enough inputs that the reference does not."""
    beaten = reference.robust & found_within(rival, reference)
    count, attacked = int(beaten.sum()), int(reference.attacked.sum())
    if not is_much(count, attacked):
        return
    affected = int((beaten & figure.robust).sum())
    known = "" if affected else " The report counts all of them as fooled already."
    yield make_finding(
        name,
        severity_of(affected, len(beaten)),
        f"{rival.label} fooled the model on {format_count(count, 'input')} of {attacked:,} that "
        f"withstood {reference.label}.{known}",
        budget=budget_arguments(reference.norm, reference.eps),
        inputs=count,
        attacked=attacked,
        counted_as_robust=affected,
    )


def found_within(outcome: AttackOutcome, reference: AttackOutcome) -> Tensor:
    """Return a mask `(n,)` of the inputs that `outcome` fools within the budget of `reference`."""
    if outcome.norm != reference.norm:
        return torch.zeros_like(outcome.success)
    same = outcome.success & (outcome.radius <= reference.radius)
    return outcome.within(reference.radius) | same


def _unbounded(outcome: AttackOutcome) -> Iterator[Finding]:
    """Yield a finding if an attack without a budget leaves more than a few inputs."""
    left, attacked = int(outcome.robust.sum()), int(outcome.attacked.sum())
    if left > LEFT_WITHOUT_BUDGET * attacked:
        yield make_finding(
            "unbounded_attack_fails",
            "high",
            f"{outcome.label}, whose ball holds every input, left {left} of {attacked:,} inputs "
            "correctly labeled, where it should leave none.",
            inputs=left,
            attacked=attacked,
        )


def _stronger(
    outcomes: Mapping[str, AttackOutcome], reference: AttackOutcome | None, figure: Figure
) -> Iterator[Finding]:
    """Yield a finding if the probes fool inputs that a report counts as robust."""
    if reference is None:
        return
    fooled = torch.zeros_like(figure.robust)
    for outcome in outcomes.values():
        fooled |= found_within(outcome, reference)
    count, total = int((fooled & figure.robust).sum()), len(fooled)
    if count:
        left = int((figure.robust & ~fooled).sum())
        yield make_finding(
            "stronger_attack_found",
            severity_of(count, total),
            f"The probes fooled the model on {format_count(count, 'input')} that the report counts "
            f"as robust. The robust accuracy is at most {100 * left / total:.2f} %.",
            budget=budget_arguments(reference.norm, reference.eps),
            inputs=count,
            total=total,
        )
