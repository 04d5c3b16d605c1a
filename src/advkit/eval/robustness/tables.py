"""Tables of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advkit.core.boxes import format_norm
from advkit.eval.accuracy import Rate
from advkit.eval.robustness.outcome import AttackOutcome, NearestExamples
from advkit.eval.text_tables import Table, format_distance, format_mean, format_rate

_COSTS = ("median\ndistance", "forward\nper input", "backward\nper input", "seconds")


def budget_table(
    outcomes: Sequence[AttackOutcome],
    worst_cases: Mapping[str, Rate],
    noise: Mapping[str, Rate],
) -> Table:
    """Return the table of attacks with a budget.

    Args:
        outcomes: outcomes of these attacks.
        worst_cases: robust accuracy under all attacks within a budget, by budget.
        noise: robust accuracy under random noise within a budget, by budget.
    """
    summary = {f"worst case, {budget}": rate for budget, rate in worst_cases.items()}
    return Table(
        "Budget attacks: robust accuracy within a perturbation budget",
        ("attack", "norm", "robust\naccuracy", *_COSTS),
        [_row(outcome, outcome.robust_accuracy) for outcome in outcomes],
        _rates(summary),
        _rates({f"random noise, {budget}": rate for budget, rate in noise.items()}),
    )


def _rates(named: Mapping[str, Rate]) -> list[tuple[str, ...]]:
    """Return rows with a name and a rate, and no cost."""
    return [(name, "", format_rate(rate), *[""] * len(_COSTS)) for name, rate in named.items()]


def minimum_table(
    outcomes: Sequence[AttackOutcome], nearest: Mapping[str, NearestExamples]
) -> Table:
    """Return the table of minimum-norm attacks.

    Args:
        outcomes: outcomes of these attacks.
        nearest: nearest adversarial examples of all attacks in a norm, by norm; shown for norms
            with more than one attack.
    """
    return Table(
        "Minimum-norm attacks: distance to the nearest adversarial example",
        ("attack", "norm", "attack\nsuccess rate", *_COSTS),
        [_row(outcome, outcome.success_rate) for outcome in outcomes],
        [
            (f"nearest of all attacks, {format_norm(norm)}", format_norm(norm),
             format_rate(n.success_rate), format_distance(n.median_distance), "", "", "")
            for norm, n in nearest.items() if n.attacks > 1
        ],
    )  # fmt: skip


def _row(outcome: AttackOutcome, rate: Rate) -> tuple[str, ...]:
    return (
        outcome.label,
        format_norm(outcome.norm),
        format_rate(rate),
        format_distance(outcome.median_distance),
        format_mean(outcome.mean_of_attacked(outcome.forward)),
        format_mean(outcome.mean_of_attacked(outcome.backward)),
        f"{outcome.seconds:.2f}",
    )
