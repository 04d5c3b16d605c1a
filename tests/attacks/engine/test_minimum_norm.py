"""What minimum-norm attacks share: the last polish, the last look, the search for a constant."""

import pytest
import torch
from torch import nn

from advkit import TorchClassifier, attacks
from advkit.attacks.engine import constant_search
from advkit.attacks.engine.base import OUTWARD_FACTORS
from advkit.attacks.engine.minimum_norm import refine_to_boundary
from advkit.attacks.engine.records import Nearest
from tests.toys import Halfspace, convnet, images


def segment(logits, x, *, target=None, confidence=0.0):
    """A problem whose inputs `(n, 1)` are places on a line, and the logits there."""

    class Line(nn.Module):
        def forward(self, x):
            return logits(x[:, 0])

    y = torch.zeros(len(x), dtype=torch.int64)
    attack = attacks.CarliniWagnerL2(confidence=confidence)
    problem = attack._problem(TorchClassifier(Line(), bounds=(0, 10)), x, y, target)
    return problem, problem.logits(x)


def success_at(problem, place):
    x_adv = torch.full_like(problem.x, place)
    at = problem.judge(x_adv, differentiate=False)
    return Nearest(x_adv, at.shortfall, problem.distance(x_adv))


def test_one_step_finds_the_first_of_several_boundaries():
    """Of three classes the one that is passed first, though another leads at the end."""
    x = torch.zeros(2, 1, dtype=torch.float64)
    problem, logits = segment(lambda t: torch.stack([6 - t, t, 4 * t - 12, 0 * t], 1), x)
    found = refine_to_boundary(problem, x, logits, success_at(problem, 9.0), 1)
    torch.testing.assert_close(found.distance, torch.full((2,), 3.0).double(), rtol=2e-3, atol=0)
    assert found.success.all()


def test_a_target_needs_the_last_of_several_boundaries():
    x = torch.zeros(2, 1, dtype=torch.float64)
    target = torch.tensor([1, 1])
    problem, logits = segment(
        lambda t: torch.stack([6 - t, t, 4 + 0 * t, 0 * t], 1), x, target=target
    )
    found = refine_to_boundary(problem, x, logits, success_at(problem, 9.0), 1)
    torch.testing.assert_close(found.distance, torch.full((2,), 4.0).double(), rtol=2e-3, atol=0)


def test_the_confidence_is_kept():
    x = torch.zeros(1, 1, dtype=torch.float64)
    problem, logits = segment(lambda t: torch.stack([6 - t, t], 1), x, confidence=2.0)
    found = refine_to_boundary(problem, x, logits, success_at(problem, 9.0), 1)
    torch.testing.assert_close(found.distance, torch.tensor([4.0]).double(), rtol=2e-3, atol=0)


def test_bends_take_more_steps():
    x = torch.zeros(1, 1, dtype=torch.float64)
    problem, logits = segment(lambda t: torch.stack([9 + 0 * t, t**2], 1), x)
    far = [
        float(refine_to_boundary(problem, x, logits, success_at(problem, 9.0), k).distance)
        for k in range(9)
    ]
    assert far[0] == 9
    assert far[8] == pytest.approx(3, rel=1e-2)
    assert sorted(far, reverse=True) == far
    assert far[3] < 3.5


def test_what_is_no_success_and_what_begins_as_one_stay_as_they_are():
    x = torch.tensor([[0.0], [4.0]], dtype=torch.float64)  # the second is past the boundary
    problem, logits = segment(lambda t: torch.stack([6 - t, t], 1), x)
    nearest = success_at(problem, 2.0)  # no success
    nearest = Nearest(nearest.x_adv, nearest.shortfall, torch.tensor([torch.inf, 2.0]))
    before = problem.ledger.forward.clone()
    assert refine_to_boundary(problem, x, logits, nearest, 3) is nearest
    assert torch.equal(problem.ledger.forward, before)


def test_a_tie_is_no_reason_to_stop():
    """An inner point on the boundary itself that argmax gives to the label."""
    x = torch.full((1, 1), 3.0, dtype=torch.float64)
    problem, logits = segment(lambda t: torch.stack([6 - t, t], 1), x)
    assert not problem.judge(x, differentiate=False).success
    found = refine_to_boundary(problem, x, logits, success_at(problem, 5.0), 2)
    assert found.distance < 0.05


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


def test_a_success_by_a_constant_that_is_too_small_is_luck():
    """A rate so large that any constant leads past the boundary is no reason to go below it."""
    plane = Halfspace(torch.linspace(-1, 2, 12, dtype=torch.float64), b=-5.0)
    x = torch.full((1, 12), 0.4, dtype=torch.float64)
    attack = attacks.CarliniWagnerL2(initial_const=3e-6, lr=0.05, search_steps=12)
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
        most = search_steps * (steps + 1 + 1 + constant_search._REFINE_STEPS) + looks
        rest = 2 + 1 + len(OUTWARD_FACTORS)  # the label and the first look; the last ones
        again = queries.backward  # passes of the few that go on, see `Problem.narrow`
        assert (queries.forward <= most + rest + again).all()


@pytest.mark.parametrize("kind", [attacks.LBFGS, attacks.CarliniWagnerL2])
def test_later_search_steps_come_nearer(kind):
    net, x = convnet(classes=10, dtype=torch.float64), images(32, torch.float64)
    few, many = (kind(search_steps=s, candidates=2).run(net, x).distance for s in (2, 9))
    assert (many <= few * (1 + 1e-9)).all()
    assert many.mean() < few.mean()


@pytest.mark.parametrize("kind", [attacks.LBFGS, attacks.CarliniWagnerL2, attacks.FAB])
def test_progress_is_shown_on_demand(kind, capsys):
    kind(progress=True, steps=10).run(convnet(), images())
    assert kind.__name__ in capsys.readouterr().err
