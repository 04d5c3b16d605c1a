"""Checks of the data, the probes and the report of a diagnosis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.attack_options import measured_norm
from advkit.core.batching import Data
from advkit.core.boxes import diameter
from advkit.core.protocols import Attack
from advkit.eval.budgets import radius_of
from advkit.eval.diagnosis.comparisons import REFERENCE, ROLES, UNBOUNDED
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.report import Report


def check_data(x: object) -> None:
    """Raise unless `x` can be read again for each probe."""
    if isinstance(x, Iterator):
        raise TypeError(
            f"`x` must be data that can be read again for each probe, got {type(x).__name__}. Pass "
            "a tensor, a data set, or a list of batches."
        )


def check_probes(probes: object, x: Data, bounds: tuple[float, float]) -> None:
    """Raise unless `probes` are attacks by their role that can be compared."""
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
    _check_comparable(probes)
    if UNBOUNDED in probes:
        _check_unbounded(probes[UNBOUNDED], x, bounds)


def _check_comparable(probes: Mapping[str, Attack]) -> None:
    """Raise unless the reference is there, and the others have its norm."""
    compared = [role for role in probes if role not in (REFERENCE, UNBOUNDED)]
    if compared and REFERENCE not in probes:
        raise ValueError(
            f"`probes` must have the role {REFERENCE!r}, with which the others are compared, got "
            f"{', '.join(map(repr, probes))}."
        )
    norms = {role: measured_norm(probes[role]) for role in probes if role != UNBOUNDED}
    for role, norm in norms.items():
        if norm and norms[REFERENCE] and norm != norms[REFERENCE]:
            raise ValueError(
                f"`probes[{role!r}]` must have the norm of {REFERENCE!r}, {norms[REFERENCE]}, got "
                f"{norm}."
            )


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


def check_report(report: object) -> None:
    """Raise unless `report` is a report or `None`."""
    if report is not None and not isinstance(report, Report):
        raise TypeError(
            f"`report` must be the report of an evaluation, got {type(report).__name__}."
        )


def check_same_inputs(report: Report, probed: Report) -> None:
    """Raise unless a report is on the inputs of the probes, with the same clean predictions."""
    if len(report.clean) != len(probed.clean):
        raise ValueError(
            f"`report` must be on the same inputs as the probes, {len(probed.clean)}, got one on "
            f"{len(report.clean)}."
        )
    others = int((report.inputs.sha256 != probed.inputs.sha256).any(0).sum())
    if others:
        raise ValueError(
            f"`report` must be on the same inputs as the probes, got one with {others} other ones "
            f"of {len(report.clean)}, or in another order."
        )
    different = int((report.clean != probed.clean).sum())
    if different and not (probed.checks is not None and probed.checks.random.any()):
        raise ValueError(
            "`report` must be on the same inputs as the probes, got one with other clean "
            f"predictions for {different} of {len(report.clean)} inputs."
        )


def check_same_budget(report: Report, reference: AttackOutcome) -> None:
    """Raise unless a report has the budget of `reference`, or minimum-norm attacks in its norm."""
    for outcome in report.outcomes:
        same = torch.isclose(outcome.radius, reference.radius, rtol=1e-6)[reference.attacked]
        if outcome.norm == reference.norm and (outcome.minimum_norm or bool(same.all())):
            return
    raise ValueError(
        f"`report` must have the budget of the probes, {reference.budget}, or a minimum-norm "
        f"attack in {reference.norm}, got {', '.join(o.label for o in report.outcomes)}."
    )


def another_order() -> ValueError:
    """Return the error for data that comes in another order each time."""
    return ValueError(
        "`x` must come in the same order each time it is read, got other ones for the next probe. "
        "Create the DataLoader with shuffle=False, and draw no random augmentations."
    )
