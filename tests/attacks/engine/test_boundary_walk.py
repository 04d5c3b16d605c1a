"""The walk of MinimumNorm in l0, by itself."""

import pytest
import torch

from advkit import TorchClassifier, attacks
from advkit.attacks.engine.boundary_walk import BoundaryWalk
from advkit.attacks.engine.records import Nearest
from tests.toys import Halfspace, Recorded

BOUNDS = (-2.0, 2.0)


def walked(needed, start, steps):
    """The iterates in [0, 1] of a walk where `needed` features leave the half-space, and record."""
    w = torch.linspace(-1, 2, 24, dtype=torch.float64)
    gains = (w.abs() / 2).sort(descending=True).values
    short = float(gains[:needed].sum() - gains[needed - 1] / 2)  # room for the overshoot
    recorded = Recorded(Halfspace(w, b=-0.5 * float(w.sum()) - short), BOUNDS)
    x = torch.zeros(1, 24, dtype=torch.float64)
    attack = attacks.MinimumNorm(norm="l0")
    problem = attack._problem(TorchClassifier(recorded, BOUNDS), x, torch.tensor([0]), None)
    limit = torch.full((1,), torch.inf, dtype=torch.float64)
    walk = BoundaryWalk(fractions=[1.0] * steps)
    found = walk.search(problem, start, Nearest.empty(x), limit=limit, eps=None)
    return torch.cat(recorded.seen), recorded.module, found


@pytest.mark.parametrize("needed", [1, 2, 5, 9])
@pytest.mark.parametrize("noisy", [False, True])
def test_each_step_on_a_linear_net_changes_the_fewest_features(needed, noisy):
    start = torch.zeros(1, 24, dtype=torch.float64)
    if noisy:
        start = 4 * torch.rand(start.shape, generator=torch.Generator().manual_seed(0)).double() - 2
    iterates, plane, found = walked(needed, start, steps=6)
    assert len(iterates) == 7
    assert (plane.value(iterates)[1:] > 0).all()
    assert (iterates[1:] != 0.5).sum(1).tolist() == [needed] * 6
    changed = iterates[1:][iterates[1:] != 0.5]
    assert ((changed == 0) | (changed == 1)).all()
    assert found.distance.tolist() == [needed]
