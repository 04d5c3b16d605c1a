"""The tables of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advkit.eval.accuracy import Rate
from advkit.eval.robustness.outcome import AttackOutcome, Nearest
from advkit.eval.text_tables import Table, length, mean, share

_COSTS = ("median\ndistance", "forward\nper input", "backward\nper input", "seconds")


def budget_table(
    outcomes: Sequence[AttackOutcome],
    worst: Mapping[str, Rate],
    over_all: Rate,
    noise: Mapping[str, Rate],
) -> Table:
    """Attacks with a budget.

    Args:
        outcomes: of these attacks.
        worst: robust accuracy against all that share a budget, by its words.
        over_all: the same against everything.
        noise: accuracy under random noise within a budget, by its words.
    """
    summary = {f"worst case, {budget}": rate for budget, rate in worst.items()}
    summary["worst case over all"] = over_all
    return Table(
        "Budget attacks: how many inputs withstand them",
        ("attack", "norm", "robust\naccuracy", *_COSTS),
        [_row(outcome, outcome.robust_accuracy) for outcome in outcomes],
        _rates(summary),
        _rates({f"random noise, {budget}": rate for budget, rate in noise.items()}),
    )


def _rates(named: Mapping[str, Rate]) -> list[tuple[str, ...]]:
    """Rows that have a rate and nothing more."""
    return [(words, "", share(rate), *[""] * len(_COSTS)) for words, rate in named.items()]


def minimum_table(outcomes: Sequence[AttackOutcome], nearest: Mapping[str, Nearest]) -> Table:
    """Minimum-norm attacks.

    Args:
        outcomes: of these attacks.
        nearest: what all of a norm found, by the norm; shown where that is more than one.
    """
    return Table(
        "Minimum-norm attacks: how near adversarial examples are",
        ("attack", "norm", "success", *_COSTS),
        [_row(outcome, outcome.success_rate) for outcome in outcomes],
        [
            (f"nearest of all, {norm}", norm, share(n.success_rate), length(n.median_distance),
             "", "", "")
            for norm, n in nearest.items() if n.attacks > 1
        ],
    )  # fmt: skip


def _row(outcome: AttackOutcome, rate: Rate) -> tuple[str, ...]:
    return (
        outcome.label,
        outcome.norm,
        share(rate),
        length(outcome.median_distance),
        mean(outcome.sent(outcome.forward)),
        mean(outcome.sent(outcome.backward)),
        f"{outcome.seconds:.2f}",
    )
