"""Budgets of a report in the words of its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advkit.core.boxes import format_norm
from advkit.eval.page.wording import budget_title, radius_text
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.worst_case import Budget, budget_texts, budgets_of


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownBudget:
    """A budget of a report, with the attacks that were run within it.

    Attributes:
        text: the budget as in `worst_cases` of the report.
        title: the budget as the page names it.
        short: the budget without its norm.
        eps: the budget in input units; `None` for one `eps` for each input.
        budget: norm and radius of each input.
        outcomes: outcomes of the attacks with this budget.
    """

    text: str
    title: str
    short: str
    eps: float | None
    budget: Budget
    outcomes: tuple[AttackOutcome, ...]


def shown_budgets(
    outcomes: Sequence[AttackOutcome], bounds: tuple[float, float]
) -> list[ShownBudget]:
    """Return the budgets of `outcomes`, by norm as they come, and in a norm by increasing eps."""
    texts, budgets = budget_texts(outcomes), budgets_of(outcomes)
    found = []
    for text, budget in budgets.items():
        inside = tuple(o for o, own in zip(outcomes, texts, strict=True) if own == text)
        found.append(_shown(text, budget, inside, bounds))
    norms = list(dict.fromkeys(outcome.norm for outcome in outcomes))
    # budgets of their own for each input come last
    return sorted(
        found, key=lambda b: (norms.index(b.budget.norm), b.eps is None, b.eps or 0.0, b.text)
    )


def _shown(
    text: str, budget: Budget, outcomes: tuple[AttackOutcome, ...], bounds: tuple[float, float]
) -> ShownBudget:
    eps, norm = outcomes[0].eps, budget.norm
    title = text if eps is None else budget_title(norm, eps, bounds)
    short = text.removeprefix(f"{format_norm(norm)}, ") if eps is None else radius_text(eps, bounds)
    return ShownBudget(
        text=text, title=title, short=short, eps=eps, budget=budget, outcomes=outcomes
    )
