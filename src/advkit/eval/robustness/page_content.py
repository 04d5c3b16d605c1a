"""Contents of the page of a report, from its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from advkit.core.boxes import format_norm
from advkit.eval.accuracy import Rate
from advkit.eval.evidence.evaluated_inputs import EvaluatedInputs
from advkit.eval.evidence.gate import Gate
from advkit.eval.evidence.provenance import Provenance
from advkit.eval.findings.finding import Finding
from advkit.eval.page.content import (
    AttackGroup,
    AttackSettings,
    CardGroup,
    ClassTable,
    Named,
    PageContent,
    Repetition,
)
from advkit.eval.page.wording import share
from advkit.eval.robustness.outcome import AttackOutcome, NearestExamples
from advkit.eval.robustness.own_findings import Evaluated
from advkit.eval.robustness.page_budgets import ShownBudget, shown_budgets
from advkit.eval.robustness.page_cards import budget_card, card_groups, distance_card, general_gates
from advkit.eval.robustness.page_curves import panels
from advkit.eval.robustness.page_examples import example_groups
from advkit.eval.robustness.page_tables import budget_group, class_table, costs, distance_groups
from advkit.eval.robustness.worst_case import robust_within

_UNKNOWN = "unknown"


class Shown(Evaluated, Protocol):
    """Results of an evaluation that a page shows; see `Report`."""

    @property
    def model(self) -> str:
        """Description of the model."""
        ...

    @property
    def about(self) -> Mapping[str, str]:
        """Further facts for the reader."""
        ...

    @property
    def total(self) -> int | None:
        """Number of inputs to evaluate, `None` if unknown."""
        ...

    @property
    def inputs(self) -> EvaluatedInputs:
        """Labels and hashes of the inputs."""
        ...

    @property
    def provenance(self) -> Provenance:
        """Software, settings and hashes of the evaluation."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, empty if unknown."""
        ...

    @property
    def gates(self) -> tuple[Gate, ...]:
        """Conditions that the report must meet."""
        ...

    @property
    def worst_cases(self) -> dict[str, Rate]:
        """Robust accuracy under all attacks within each budget."""
        ...

    @property
    def nearest(self) -> dict[str, NearestExamples]:
        """Nearest adversarial examples of all minimum-norm attacks, by norm."""
        ...

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Reasons to doubt the figures."""
        ...

    @property
    def verdict(self) -> str:
        """Sentence that says whether to believe the figures."""
        ...

    def notes(self) -> list[str]:
        """Return sentences that explain the figures."""
        ...


def page_content(results: Shown, digest: str | None) -> PageContent:
    """Return the contents of the page of a report.

    Args:
        results: the report.
        digest: digest of the report; `None` for a page alone.
    """
    budgets = shown_budgets(results.outcomes, results.bounds)
    noise = {n.budget: n.robust_accuracy for n in results.noise}
    worst_cases = results.worst_cases
    within = [
        budget_group(b, results.clean, results.outcomes, worst_cases[b.text], noise.get(b.text))
        for b in budgets
    ]
    distances = distance_groups(results.outcomes)
    curves = panels(
        results.outcomes, results.clean, results.noise, budgets, worst_cases, results.bounds
    )
    return PageContent(
        digest=digest,
        model=results.model,
        facts=_facts(results),
        verdict=results.verdict,
        findings=results.findings,
        interrupted=_interrupted(results),
        gates=results.gates,
        general_gates=general_gates(results.gates, budgets),
        groups=_card_groups(results, budgets, within, distances),
        panels=tuple(curves),
        within_budgets=tuple(within),
        minimum_norm=tuple(distances),
        costs=tuple(costs(results.outcomes, budgets)),
        notes=tuple(results.notes()),
        examples=tuple(example_groups(results.outcomes, results.bounds, results.class_names)),
        classes=_class_table(results, budgets),
        repetition=_repetition(results),
    )


def _facts(results: Shown) -> tuple[Named, ...]:
    return (
        ("inputs", f"{len(results.clean):,}"),
        ("clean accuracy", share(Rate.of(results.clean))),
        ("date", results.provenance.date[:10]),
        *results.about.items(),
    )


def _interrupted(results: Shown) -> str:
    done, total = len(results.clean), results.total
    if total is None or done >= total:
        return ""
    return f"{done:,} of {total:,} inputs were evaluated. All figures are of these inputs alone."


def _card_groups(
    results: Shown,
    budgets: Sequence[ShownBudget],
    within: Sequence[AttackGroup],
    distances: Sequence[AttackGroup],
) -> tuple[CardGroup, ...]:
    """Return a card for each budget, and one for each norm without a budget."""
    clean = Rate.of(results.clean)
    cards = [
        (b.budget.norm, budget_card(number, b, group, clean, results.bounds, results.gates))
        for number, (b, group) in enumerate(zip(budgets, within, strict=True))
    ]
    with_budget = {norm for norm, _ in cards}
    by_title = {group.title: group for group in distances}
    for norm, nearest in results.nearest.items():
        if norm not in with_budget:
            group = by_title[format_norm(norm)]
            cards.append((norm, distance_card(len(cards), norm, nearest, clean, group)))
    return card_groups(cards)


def _class_table(results: Shown, budgets: Sequence[ShownBudget]) -> ClassTable | None:
    """Return the figures of each class; `None` without inputs."""
    if not len(results.inputs):
        return None
    robust: dict[str, Tensor] = {
        b.title: robust_within(b.budget, results.clean, results.outcomes) for b in budgets
    }
    return class_table(
        results.inputs.label, results.clean, robust, results.outcomes, results.class_names
    )


def _repetition(results: Shown) -> Repetition:
    run = results.provenance
    attacks = (
        _attack_settings(outcome, sha256)
        for outcome, sha256 in zip(results.outcomes, run.attacks, strict=True)
    )
    facts = (*_environment(run), *_data(results))
    return Repetition(command=run.command, facts=facts, attacks=tuple(attacks))


def _attack_settings(outcome: AttackOutcome, sha256: str | None) -> AttackSettings:
    """Return all parameters of an attack; those that differ from the defaults if others are lost.

    Attacks that are not dataclasses have no parameters.
    """
    known = outcome.parameters or outcome.settings
    parameters = tuple((name, str(value)) for name, value in known.items())
    return AttackSettings(name=outcome.label, parameters=parameters, sha256=sha256)


def _environment(found: Provenance) -> tuple[Named, ...]:
    """Return facts on software, machine and model."""
    return (
        ("date", found.date),
        *((name, version) for name, version in found.versions.items()),
        ("device", found.device),
        ("threads", str(found.threads)),
        ("batch size", str(found.batch_size)),
        *((name, str(value)) for name, value in found.numerics.items()),
        ("SHA-256 of the model", found.model or _UNKNOWN),
        ("SHA-256 of the weights", found.weights or _UNKNOWN),
    )


def _data(results: Shown) -> tuple[Named, ...]:
    """Return facts on the data."""
    lower, upper = results.bounds
    return (
        ("bounds of the inputs", f"[{lower:g}, {upper:g}]"),
        ("SHA-256 of the data", results.inputs.data_sha256),
    )
