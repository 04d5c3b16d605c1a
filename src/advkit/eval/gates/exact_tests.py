"""Exact tests of paired outcomes, and the adjustment of several p-values."""

from __future__ import annotations

from collections.abc import Sequence

LEVEL = 0.05  # p-values below it are more than chance explains


def sign_test(worse: int, better: int) -> float:
    """Return the p-value of `worse` pairs against `better` ones, one-sided and exact.

    If chance alone decides about each pair that changed, the number of those that got worse is
    binomial with probability one half. The p-value is the probability of at least `worse` of them.
    For pairs of outcomes that are right or wrong this is the exact test of McNemar.

    Returns:
        A probability in (0, 1]; 1 if no pair changed.

    References:
        Q. McNemar, "Note on the sampling error of the difference between correlated proportions
        or percentages", Psychometrika 12, 1947.

    Example:
        >>> sign_test(5, 0) == 1 / 32
        True
    """
    from scipy.stats import binomtest  # here, since it takes a second to import

    if not worse + better:
        return 1.0
    return float(binomtest(worse, worse + better, 0.5, alternative="greater").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number, in the given order.

    With the adjustment, the probability that chance alone puts any of them below a level is at
    most that level.

    References:
        S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
        Statistics 6, 1979.

    Example:
        >>> holm([0.25, 0.125])
        [0.25, 0.25]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, position in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[position])
        adjusted[position] = min(1.0, largest)
    return adjusted
