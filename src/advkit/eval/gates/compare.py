"""Comparison of two reports on the same inputs, input by input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from advkit.eval.accuracy import Rate
from advkit.eval.gates.comparison import (
    ComparedReport,
    Comparison,
    DistanceComparison,
    RateComparison,
)
from advkit.eval.gates.differences import differences
from advkit.eval.gates.exact_tests import holm, sign_test
from advkit.eval.gates.matching import (
    check_report,
    check_same_inputs,
    common_budgets,
    common_norms,
    in_order,
)
from advkit.eval.robustness.outcome import DISTANCE_TOLERANCE
from advkit.eval.robustness.report import Report
from advkit.eval.robustness.worst_case import budgets_of, nearest_distances, robust_within


def compare(old: Report, new: Report) -> Comparison:
    """Compare two reports on the same inputs, and test whether the robust accuracy fell.

    For each budget of both reports, inputs that are robust in one report alone decide. If chance
    alone decided about them, half would be lost. The p-value of the exact one-sided test of McNemar
    is adjusted by Holm for the number of budgets, and `worse` means that one is below 5 %.
    Inputs are matched by their numbers. Clean accuracy and the distances of minimum-norm attacks
    are compared for information and are not part of the verdict.

    Args:
        old: report on the model before a change.
        new: report on the model after it, on the same inputs in the same order.

    Returns:
        A comparison that prints as a table and converts to a dict.

    Raises:
        ValueError: the reports are on different inputs or labels, or have neither a budget nor a
            norm of minimum-norm attacks in common.
        TypeError: an argument is not a report.

    References:
        Q. McNemar, "Note on the sampling error of the difference between correlated proportions
        or percentages", Psychometrika 12, 1947.
        S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
        Statistics 6, 1979.

    Example:
        >>> import torch
        >>> from advkit import attacks, eval
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.eye(2))
        >>> x, y = torch.tensor([[0.9, 0.1], [0.6, 0.5]]), torch.tensor([0, 0])
        >>> old = eval.evaluate(net, x, y, attacks=[attacks.FGSM(eps=0.01)])
        >>> _ = net.weight.data[1, 1].mul_(1.18)
        >>> new = eval.evaluate(net, x, y, attacks=[attacks.FGSM(eps=0.01)])
        >>> comparison = eval.compare(old, new)
        >>> comparison.by_budget["linf 0.01"].lost
        tensor([1])
        >>> comparison.worse  # one input of two may be chance
        False
    """
    check_report("old", old)
    check_report("new", new)
    check_same_inputs("new", new, "old", old)
    budgets, norms = common_budgets(old, new), common_norms(old, new)
    if not budgets and not norms:
        raise ValueError(
            "`new` must have a budget or a norm of minimum-norm attacks in common with `old`, got "
            f"{_listed(new)} after {_listed(old)}."
        )
    return Comparison(
        inputs=len(old.inputs),
        old=_origin(old),
        new=_origin(new),
        clean=_compared("clean accuracy", old, new, old.clean, new.clean),
        budgets=tuple(_adjusted(_in_budget(text, old, new) for text in budgets)),
        distances=tuple(_in_norm(norm, old, new) for norm in norms),
        only_old=tuple(text for text in old.worst_cases if text not in budgets),
        only_new=tuple(text for text in new.worst_cases if text not in budgets),
        differences=tuple(differences(old, new)),
    )


def _listed(report: Report) -> str:
    """Return the budgets of a report and the norms of its minimum-norm attacks as text."""
    norms = [f"nearest in {norm}" for norm in report.nearest]
    return "; ".join([*report.worst_cases, *norms])


def _origin(report: Report) -> ComparedReport:
    return ComparedReport(report.model, report.provenance.date, report.provenance.weights)


def _adjusted(compared: Iterator[RateComparison]) -> Iterator[RateComparison]:
    """Yield comparisons with p-values adjusted for their number."""
    found = list(compared)
    for one, p in zip(found, holm([each.p_value for each in found]), strict=True):
        yield replace(one, adjusted_p=p)


def _in_budget(text: str, old: Report, new: Report) -> RateComparison:
    """Compare the robust accuracy under all attacks within one budget."""
    masks = (
        robust_within(budgets_of(report.outcomes)[text], report.clean, report.outcomes)
        for report in (old, new)
    )
    return _compared(text, old, new, *masks)


def _compared(
    name: str, old: Report, new: Report, mask: Tensor, new_mask: Tensor
) -> RateComparison:
    """Compare two masks `(n,)` in the orders of their reports."""
    before, after = mask[in_order(old)], new_mask[in_order(new)]
    numbers = old.inputs.index[in_order(old)]
    lost, gained = numbers[before & ~after], numbers[after & ~before]
    p = sign_test(len(lost), len(gained))
    return RateComparison(
        name=name, old=Rate.of(before), new=Rate.of(after), lost=lost, gained=gained, p_value=p,
        adjusted_p=p,
    )  # fmt: skip


def _in_norm(norm: str, old: Report, new: Report) -> DistanceComparison:
    """Compare the nearest examples of minimum-norm attacks; equal up to rounding is not nearer."""
    before, after = (_nearest(norm, report)[in_order(report)] for report in (old, new))
    nearer = int((after * (1 + DISTANCE_TOLERANCE) < before).sum())
    farther = int((before * (1 + DISTANCE_TOLERANCE) < after).sum())
    return DistanceComparison(
        norm=norm,
        old=old.nearest[norm].median_distance,
        new=new.nearest[norm].median_distance,
        nearer=nearer,
        farther=farther,
        p_value=sign_test(nearer, farther),
    )


def _nearest(norm: str, report: Report) -> Tensor:
    """Return the distance `(n,)` of the nearest example, 0 for a misclassified input."""
    found = nearest_distances([o for o in report.minimum_norm if o.norm == norm])
    return torch.where(report.clean, found, 0.0)
