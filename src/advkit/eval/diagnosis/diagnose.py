"""Diagnosis of a model: whether to believe its robust accuracy, and what to do if not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from advkit.core import checks, sample_rows
from advkit.core.attack_options import measured_norm
from advkit.core.batching import Data, batches
from advkit.core.checks import look_like_probabilities
from advkit.core.protocols import Attack
from advkit.eval.accuracy import Rate
from advkit.eval.budgets import budget_arguments
from advkit.eval.diagnosis.comparisons import REFERENCE, UNBOUNDED, Figure, compare
from advkit.eval.diagnosis.diagnosis import Diagnosis
from advkit.eval.diagnosis.inputs import (
    another_order,
    check_data,
    check_probes,
    check_report,
    check_same_budget,
    check_same_inputs,
)
from advkit.eval.findings.finding import Finding
from advkit.eval.findings.kinds import in_order, make_finding
from advkit.eval.robustness.evaluate import evaluate
from advkit.eval.robustness.obstacles import few_classes
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.own_findings import findings_without_comparison
from advkit.eval.robustness.report import Report
from advkit.eval.robustness.rivals import on_rivals
from advkit.eval.robustness.worst_case import Budget, robust_within
from advkit.eval.text_tables import format_count
from advkit.eval.units.model_checks import are_one_hot
from advkit.models import as_classifier
from advkit.models.batch_dependence import keeps_batch
from advkit.models.convert import has_gradients
from advkit.models.protocols import may_interrupt

_LACKS_OUTPUT = "`model` must have"  # begins the errors of attacks that a model cannot serve


def diagnose(
    model: object,
    x: Data,
    y: Tensor | None = None,
    *,
    probes: Mapping[str, Attack],
    report: Report | None = None,
    batch_size: int = 128,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Diagnosis:
    """Find reasons to doubt the robust accuracy of a model, each with its evidence and a remedy.

    Robust accuracy is an upper bound, and most published ones that fell were too high because an
    attack failed silently. The `probes` attack the model in different ways. Where an attack that
    should be weaker fools it and one that should be stronger does not, gradients mislead the
    search, or it ends too early. The findings of `evaluate` about the probes are included. Each
    kind of finding has a page in `docs/findings`.

    With a `report` on the same inputs, its figure is diagnosed: a finding about inputs that the
    report counts as fooled already is of severity `"low"`. Without one, the figure is that of the
    probe `many_steps`.

    Args:
        model: a classifier, or an `nn.Module` with inputs in [0, 1].
        x: inputs `(n, *features)`, batches `(x, y)` that can be read again in the same order, such
            as a list or a `DataLoader` that does not shuffle, or an indexed data set. Some hundred
            inputs are enough.
        y: true labels `(n,)`; `None` if `x` holds the labels.
        probes: attacks by their role, such as those of `attacks.probes(eps, norm)`. The roles are
            `many_steps`, which is the reference, `more_steps`, `restarts`, `one_step`, `scores`,
            `labels`, `transfer` and `unbounded`. A role that is missing is not checked.
        report: report of an evaluation on the same inputs, with the budget of `many_steps` or a
            minimum-norm attack in its norm; `None` for none.
        batch_size: samples passed to the model at once.
        device: device that each batch is moved to; `None` leaves it where it is.
        progress: show the progress of each probe on standard error.

    Returns:
        The findings, the most severe first, and what each probe found. A probe whose outputs the
        model lacks is left out.

    Raises:
        ValueError: a role is unknown, `many_steps` is missing for a comparison, a probe has another
            norm, the ball of `unbounded` does not hold every input, `x` comes in another order each
            time, the report has another budget, other inputs or other clean predictions, or
            inputs or labels have the wrong shape or range.
        TypeError: an argument has the wrong type, or no probe can attack the model.

    References:
        Carlini et al. (2019, arXiv:1902.06705); Tramer et al. (2020, arXiv:2002.08347); Croce and
        Hein (2020, arXiv:2003.01690), whose code has flags; Pintor et al. (2022, arXiv:2106.09947),
        whose indicators look into one attack.

    Example:
        >>> import torch
        >>> from advkit import attacks, eval
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(1))
        >>> x = torch.rand(32, 4)
        >>> y = net(x).argmax(1)
        >>> probes = attacks.probes(eps=0.1)
        >>> del probes["labels"]  # which takes most of the time
        >>> [finding.name for finding in eval.diagnose(net, x, y, probes=probes).findings]
        ['probabilities']
    """
    check_data(x)
    check_probes(probes, x, as_classifier(model).bounds)
    check_report(report)
    options = {"batch_size": batch_size, "device": device, "progress": progress}
    reports, left_out = _evaluate_each(model, x, y, probes, options)
    first = next(iter(reports.values()))
    outcomes = {role: found.outcomes[0] for role, found in reports.items()}
    figure = _figure(report, outcomes, first)
    findings = [
        *compare(outcomes, figure),
        *findings_without_comparison(_joined(reports, report)),
        *(on_rivals(report.clean, report.outcomes) if report is not None else ()),
        *_on_outputs(model, x, y, batch_size, device),
        *_on_left_out(model, probes, left_out, first.num_classes),
    ]
    return Diagnosis(
        model=first.model,
        clean_accuracy=first.clean_accuracy,
        findings=in_order(_once_each(findings)),
        outcomes=outcomes,
        left_out=left_out,
        figure=Rate.of(figure.robust) if figure.reported else None,
    )


def _evaluate_each(
    model: object, x: Data, y: Tensor | None, probes: Mapping[str, Attack], options: dict[str, Any]
) -> tuple[dict[str, Report], dict[str, str]]:
    """Evaluate each probe by itself, without warnings, which become findings.

    Returns:
        The reports by role, and the reasons of the probes that cannot attack the model.

    Raises:
        TypeError: no probe can attack the model.
    """
    reports: dict[str, Report] = {}
    left_out: dict[str, str] = {}
    errors: list[Exception] = []
    for role, attack in probes.items():
        try:
            with checks.muted(UserWarning):
                reports[role] = evaluate(model, x, y, attacks=[attack], **options)
        except (TypeError, ValueError) as error:
            lacks_output = isinstance(error, TypeError) and str(error).startswith(_LACKS_OUTPUT)
            if not lacks_output and not _uses_dlr(attack):
                raise
            left_out[role] = str(error)
            errors.append(error)
        _check_same_order(reports)
    if not reports:
        raise errors[0]
    return reports, left_out


def _check_same_order(reports: Mapping[str, Report]) -> None:
    """Raise unless all probes so far were run on the same inputs in the same order."""
    if len({report.inputs.data_sha256 for report in reports.values()}) > 1:
        raise another_order()


def _uses_dlr(attack: object) -> bool:
    return getattr(attack, "loss", None) == "dlr"


def _figure(report: Report | None, outcomes: Mapping[str, AttackOutcome], first: Report) -> Figure:
    """Return the figure to diagnose: that of a report, or of the reference among the probes.

    Raises:
        ValueError: the report is on other inputs, or does not have the budget of the probes.
    """
    reference = outcomes.get(REFERENCE, next(iter(outcomes.values())))
    if report is None:
        return Figure(reference.robust, reported=False)
    check_same_inputs(report, first)
    check_same_budget(report, reference)
    budget = Budget(reference.norm, reference.radius)
    return Figure(robust_within(budget, report.clean, report.outcomes), reported=True)


def _joined(reports: Mapping[str, Report], report: Report | None) -> Report:
    """Return the results of the probes with a budget, and of `report`, as one report.

    A probe for a comparison that could not begin does not speak against the figure.
    """
    within = {role: found for role, found in reports.items() if role != UNBOUNDED}
    first = next(iter((within or reports).values()))
    outcomes = list(report.outcomes if report is not None else ())
    for role, found in within.items():
        (outcome,) = found.outcomes
        outcomes.append(
            outcome
            if role == REFERENCE
            else replace(outcome, no_start=torch.zeros_like(outcome.no_start))
        )
    noise = {n.budget: n for found in within.values() for n in found.noise}
    return replace(first, outcomes=tuple(outcomes), noise=tuple(noise.values()))


def _on_outputs(
    model: object,
    x: Data,
    y: Tensor | None,
    batch_size: int,
    device: str | torch.device | None,
) -> Iterator[Finding]:
    """Yield a finding if the logits of the first batch look like probabilities.

    A whole batch also shows it for a single output, and for outputs in 16 bits.
    """
    classifier = as_classifier(model)
    if not has_gradients(classifier) or may_interrupt(classifier) or keeps_batch(classifier):
        return
    inputs, _, _ = next(batches(x, y, batch_size, device))
    with torch.no_grad(), sample_rows.numbered(len(inputs), 0):
        logits = classifier.logits(inputs)
    if look_like_probabilities(logits) and not are_one_hot(logits).all():
        yield make_finding(
            "probabilities",
            "high",
            f"The model returned probabilities instead of logits for the first {len(inputs)} "
            "inputs.",
            inputs=len(inputs),
        )


def _on_left_out(
    model: object, probes: Mapping[str, Attack], left_out: Mapping[str, str], classes: int | None
) -> Iterator[Finding]:
    """Yield findings about probes that cannot attack a model, although it has logits."""
    if not has_gradients(as_classifier(model)):
        return
    for role in left_out:
        if _uses_dlr(probes[role]) and classes is not None:
            yield few_classes(repr(probes[role]), classes, "")
    reference = probes.get(REFERENCE)
    budget = "" if reference is None else _budget_of(reference)
    blocked = [role for role in left_out if not _uses_dlr(probes[role])]
    if blocked:
        yield make_finding(
            "no_gradient",
            "high",
            "Torch cannot differentiate the logits of the model, so "
            f"{format_count(len(blocked), 'probe')} could not be run: {', '.join(blocked)}.",
            budget=budget,
            probes=len(blocked),
        )


def _budget_of(attack: Any) -> str:
    """Return the arguments `eps` and `norm` of the budget of `attack` as code."""
    eps = getattr(attack, "eps", None)
    return budget_arguments(measured_norm(attack), eps if isinstance(eps, float | int) else None)


def _once_each(findings: Iterable[Finding]) -> list[Finding]:
    """Return the most severe finding of each name."""
    found: dict[str, Finding] = {}
    for finding in in_order(findings):
        found.setdefault(finding.name, finding)
    return list(found.values())
