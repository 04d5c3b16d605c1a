"""Steps of each sample."""

from typing import NamedTuple

import torch
from torch import Tensor

from advkit import TorchClassifier, attacks
from advkit.attacks.engine.loop import iterate
from advkit.attacks.engine.records import Nearest
from tests.toys import Halfspace


class Countdown(NamedTuple):
    left: Tensor


def descend(problem, left):
    def step(i, part, at, state):
        return at.x_adv, Countdown(state.left - 1)

    return iterate(
        problem, problem.x, Countdown(left), step,
        steps=6, best=Nearest.empty(problem.x), finished=lambda at, state: state.left == 0,
    )  # fmt: skip


def test_the_steps_of_each_sample_are_counted():
    x = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    model = TorchClassifier(Halfspace(torch.ones(3), b=-9.0))
    problem = attacks.MinimumNorm()._problem(model, x, torch.zeros(4, dtype=torch.int64), None)
    descend(problem, torch.tensor([0, 2, 3, 99]))
    assert problem.statistics.steps.tolist() == [0, 2, 3, 6]
    some = torch.tensor([1, 3])
    descend(problem.select(some), torch.tensor([1, 99]))  # a second search adds its own
    assert problem.statistics.steps.tolist() == [0, 3, 3, 12]
