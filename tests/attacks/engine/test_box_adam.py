"""Adam in the box, by itself."""

import math

import torch
from torch import nn

from advkit import TorchClassifier, attacks
from advkit.attacks.engine.box_adam import AdamState, BoxAdam
from advkit.attacks.engine.constant_search import PenaltyState


class Flat(nn.Module):
    """Class 1 beyond 3, with a gradient before 3.5 only."""

    def forward(self, x):
        z = x[:, 0].clamp_max(3.5)
        return torch.stack([0 * z, z - 3], 1)


def test_a_success_without_a_gradient_still_comes_nearer():
    x, y = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0])
    attack = attacks.CarliniWagnerL2()
    problem = attack._problem(TorchClassifier(Flat(), bounds=(0, 10)), x, y, None)
    one = torch.ones(1, dtype=torch.float64)
    start = torch.full_like(x, 6.0)
    found = BoxAdam(steps=60).descend(problem, start, PenaltyState(one, 0 * one, 0.5 * one))
    assert 3 < float(found.distance) < 4


def test_the_variable_stays_where_its_image_is_in_the_box():
    names = AdamState._fields
    adam = AdamState(**{name: torch.zeros(1, 2, dtype=torch.float64) for name in names})
    adam = adam._replace(lr=torch.tensor([9.0], dtype=torch.float64))
    BoxAdam(steps=5)._adam_step(0, torch.tensor([[1.0, -1.0]], dtype=torch.float64), adam)
    wall = math.atanh(1 / 1.2)
    torch.testing.assert_close(adam.w, torch.tensor([[-wall, wall]], dtype=torch.float64))
