"""Conditions on a report: a least robust accuracy, and none that fell by more than chance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from advkit.eval.evidence.gate import Gate
from advkit.eval.gates.compare import compare
from advkit.eval.gates.comparison import RateComparison
from advkit.eval.gates.matching import check_report, check_same_inputs, common_budgets
from advkit.eval.gates.thresholds import FailUnder, thresholds
from advkit.eval.robustness.report import Report


def gate(
    report: Report, *, fail_under: FailUnder | None = None, against: Report | None = None
) -> Report:
    """Return a copy of a report with the conditions that it must meet, and whether it does.

    The gates of the copy are those of this call. A build fails unless `passed` is true. A report of
    an interrupted evaluation passes no gate, since its evidence is incomplete.

    Args:
        report: report of an evaluation.
        fail_under: least robust accuracy, a share in [0, 1]: a number for the only budget, or
            numbers by budget, as in `report.worst_cases`. Other spellings of a budget, such as
            "Linf 8/255", are understood. The figure itself is tested, not an end of its interval.
        against: older report on the same inputs. In no common budget may the robust accuracy have
            fallen by more than chance explains: see `compare`.

    Returns:
        A report that is equal except for its `gates`.

    Raises:
        ValueError: neither condition is given, a share is outside [0, 1], a budget is unknown, or
            `against` is interrupted, is on other inputs, or has no budget in common with `report`.
        TypeError: an argument has the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks, eval
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.eye(2))
        >>> x, y = torch.tensor([[0.9, 0.1], [0.6, 0.5]]), torch.tensor([0, 0])
        >>> report = eval.evaluate(net, x, y, attacks=[attacks.FGSM(eps=0.1)])
        >>> gated = eval.gate(report, fail_under=0.6)
        >>> gated.passed
        False
        >>> print(gated.gates[0])
        FAILED  linf 0.1 at least 60 %: robust accuracy 50.00 % (1 of 2) is below 60 %.
    """
    if not isinstance(report, Report):
        raise TypeError(f"`report` must be a Report, got {type(report).__name__}.")
    if fail_under is None and against is None:
        raise ValueError("`fail_under` or `against` must be given, got neither.")
    gates = []
    if fail_under is not None:
        least = thresholds(fail_under, list(report.worst_cases))
        gates += [_at_least(report, budget, share) for budget, share in least.items()]
    if against is not None:
        check_baseline(against)
        gates += _not_worse(report, against)
    message = _incomplete(report)
    if message:
        gates = [each._replace(passed=False, message=message) for each in gates]
    return replace(report, gates=tuple(gates))


def check_baseline(against: object) -> None:
    """Raise unless `against` is a report on all inputs of its evaluation, with a budget."""
    check_report("against", against)
    assert isinstance(against, Report)  # checked
    if message := _incomplete(against):
        raise ValueError(
            f"`against` must be a complete report, got an interrupted one: {message} Evaluate all "
            "inputs."
        )
    if not against.worst_cases:
        raise ValueError(
            "`against` must have attacks with a budget, got minimum-norm attacks alone."
        )


def _incomplete(report: Report) -> str:
    """Return the clause that says which inputs are missing, empty for a complete report."""
    n = len(report.inputs)
    if report.total is not None and n < report.total:
        return f"{n:,} of {report.total:,} inputs were evaluated; the evidence is incomplete."
    return "" if n else "no input was evaluated."


def _at_least(report: Report, budget: str, share: float) -> Gate:
    rate, least = report.worst_cases[budget], f"{100 * share:g} %"
    passed = float(rate) >= share
    text = f"is at least {least}" if passed else f"is below {least}"
    return Gate(f"{budget} at least {least}", budget, passed, f"robust accuracy {rate} {text}.")


def _not_worse(report: Report, against: Report) -> list[Gate]:
    """Return a gate for each common budget."""
    incomplete = bool(_incomplete(report))
    if incomplete:  # its inputs cannot be compared
        budgets = [budget for budget in against.worst_cases if budget in report.worst_cases]
    else:
        check_same_inputs("against", against, "report", report)
        budgets = common_budgets(against, report)
    if not budgets:
        raise no_common_budget(against.worst_cases, report.worst_cases)
    if incomplete:
        return [Gate(_name(budget), budget, False, "") for budget in budgets]
    comparison = compare(against, report)
    notes = "".join(f" {sentence}" for sentence in comparison.differences)
    return [_compared_gate(compared, notes) for compared in comparison.budgets]


def _compared_gate(compared: RateComparison, notes: str) -> Gate:
    """Return the gate of one budget; a failed one says what else differs."""
    change = f"robust accuracy {compared.change}"
    if compared.worse:
        message = f"{change}. That is more than chance explains.{notes}"
    else:
        message = f"{change}. It did not fall by more than chance explains."
    return Gate(_name(compared.name), compared.name, not compared.worse, message)


def no_common_budget(old: Iterable[str], new: Iterable[str]) -> ValueError:
    """Return the error for an older report whose budgets a report does not have."""
    return ValueError(
        f"`against` must have a budget in common with the report, got {'; '.join(old)}; the report "
        f"has {'; '.join(new) or 'none'}."
    )


def _name(budget: str) -> str:
    return f"{budget} not worse"
