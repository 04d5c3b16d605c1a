"""Comparison of minimum-norm attacks with the nearest examples that any of them found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from advkit.core import checks
from advkit.core.naming import assign_names
from advkit.eval.benchmarking.comparison import AttackComparison, ComparedAttack, Criterion
from advkit.eval.benchmarking.distances import area_optimality, mean_distance_ratio
from advkit.eval.budgets import no_minimum_norm
from advkit.eval.robustness.outcome import AttackOutcome, NearestExamples
from advkit.eval.robustness.report import Report
from advkit.eval.robustness.worst_case import nearest_distances

Reports = Report | Sequence[Report] | Mapping[str, Report]


def distance_ratio(reports: Reports) -> AttackComparison:
    """Compare minimum-norm attacks by their distances, input by input.

    The distance ratio of an attack is the mean of the distance of the nearest example that any
    attack found over its own distance. It is 1 for an attack that found the nearest example of
    every input. A failure counts as an infinite distance, a ratio of 0. Two distances of zero have
    the ratio 1. Inputs on which every attack failed are left out.

    Attacks are compared in the same norm. The nearest example may be that of any attack of the
    reports in this norm, budget attacks included. The ratio therefore depends on the attacks that
    it is compared with.

    Args:
        reports: a result of `evaluate`, or several of the same model and inputs: a list, or a dict
            with a name for each, which the names of the attacks then begin with.

    Returns:
        Distance ratio, optimality, attack success rate and median distance of each minimum-norm
        attack, sorted by the distance ratio. They print as a table.

    Raises:
        ValueError: the reports are of different models or inputs, as far as they record them: the
            number of inputs and the mask of those that are labeled correctly. Also raised without a
            report or a minimum-norm attack.
        TypeError: `reports` is not a report and does not hold reports.

    Example:
        >>> import torch
        >>> from advkit import attacks, eval
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        >>> x, y = torch.tensor([[0.6, 0.5], [0.2, 0.6]]), torch.tensor([0, 1])
        >>> far = attacks.CarliniWagnerL2(confidence=0.5)  # beyond the boundary
        >>> report = eval.evaluate(net, x, y, attacks=[far, attacks.FAB()])
        >>> {name: round(ratio, 2) for name, ratio in eval.distance_ratio(report).by_name.items()}
        {'FAB()': 1.0, 'CarliniWagnerL2(confidence=0.5)': 0.43}
    """
    return _compare(reports, "distance_ratio")


def optimality(reports: Reports) -> AttackComparison:
    """Compare minimum-norm attacks by the local optimality of AttackBench.

    The optimality of an attack compares areas under curves of robust accuracy against eps. With the
    area A of the attack and the area A* of the lower envelope of all attacks, both up to the eps at
    which the envelope ends, it is 1 - (A - A*) / (clean accuracy * eps - A*). It is 1 for an attack
    that found the nearest example of every input, and 0 for one that found nothing up to this eps.
    The envelope is that of all attacks of the reports in the norm, budget attacks included.

    Deviations from AttackBench:

    - The areas are those of the exact step functions. AttackBench joins the steps by straight
      lines.
    - Where every attack failed on some inputs, eps is the greatest distance of the nearest examples
      of the others. The original formula is undefined there.

    Args:
        reports: a result of `evaluate`, or several of the same model and inputs: a list, or a dict
            with a name for each, which the names of the attacks then begin with.

    Returns:
        Distance ratio, optimality, attack success rate and median distance of each minimum-norm
        attack, sorted by the optimality. They print as a table. The optimality is NaN if all
        nearest examples are at the same distance, where the formula is 0 / 0.

    Raises:
        ValueError: the reports are of different models or inputs, as far as they record them: the
            number of inputs and the mask of those that are labeled correctly. Also raised without a
            report or a minimum-norm attack.
        TypeError: `reports` is not a report and does not hold reports.

    References:
        Cinà et al., "AttackBench: Evaluating Gradient-based Attacks for Adversarial Examples",
        2024, arXiv:2404.19460.

    Example:
        >>> import torch
        >>> from advkit import attacks, eval
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        >>> x, y = torch.tensor([[0.6, 0.5], [0.2, 0.6]]), torch.tensor([0, 1])
        >>> far = attacks.CarliniWagnerL2(confidence=0.2)  # beyond the boundary
        >>> report = eval.evaluate(net, x, y, attacks=[far, attacks.FAB()])
        >>> {name: round(value, 2) for name, value in eval.optimality(report).by_name.items()}
        {'FAB()': 1.0, 'CarliniWagnerL2(confidence=0.2)': 0.6}
    """
    return _compare(reports, "optimality")


class _Entry(NamedTuple):
    """Outcome of an attack with its name in the comparison."""

    name: str
    outcome: AttackOutcome


def _compare(reports: Reports, criterion: Criterion) -> AttackComparison:
    entries = _entries(_checked(reports))
    norms = dict.fromkeys(e.outcome.norm for e in entries if e.outcome.minimum_norm)
    if not norms:
        raise no_minimum_norm("reports", [entry.outcome.label for entry in entries])
    groups = {norm: [e for e in entries if e.outcome.norm == norm] for norm in norms}
    return AttackComparison(
        criterion=criterion,
        attacks=tuple(a for group in groups.values() for a in _ranked(group, criterion)),
        nearest={n: NearestExamples.of([e.outcome for e in g]) for n, g in groups.items()},
    )


def _ranked(entries: Sequence[_Entry], criterion: Criterion) -> list[ComparedAttack]:
    """Return the minimum-norm attacks of a norm, the best first."""
    nearest = nearest_distances([entry.outcome for entry in entries])
    attacks = [_compared(entry, nearest) for entry in entries if entry.outcome.minimum_norm]

    def key(attack: ComparedAttack) -> tuple[bool, float]:
        value = getattr(attack, criterion)
        return math.isnan(value), -value

    return sorted(attacks, key=key)


def _compared(entry: _Entry, nearest: Tensor) -> ComparedAttack:
    outcome = entry.outcome
    distance = nearest_distances([outcome])
    return ComparedAttack(
        name=entry.name,
        norm=outcome.norm,
        success_rate=outcome.success_rate,
        median_distance=outcome.median_distance,
        distance_ratio=mean_distance_ratio(distance, nearest),
        optimality=area_optimality(distance, nearest, outcome.attacked),
    )


def _entries(reports: Sequence[tuple[str, Report]]) -> list[_Entry]:
    """Return all outcomes with unique names: a name that occurs again gets a number."""
    seen: Counter[str] = Counter()
    entries = []
    for prefix, report in reports:
        for outcome in report.outcomes:
            name = f"{prefix}{outcome.label}"
            seen[name] += 1
            entries.append(_Entry(name if seen[name] == 1 else f"{name} ({seen[name]})", outcome))
    return entries


def _checked(reports: Reports) -> list[tuple[str, Report]]:
    """Return the reports with the prefixes of the names of their attacks.

    Raises:
        ValueError: the reports are of different models or inputs, or there is none.
        TypeError: `reports` is not a report and does not hold reports.
    """
    several = [reports] if isinstance(reports, Report) else reports
    named = assign_names("reports", several, {}, kind="report", short=lambda _: "report")
    for name, report in named.items():
        if not isinstance(report, Report):
            raise TypeError(
                f"`reports` must hold results of `evaluate`, got {type(report).__name__} ({name})."
            )
    first, *others = named
    for name in others:
        _check_same_model(named, first, name)
        _check_same_inputs(named, first, name)
    has_names = isinstance(reports, Mapping)
    return [(f"{name}: " if has_names else "", report) for name, report in named.items()]


def _check_same_model(named: Mapping[str, Report], first: str, other: str) -> None:
    models = named[first].model, named[other].model
    if models[0] != models[1]:
        raise ValueError(
            f"`reports` must be of one model, got {models[0]} in {first!r} and {models[1]} in "
            f"{other!r}. Distances to the boundaries of two models are not comparable."
        )


def _check_same_inputs(named: Mapping[str, Report], first: str, other: str) -> None:
    clean, others = named[first].clean, named[other].clean
    if len(clean) != len(others):
        raise ValueError(
            f"`reports` must be of the same inputs, got {len(clean):,} inputs in {first!r} and "
            f"{len(others):,} in {other!r}. Evaluate all attacks on the same `x` and `y`."
        )
    different = clean != others
    if different.any():
        raise ValueError(
            f"`reports` must be of the same inputs, got different ones in {first!r} and {other!r}: "
            f"only one labels {checks.samples(different)} correctly. Evaluate all attacks on the "
            "same `x` and `y`, with a model that does not draw random numbers."
        )
