"""Robust accuracies that a report must have, by budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from advkit.core import checks
from advkit.eval.budgets import format_budget, parse_budget

FailUnder = float | Mapping[str, float]


def thresholds(fail_under: FailUnder, budgets: Sequence[str]) -> dict[str, float]:
    """Return the least robust accuracy for each budget that `fail_under` names.

    Args:
        fail_under: a share in [0, 1] for the only budget, or shares by budget. A budget may be
            spelled otherwise than in a report, such as "Linf 8/255".
        budgets: texts of the budgets of a report.

    Raises:
        ValueError: a share is outside [0, 1], a budget is unknown or given twice, or there are
            several budgets for a single share.
        TypeError: a share is not a number, or a budget not a text.

    Example:
        >>> thresholds({"Linf 8/255": 0.45}, ["linf 0.0313725", "l2 0.5"])
        {'linf 0.0313725': 0.45}
    """
    if not budgets:
        raise ValueError(
            "`fail_under` must be about a budget, got minimum-norm attacks alone. Add an attack "
            "with an `eps`."
        )
    if not isinstance(fail_under, Mapping):
        check_share(fail_under)
        return {_only(fail_under, budgets): float(fail_under)}
    found: dict[str, float] = {}
    for text, share in fail_under.items():
        check_share(share)
        budget = _known(text, budgets)
        if budget in found:
            raise ValueError(f"`fail_under` must have each budget once, got {budget!r} twice.")
        found[budget] = float(share)
    if not found:
        raise ValueError("`fail_under` must have at least one budget, got none.")
    return found


def check_share(share: object) -> None:
    """Raise unless a robust accuracy to reach is a number in [0, 1]."""
    checks.number("fail_under", share)
    value = float(share)  # type: ignore[arg-type]  # checked to be a number
    if not 0 <= value <= 1:
        percent = 1 < value <= 100
        advice = f" Write {value / 100:g} for {value:g} %." if percent else ""
        raise ValueError(f"`fail_under` must be a share in [0, 1], got {value:g}.{advice}")


def _only(share: float, budgets: Sequence[str]) -> str:
    """Return the only budget."""
    if len(budgets) > 1:
        mapping = ", ".join(f"{budget!r}: {float(share):g}" for budget in budgets)
        raise ValueError(
            "`fail_under` must name its budgets if there are several, got one number for "
            f"{'; '.join(budgets)}. Pass a mapping, such as {{{mapping}}}."
        )
    return budgets[0]


def _known(text: str, budgets: Sequence[str]) -> str:
    """Return the one of `budgets` that `text` means."""
    if not isinstance(text, str):
        raise TypeError(f"`fail_under` must have texts as keys, got {text!r}.")
    if text in budgets:
        return text
    with suppress(ValueError):
        norm, eps = parse_budget(text)
        found = format_budget(norm, eps)
        if found in budgets:
            return found
    raise ValueError(
        f"`fail_under` must name budgets of the report, got {text!r}. They are "
        f"{'; '.join(budgets)}."
    )
