"""Cards of the page of a report: the answer for each threat model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from advkit.core.boxes import format_norm
from advkit.eval.accuracy import Rate
from advkit.eval.evidence.gate import Gate
from advkit.eval.page.content import AttackGroup, AttackRow, Bar, Card, CardGroup
from advkit.eval.page.wording import (
    attacker_phrase,
    distance_text,
    interval,
    norm_meaning,
    percent,
    share,
)
from advkit.eval.robustness.outcome import NearestExamples
from advkit.eval.robustness.page_budgets import ShownBudget
from advkit.eval.text_tables import format_count

_MOST_NAMES = 2  # of attacks in a sentence


def card_groups(cards: Sequence[tuple[str, Card]]) -> tuple[CardGroup, ...]:
    """Return the cards with their norms, grouped by norm."""
    groups: dict[str, list[Card]] = {}
    for norm, card in cards:
        groups.setdefault(norm, []).append(card)
    return tuple(
        CardGroup(title=format_norm(norm), meaning=norm_meaning(norm), cards=tuple(own))
        for norm, own in groups.items()
    )


def budget_card(
    number: int,
    shown: ShownBudget,
    group: AttackGroup,
    clean: Rate,
    bounds: tuple[float, float],
    gates: Sequence[Gate],
) -> Card:
    """Return the card of a budget.

    Args:
        number: number of the card.
        shown: the budget.
        group: results of the attacks within it.
        clean: clean accuracy.
        bounds: lower and upper bound of the inputs.
        gates: conditions on all budgets.
    """
    robust = group.worst_case
    assert robust is not None  # the group has a budget
    return Card(
        id=f"card-{number}",
        title=shown.title,
        short=shown.short,
        headline=percent(robust) if robust.total else "no inputs",
        caption=f"robust accuracy, 95 % interval {interval(robust)}",
        bars=_bars(clean, group.noise, robust),
        sentences=(
            _meaning(robust, attacker_phrase(shown.budget.norm, shown.eps, bounds)),
            _strongest_sentence(group),
        ),
        gates=tuple(_retitled(gate, shown) for gate in gates if gate.budget == shown.text),
    )


def _retitled(gate: Gate, shown: ShownBudget) -> Gate:
    """Return the gate with the budget named as on the page."""
    name, message = (text.replace(shown.text, shown.title) for text in (gate.name, gate.message))
    return gate._replace(name=name, message=message)


def _bars(clean: Rate, noise: Rate | None, robust: Rate) -> tuple[Bar, ...]:
    baseline = () if noise is None else (Bar(name="random noise", rate=noise, kind="noise"),)
    return (
        Bar(name="clean accuracy", rate=clean, kind="clean"),
        *baseline,
        Bar(name="robust accuracy", rate=robust, kind="robust"),
    )


def _meaning(robust: Rate, phrase: str) -> str:
    """Return the sentence that says what the robust accuracy is; `phrase` names the attacker."""
    stay = "stays" if robust.count == 1 else "stay"
    inputs = format_count(robust.total, "input")
    return f"Of {inputs}, {robust.count:,} {stay} correctly labeled when {phrase}."


def _strongest_sentence(group: AttackGroup) -> str:
    """Return the sentence on the strongest attacks within a budget."""
    strongest = [row for row in group.rows if row.strongest]
    if not any(row.success.total for row in group.rows):
        return "No input was attacked, because none is labeled correctly."
    if not strongest:
        return "No attack with this budget found an adversarial example."
    alone, robust = strongest[0].robust, group.worst_case
    assert alone is not None  # the group has a budget
    assert robust is not None
    one = len(strongest) == 1
    subject = "Strongest attack" if one else "Strongest attacks, equally"
    sentence = f"{subject}: {_names(strongest)}, with {share(alone)} left."
    if robust.count < alone.count:
        others = "this attack" if one else "each of them"
        sentence += f" All attacks in the norm together fool more inputs than {others} alone."
    return sentence


def _names(rows: Sequence[AttackRow]) -> str:
    """Return the names of the first attacks, and the number of the others."""
    names = ", ".join(row.name for row in rows[:_MOST_NAMES])
    more = len(rows) - _MOST_NAMES
    return f"{names} and {more} more" if more > 0 else names


def distance_card(
    number: int, norm: str, nearest: NearestExamples, clean: Rate, group: AttackGroup
) -> Card:
    """Return the card of a norm with minimum-norm attacks alone.

    Args:
        number: number of the card.
        norm: the norm.
        nearest: nearest adversarial examples of all attacks in the norm.
        clean: clean accuracy.
        group: results of these attacks.
    """
    success, title = nearest.success_rate, format_norm(norm)
    headline, caption, sentence = _distance_words(nearest, title)
    strongest = [row for row in group.rows if row.strongest]
    return Card(
        id=f"card-{number}",
        title=f"{title}, any distance",
        short="median distance",
        headline=headline,
        caption=caption,
        bars=(
            Bar(name="clean accuracy", rate=clean, kind="clean"),
            Bar(name="attacked inputs with an adversarial example", rate=success, kind="success"),
        ),
        sentences=(
            sentence,
            *([f"Strongest: {_names(strongest)}."] if strongest else []),
        ),
    )


def _distance_words(nearest: NearestExamples, norm: str) -> tuple[str, str, str]:
    """Return headline, caption and sentence on the median distance."""
    median, success = nearest.median_distance, nearest.success_rate
    if median is None:
        return "no inputs", "no input was attacked", "No input is labeled correctly without attack."
    found = f"{success.count:,} of {success.total:,} attacked inputs"
    if math.isinf(median):
        return (
            "More than half of the inputs have no known adversarial example",
            f"attack success rate {percent(success)}, 95 % interval {interval(success)}",
            f"The attacks found an adversarial example for {found}. The median distance is not "
            "known, because more than half of them have none.",
        )
    return (
        distance_text(median),
        f"median distance in {norm}",
        f"At least half of the attacked inputs have an adversarial example within an {norm} "
        f"distance of {distance_text(median)}. The attacks found one for {found}.",
    )


def general_gates(gates: Sequence[Gate], budgets: Sequence[ShownBudget]) -> tuple[Gate, ...]:
    """Return the gates that do not belong to the card of a budget."""
    known = {shown.text for shown in budgets}
    return tuple(gate for gate in gates if gate.budget not in known)
