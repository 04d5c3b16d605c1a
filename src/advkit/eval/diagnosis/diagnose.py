"""Diagnosis of a model: whether to believe its robust accuracy, and what to do if not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.batching import Data
from advkit.core.boxes import diameter
from advkit.core.protocols import Attack
from advkit.eval.accuracy import Rate
from advkit.eval.budgets import radius_of
from advkit.eval.diagnosis.comparisons import REFERENCE, ROLES, UNBOUNDED, Figure, compare
from advkit.eval.diagnosis.diagnosis import Diagnosis
from advkit.eval.findings.finding import Finding
from advkit.eval.findings.kinds import in_order, make_finding
from advkit.eval.robustness.evaluate import evaluate
from advkit.eval.robustness.obstacles import few_classes
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.own_findings import findings_without_comparison
from advkit.eval.robustness.report import Report
from advkit.eval.robustness.rivals import on_rivals
from advkit.eval.robustness.worst_case import Budget, robust_within
from advkit.models import as_classifier
from advkit.models.convert import has_gradients


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
        x: inputs `(n, *features)`, batches `(x, y)` that can be read again, such as a `DataLoader`
            or a list, or an indexed data set. Some hundred inputs are enough.
        y: true labels `(n,)`; `None` if `x` holds the labels.
        probes: attacks by their role, such as those of `attacks.probes(eps, norm)`. The roles are
            `many_steps`, which is the reference, `more_steps`, `restarts`, `one_step`, `scores`,
            `labels`, `transfer` and `unbounded`. A role that is missing is not checked.
        report: report of an evaluation on the same inputs; `None` for none.
        batch_size: samples passed to the model at once.
        device: device that each batch is moved to; `None` leaves it where it is.
        progress: show the progress of each probe on standard error.

    Returns:
        The findings, the most severe first, and what each probe found. A probe whose outputs the
        model lacks is left out.

    Raises:
        ValueError: a role is unknown, `probes` is empty, the ball of `unbounded` does not hold
            every input, the report is on other inputs, or inputs or labels have the wrong shape or
            range.
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
    _check(x, probes)
    if UNBOUNDED in probes:
        _check_unbounded(probes[UNBOUNDED], x, as_classifier(model).bounds)
    options = {"batch_size": batch_size, "device": device, "progress": progress}
    reports, left_out = _evaluate_each(model, x, y, probes, options)
    first = next(iter(reports.values()))
    outcomes = {role: found.outcomes[0] for role, found in reports.items()}
    figure = _figure(report, outcomes, first)
    findings = [
        *compare(outcomes, figure),
        *findings_without_comparison(_joined(reports, report)),
        *(on_rivals(report.clean, report.outcomes) if report is not None else ()),
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


def _check(x: object, probes: object) -> None:
    """Raise unless `x` can be read again, and `probes` are attacks by their role."""
    if isinstance(x, Iterator):
        raise TypeError(
            f"`x` must be data that can be read again for each probe, got {type(x).__name__}. Pass "
            "a tensor, a data set, or a list of batches."
        )
    if not isinstance(probes, Mapping):
        raise TypeError(
            f"`probes` must be a dictionary of attacks by role, got {type(probes).__name__}. Use "
            "attacks.probes(eps, norm)."
        )
    if not probes:
        raise ValueError("`probes` must hold at least one attack, got none.")
    for role, attack in probes.items():
        checks.one_of("a role of probes", role, ROLES)
        checks.attack(f"probes[{role!r}]", attack)


def _check_unbounded(attack: Any, x: Data, bounds: tuple[float, float]) -> None:
    """Raise unless the ball of `attack` holds every input, as far as the features are known."""
    features = x[0].numel() if isinstance(x, Tensor) and len(x) else 1
    limit = diameter(attack.norm, features, bounds)
    if bool((radius_of(attack) < limit).any()):
        raise ValueError(
            f"`probes[{UNBOUNDED!r}]` must have an eps of at least {limit:g}, so that its ball "
            f"holds every input within the bounds [{bounds[0]:g}, {bounds[1]:g}], got {attack!r}. "
            "Pass the bounds to attacks.probes."
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
            if isinstance(error, ValueError) and not _uses_dlr(attack):
                raise
            left_out[role] = str(error)
            errors.append(error)
    if not reports:
        raise errors[0]
    return reports, left_out


def _uses_dlr(attack: object) -> bool:
    return getattr(attack, "loss", None) == "dlr"


def _figure(report: Report | None, outcomes: Mapping[str, AttackOutcome], first: Report) -> Figure:
    """Return the figure to diagnose: that of a report, or of the reference among the probes.

    Raises:
        ValueError: the report is on other inputs, or has no attack in the norm of the probes.
    """
    reference = outcomes.get(REFERENCE, next(iter(outcomes.values())))
    if report is None:
        return Figure(reference.robust, reported=False)
    if len(report.clean) != len(first.clean):
        raise ValueError(
            f"`report` must be on the same inputs as the probes, {len(first.clean)}, got one on "
            f"{len(report.clean)}."
        )
    if all(outcome.norm != reference.norm for outcome in report.outcomes):
        raise ValueError(
            f"`report` must have an attack in the norm of the probes, {reference.norm}, got "
            f"{', '.join(outcome.label for outcome in report.outcomes)}."
        )
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


def _on_left_out(
    model: object, probes: Mapping[str, Attack], left_out: Mapping[str, str], classes: int | None
) -> Iterator[Finding]:
    """Yield findings about probes that cannot attack a model, although it has logits."""
    if not has_gradients(as_classifier(model)):
        return
    for role in left_out:
        if _uses_dlr(probes[role]) and classes is not None:
            yield few_classes(repr(probes[role]), classes, "")
    blocked = [role for role in left_out if not _uses_dlr(probes[role])]
    if blocked:
        yield make_finding(
            "no_gradient",
            "high",
            f"Torch cannot differentiate the logits of the model, so {len(blocked)} probes could "
            f"not be run: {', '.join(blocked)}.",
            probes=len(blocked),
        )


def _once_each(findings: Iterable[Finding]) -> list[Finding]:
    """Return the most severe finding of each name."""
    found: dict[str, Finding] = {}
    for finding in in_order(findings):
        found.setdefault(finding.name, finding)
    return list(found.values())
