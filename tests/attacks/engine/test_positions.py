"""Random sets of positions: how many, how evenly, and independent of the batch."""

from itertools import combinations

import pytest
import torch

from advkit.attacks.engine.positions import (
    random_part,
    random_positions,
    random_positions_outside,
)

N = 6000


def keys(n=N):
    return torch.arange(n) * 7919


def sets(positions, size):
    return [tuple(sorted(v for v in row if v < size)) for row in positions.tolist()]


def evenly(found, expected):
    """Each of the `expected` sets as often as the others, by chi-square."""
    counts = torch.tensor([found.count(s) for s in expected]).double()
    assert counts.sum() == len(found), "a set that cannot be"
    mean = len(found) / len(expected)
    degrees = len(expected) - 1
    assert ((counts - mean) ** 2 / mean).sum() < degrees + 4 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("count", [1, 2, 4])
def test_all_sets_are_equally_likely(count):
    counts = torch.full((N,), count)
    drawn = random_positions(keys(), counts, 5)
    assert drawn.shape == (N, count)
    assert torch.equal(drawn, drawn.sort(1).values)
    evenly(sets(drawn, 5), list(combinations(range(5), count)))


@pytest.mark.parametrize("count", [1, 2])
def test_all_parts_of_a_set_are_equally_likely(count):
    positions = torch.tensor([1, 3, 6, 9]).expand(N, -1)
    part = random_part(keys(), positions, torch.full((N,), count), 9)
    assert (part.sum(1) == count).all()
    evenly(sets(torch.where(part, positions, 9), 9), list(combinations((1, 3, 6), count)))


@pytest.mark.parametrize("held", [(), (0,), (1, 2), (0, 4, 7), (2, 3, 5, 6)])
@pytest.mark.parametrize("count", [1, 2])
def test_all_sets_outside_are_equally_likely(held, count):
    positions = torch.tensor([*held, *[8] * (4 - len(held))]).expand(N, -1).contiguous()
    drawn = random_positions_outside(keys(), positions, torch.full((N,), count), 8)
    free = [i for i in range(8) if i not in held]
    evenly(sets(drawn, 8), list(combinations(free, count)))


def test_half_of_many_free_positions_can_be_drawn():
    """Most of the first draws repeat, and are drawn again."""
    positions = torch.full((20, 1), 400)
    drawn = random_positions_outside(keys(20), positions, torch.full((20,), 200), 400)
    assert all(len(set(row)) == 200 for row in drawn.tolist())


def test_the_only_free_position_is_drawn_once_next_to_larger_draws():
    """Numbers that only other samples need may repeat."""
    positions = torch.tensor([[0, 1, 2, 4, 5], [6, 6, 6, 6, 6]])
    drawn = random_positions_outside(keys(2), positions, torch.tensor([1, 3]), 6)
    assert drawn[0].tolist() == [3, 6, 6]


def test_sets_do_not_depend_on_the_batch():
    """Sets of other sizes and repeated draws of others change nothing."""
    counts = torch.tensor([1, 5, 0, 3, 2])
    positions = random_positions(keys(5), counts, 16)
    part = random_part(keys(5), positions, counts // 2, 16)
    outside = random_positions_outside(keys(5), positions, counts + 3, 16)
    for i in range(5):
        one = slice(i, i + 1)
        assert (positions[i] < 16).sum() == counts[i]
        alone = random_positions(keys(5)[one], counts[one], 16)
        assert sets(alone, 16) == sets(positions[one], 16)
        width = alone.shape[1]
        found = random_part(keys(5)[one], alone, counts[one] // 2, 16)
        assert torch.equal(found, part[one, :width])
        assert not part[i, width:].any()
        drawn = random_positions_outside(keys(5)[one], alone, counts[one] + 3, 16)
        assert torch.equal(drawn, outside[one, : drawn.shape[1]])
        assert (outside[i, drawn.shape[1] :] == 16).all()
