"""Inputs, budgets and norms that two reports have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from advkit.core.naming import argument
from advkit.eval.robustness.report import Report
from advkit.eval.robustness.worst_case import Budget, budgets_of


def check_report(name: str, report: object) -> None:
    """Raise unless `report`, the argument `name`, is a report on at least one input."""
    if not isinstance(report, Report):
        raise TypeError(f"{argument(name)} must be a Report, got {type(report).__name__}.")
    if not len(report.inputs):
        raise ValueError(f"{argument(name)} must be on at least one input, got none.")


def check_same_inputs(name: str, report: Report, other_name: str, other: Report) -> None:
    """Raise unless two reports are on the same inputs with the same numbers and labels.

    Args:
        name: argument that the error is about.
        report: its value.
        other_name: argument that it is compared with.
        other: its value.
    """
    wanted = f"{argument(name)} must be on the same inputs as {argument(other_name)}"
    n = len(other.inputs)
    if len(report.inputs) != n:
        raise ValueError(f"{wanted}, {n:,}, got {len(report.inputs):,}.")
    rows, other_rows = in_order(report), in_order(other)
    hashes, other_hashes = report.inputs.sha256[:, rows], other.inputs.sha256[:, other_rows]
    numbers = report.inputs.index[rows] != other.inputs.index[other_rows]
    different = int((numbers | (hashes != other_hashes).any(0)).sum())
    if different:
        raise ValueError(
            f"{wanted}, got other inputs or labels in {different:,} of {n:,} places. Evaluate the "
            "same data in the same order."
        )


def in_order(report: Report) -> Tensor:
    """Return the rows `(n,)` of a report in the order of the numbers of its inputs."""
    return report.inputs.index.argsort()


def common_budgets(old: Report, new: Report) -> list[str]:
    """Return the budgets that both of two reports on the same inputs have, as text."""
    before, after = budgets_of(old.outcomes), budgets_of(new.outcomes)
    rows = in_order(old), in_order(new)
    return [
        text
        for text, budget in before.items()
        if text in after and _have_equal_radii(budget, after[text], rows)
    ]


def _have_equal_radii(old: Budget, new: Budget, rows: tuple[Tensor, Tensor]) -> bool:
    """Return whether two budgets with the same text have the same radius for each input.

    Those of misclassified inputs, which are zero, do not count. The text has six digits.
    """
    before, after = old.radius[rows[0]], new.radius[rows[1]]
    known = (before > 0) & (after > 0)
    return torch.allclose(before[known], after[known], rtol=1e-5)


def common_norms(old: Report, new: Report) -> list[str]:
    """Return the norms in which both reports have minimum-norm attacks."""
    return [norm for norm in old.nearest if norm in new.nearest]
