"""The search for a constant of C&W and L-BFGS."""

import pytest
import torch

from advkit import TorchClassifier, attacks
from advkit.attacks.engine import constant_search
from advkit.attacks.engine.base import OUTWARD_FACTORS
from tests.toys import Halfspace, convnet, images


@pytest.mark.parametrize("attack", [attacks.LBFGS(), attacks.CarliniWagnerL2()], ids=repr)
def test_a_constant_that_is_too_small_grows(attack):
    """From far too small to enough, and down again to the boundary."""
    plane = Halfspace(torch.linspace(-1, 2, 12, dtype=torch.float64), b=-5.0)
    x = torch.full((3, 12), 0.4, dtype=torch.float64)
    model = TorchClassifier(plane, bounds=(-9, 9))
    small = type(attack)(**{**vars_of(attack), "initial_const": 3e-6})
    result = small.run(model, x)
    assert result.success.all()
    torch.testing.assert_close(result.distance, plane.distance(x, "l2"), rtol=0.02, atol=0)


@pytest.mark.parametrize("steps", [30, 100])
def test_a_success_by_a_constant_that_is_too_small_is_luck(steps):
    """A rate so large that any constant leads past the boundary is no reason to go below it."""
    plane = Halfspace(torch.linspace(-1, 2, 12, dtype=torch.float64), b=-5.0)
    x = torch.full((1, 12), 0.4, dtype=torch.float64)
    attack = attacks.CarliniWagnerL2(initial_const=3e-6, lr=0.05, search_steps=12, steps=steps)
    result = attack.run(TorchClassifier(plane, bounds=(-9, 9)), x)
    torch.testing.assert_close(result.distance, plane.distance(x, "l2"), rtol=0.05, atol=0)


def vars_of(attack):
    return {"search_steps": attack.search_steps, "steps": attack.steps}


@pytest.mark.parametrize("kind", [attacks.LBFGS, attacks.CarliniWagnerL2])
def test_no_more_passes_than_the_schedule_allows(kind):
    net, x = convnet(classes=10), images(16)
    for search_steps, steps, candidates in ((1, 10, 5), (3, 10, 5), (9, 5, 2)):
        attack = kind(search_steps=search_steps, steps=steps, candidates=candidates)
        queries = attack.run(net, x).queries
        looks = min(candidates, search_steps)  # at the slope to each class
        assert (queries.backward <= search_steps * steps + looks).all()
        most = search_steps * (steps + 1 + 1 + constant_search.TUNING.refine_steps) + looks
        rest = 2 + 1 + len(OUTWARD_FACTORS)  # the label and the first look; the last ones
        again = queries.backward  # passes of the few that go on, see `Problem.select_for_backward`
        assert (queries.forward <= most + rest + again).all()


@pytest.mark.parametrize("kind", [attacks.LBFGS, attacks.CarliniWagnerL2])
def test_later_search_steps_come_nearer(kind):
    net, x = convnet(classes=10, dtype=torch.float64), images(32, torch.float64)
    few, many = (kind(search_steps=s, candidates=2).run(net, x).distance for s in (2, 9))
    assert (many <= few * (1 + 1e-9)).all()
    assert many.mean() < few.mean()


def test_the_search_goes_on_with_the_constants_of_the_nearest_class(monkeypatch):
    """The likeliest class is far, the next one near."""
    net = torch.nn.Linear(2, 3, dtype=torch.float64)
    net.weight.data = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    net.bias.data = torch.tensor([0.0, -0.5, -1.0], dtype=torch.float64)
    x, y, seen = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0]), []
    warm = attacks.CarliniWagnerL2._search_warm

    def spy(self, problem, logits, nearest, penalty, rounds):
        seen.append((penalty, rounds))
        return warm(self, problem, logits, nearest, penalty, rounds)

    monkeypatch.setattr(attacks.CarliniWagnerL2, "_search_warm", spy)
    attacks.CarliniWagnerL2(search_steps=5, steps=20).run(net, x, y)
    ((penalty, rounds),) = seen
    assert rounds == 5 - 2
    assert float(penalty.expected_distance) == pytest.approx(0.1)
    assert float(penalty.min_const) == pytest.approx(0.1 / 10)


def test_no_distance_beyond_the_box_is_expected():
    attack, plane = attacks.CarliniWagnerL2(), Halfspace(torch.full((9,), 1e-6), b=-1.0)
    x, y = torch.full((2, 9), 0.5), torch.zeros(2, dtype=torch.int64)
    penalty = attack._linear(attack._problem(TorchClassifier(plane), x, y, None))
    assert penalty.expected_distance.tolist() == [3.0, 3.0]


def test_constants_grow_tenfold_up_to_a_limit():
    const, zero = torch.tensor([2.0, 5e29, 4.0]), torch.zeros(3)
    bracket = constant_search.Bracket(const, zero, torch.tensor([torch.inf, torch.inf, 4.0]))
    limit = constant_search.TUNING.max_const
    torch.testing.assert_close(bracket.next(), torch.tensor([20.0, limit, 2.0]))
