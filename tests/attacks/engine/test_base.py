"""The verification: what another evaluation does not confirm is moved outward."""

import copy

import pytest
import torch
from torch import nn

from advkit import TorchClassifier, attacks
from advkit.attacks.engine.base import OUTWARD_FACTORS, move_outward
from advkit.attacks.engine.records import Best, Nearest
from tests.toys import Halfspace


class Biased(nn.Module):
    """Answers depend a little on how many inputs come at once, as they do by rounding."""

    def __init__(self, plane, bias):
        super().__init__()
        self.plane, self.bias = plane, bias

    def forward(self, x):
        z = self.plane(x)
        return z - torch.tensor([0.0, self.bias * len(x)]).to(z)


ATTACKS = [attacks.DeepFool(), attacks.FAB(steps=20), attacks.LBFGS(), attacks.CarliniWagnerL2()]


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_a_success_survives_the_rounding_of_another_batch_size(attack):
    plane = Halfspace(torch.linspace(-1, 2, 12, dtype=torch.float64), b=-5.0)
    x = torch.linspace(0.3, 0.6, 16, dtype=torch.float64)[:, None].expand(16, 12).clone()
    wrong = torch.arange(16) % 2 == 0  # leave the batch at once: the others go on by themselves
    y = torch.where(wrong, 1, 0)
    model = TorchClassifier(Biased(plane, 2e-4), bounds=(-9, 9))
    result = attack.run(model, x, y)
    assert result.success.all()
    exact = plane.distance(x, "l2") + 16 * 2e-4 / plane.w.detach().norm()
    assert (result.distance[~wrong] <= 1.02 * exact[~wrong]).all()


def test_what_cannot_be_confirmed_is_the_clean_input():
    """Successes of a small batch that are far from one in a large batch."""
    plane = Halfspace(torch.linspace(-1, 2, 12, dtype=torch.float64), b=-5.0)
    x = torch.full((16, 12), 0.4, dtype=torch.float64)
    y = (torch.arange(16) % 2 == 0).long()
    model = TorchClassifier(Biased(plane, 1.0), bounds=(-9, 9))
    with pytest.warns(UserWarning, match="it is random"):
        result = attacks.FAB(steps=20).run(model, x, y)
    assert torch.equal(result.x_adv[~result.success], x[~result.success])
    assert (result.distance[~result.success] == 0).all()
    assert not result.success[1::2].any()


def to_the_right(x):
    """The problem of getting `x` `(n, 1)` to the right of 3."""
    plane = Halfspace(torch.ones(1, dtype=torch.float64), b=-3.0)
    y = torch.zeros(len(x), dtype=torch.int64)
    return attacks.FAB()._problem(TorchClassifier(plane, bounds=(0, 10)), x, y, None)


def test_only_successes_that_are_lost_are_moved():
    """One that is confirmed, one that is not, and a failure."""
    problem = to_the_right(torch.zeros(3, 1, dtype=torch.float64))
    x_adv = torch.tensor([[4.0], [2.999], [0.0]], dtype=torch.float64)
    found = Nearest(x_adv, torch.tensor([-1.0, -1.0, torch.inf]), x_adv[:, 0])
    best = move_outward(problem, found, Best(x_adv, problem.violation(x_adv)))
    assert best.success.tolist() == [True, True, False]
    assert best.x_adv.flatten().tolist() == [4.0, 2.999 * OUTWARD_FACTORS[0], 0.0]
    assert problem.statistics.forward.tolist() == [2, 2, 2]


def test_failures_are_not_evaluated_again():
    problem = to_the_right(torch.zeros(2, 1, dtype=torch.float64))
    verified = Best(problem.x, problem.violation(problem.x))
    assert move_outward(problem, Nearest.empty(problem.x), verified) is verified
    assert problem.statistics.forward.tolist() == [1, 1]


@pytest.mark.parametrize("eps", [torch.tensor([0.1, 0.2]), 0.1])
def test_attacks_with_equal_hyper_parameters_are_equal(eps):
    one, same = attacks.PGD(eps=eps), attacks.PGD(eps=copy.deepcopy(eps))
    others = [attacks.PGD(eps=0.3), attacks.PGD(eps=eps, steps=3), attacks.BIM(eps=eps), 0.1]
    others.append(attacks.PGD(eps=torch.tensor([0.1, 0.3])))
    assert one == same
    assert one in [same]
    assert hash(one) == hash(same)
    assert not any(one == other for other in others)
    assert len({one, same, attacks.PGD(eps=0.3)}) == 2


def test_the_name_of_an_attack_is_short_for_any_surrogate():
    net = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(50)))
    transfer = attacks.Transfer(attack=attacks.PGD(eps=0.1), surrogate=net)
    assert repr(transfer) == "Transfer(attack=PGD(eps=0.1), surrogate=Sequential)"

    class Wide(torch.nn.Linear):
        def __repr__(self):
            return 61 * "x"

    wide = attacks.Transfer(attack=attacks.PGD(eps=0.1), surrogate=Wide(4, 4))
    assert repr(wide) == "Transfer(attack=PGD(eps=0.1), surrogate=Wide)"
    losses = ["ce", attacks.Evasion(detector_score=net, threshold=0.5)]
    adaptive = attacks.Adaptive(attack=attacks.PGD(eps=0.1), losses=losses)
    shown = "('ce', Evasion(detector_score=Sequential, threshold=0.5))"
    assert repr(adaptive) == f"Adaptive(attack=PGD(eps=0.1), losses={shown})"
