"""Closed forms of the exact test and of the adjustment."""

import itertools
import math
from fractions import Fraction

import pytest

from advkit.eval.gates.exact_tests import holm, sign_test

PAIRS = list(itertools.product([0, 1, 4, 5, 17, 60], repeat=2))


def tail(worse, better):
    """Probability of at least `worse` heads in as many throws of a fair coin as there are pairs."""
    n = worse + better
    return float(Fraction(sum(math.comb(n, k) for k in range(worse, n + 1)), 2**n))


@pytest.mark.parametrize(("worse", "better"), PAIRS)
def test_it_is_the_tail_of_a_fair_coin(worse, better):
    assert sign_test(worse, better) == pytest.approx(tail(worse, better), rel=1e-12)


def test_five_losses_are_the_fewest_that_are_more_than_chance():
    assert sign_test(4, 0) == 1 / 16 > 0.05
    assert sign_test(5, 0) == 1 / 32 < 0.05
    assert sign_test(0, 0) == 1


def adjusted_by_definition(p_values):
    """Least level at which the procedure of Holm rejects each hypothesis, found by trying."""
    levels = sorted({min(1.0, factor * p) for p in p_values for factor in range(1, 9)} | {1.0})
    return [min(level for level in levels if i in rejected(p_values, level) or level == 1.0)
            for i in range(len(p_values))]  # fmt: skip


def rejected(p_values, level):
    """Hypotheses that the step-down procedure rejects at a level."""
    left, found = list(range(len(p_values))), set()
    while left:
        least = min(left, key=lambda i: p_values[i])
        if p_values[least] * len(left) > level:
            break
        found.add(least)
        left.remove(least)
    return found


@pytest.mark.parametrize(
    "p_values",
    [
        [],
        [0.04],
        [0.04, 0.01],
        [0.01, 0.04, 0.03],
        [0.02, 0.02, 0.02, 0.02],
        [0.9, 0.001, 0.02, 0.6, 0.015],
        [1.0, 1.0],
    ],
)
def test_holm_rejects_what_the_procedure_rejects(p_values):
    assert holm(p_values) == pytest.approx(adjusted_by_definition(p_values), rel=1e-12)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
