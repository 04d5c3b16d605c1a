"""DeepFool against NumPy, and what it spends on classes, walls and the ball."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from advkit import QueryCounter, TorchClassifier, attacks
from advkit.attacks import deepfool
from advkit.core.results import QueryBudgetExceeded
from tests.toys import Halfspace, Quadratic, answers, convnet, images

DUAL = {"l2": 2, "linf": 1}


def deepfool_numpy(net, x0, norm, steps, overshoot, free):
    """One sample: to the nearest linearized boundary, until the answer changes; not refined."""
    a, w, b = net.numpy()

    def logits(x):
        return w @ x + x @ a @ x / 2 + b

    x, label = x0.copy(), int(logits(x0).argmax())
    for i in range(steps):
        z, slopes = logits(x), w + a @ x
        best, move = np.inf, None
        for k in range(len(b)):
            if k == label:
                continue
            normal = slopes[k] - slopes[label]
            if i >= free:
                outward = (x <= 0) & (normal < 0) | (x >= 1) & (normal > 0)
                normal = np.where(outward, 0, normal)
            length = np.linalg.norm(normal, DUAL[norm])
            if (z[label] - z[k]) / length < best:
                best = (z[label] - z[k]) / length
                move = np.sign(normal) if norm == "linf" else normal / length
        longer = 1 + overshoot if i else 1.001
        x = np.clip(x + (longer * best + np.finfo(float).eps) * move, 0, 1)
        if logits(x).argmax() != label:
            return x
    return x0


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("overshoot", [0.02, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_numpy(norm, overshoot, seed, monkeypatch):
    monkeypatch.setattr(deepfool, "TUNING", replace(deepfool.TUNING, refine_steps=0))
    net = Quadratic(seed=seed)
    x = torch.rand(12, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[0] = (x[0] > 0.5).double()
    attack = attacks.DeepFool(norm=norm, overshoot=overshoot, candidates=9)
    clipped = deepfool.TUNING.clipped_steps
    expected = [deepfool_numpy(net, row, norm, 50, overshoot, clipped) for row in x.numpy()]
    result = attack.run(net, x)
    assert result.success.sum() >= 10
    np.testing.assert_allclose(result.x_adv.numpy(), np.stack(expected), atol=1e-9)


def test_classes_that_hardly_win_are_left_out_for_a_small_loss():
    net, x = convnet(classes=10, dtype=torch.float64), images(64, torch.float64)
    some, every = (attacks.DeepFool(candidates=c).run(net, x) for c in (None, 9))
    assert some.distance.mean() < 1.05 * every.distance.mean()
    assert some.queries.backward.sum() < 0.7 * every.queries.backward.sum()


def test_fewer_candidates_cost_fewer_passes():
    net, x = convnet(classes=10), images(32)
    one, all_ = (attacks.DeepFool(candidates=c, steps=1).run(net, x) for c in (1, 9))
    assert (one.queries.backward == 1).all()
    assert (all_.queries.backward == 9).all()


def test_one_forward_pass_a_step(monkeypatch):
    monkeypatch.setattr(deepfool, "TUNING", replace(deepfool.TUNING, refine_steps=0))
    plane = Halfspace(torch.linspace(-1, 1, 8), b=0.3)
    result = attacks.DeepFool(candidates=9).run(plane, torch.full((4, 8), 0.5))
    assert result.success.all()
    # the label; one step from the input; its last failure, to refine from; what is returned
    assert (result.queries.forward == 1 + 2 + 1 + 1).all()
    assert (result.queries.backward == 1).all()


def test_memory_does_not_grow_with_the_classes():
    """A thousand classes: only the candidates are differentiated, and none is kept."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 1000))
    result = attacks.DeepFool().run(net, torch.rand(4, 3, 32, 32))
    assert result.success.all()
    assert (result.queries.backward <= 50).all()


def test_a_success_is_refined():
    """A large overshoot costs no distance where the boundary is flat."""
    plane = Halfspace(torch.linspace(-1, 2, 12, dtype=torch.float64), b=-5.0)
    x = torch.full((3, 12), 0.5, dtype=torch.float64)
    attack = attacks.DeepFool(overshoot=0.5)
    model = TorchClassifier(plane, bounds=(-9, 9))
    torch.testing.assert_close(
        attack.run(model, x).distance, plane.distance(x, "l2"), rtol=2e-3, atol=0
    )


def test_walls_are_no_reason_to_creep():
    """Where the features that matter most are at a bound, the others are moved at once."""
    w = torch.tensor([-5.0, -5.0, -5.0, 1.0, 1.0], dtype=torch.float64)
    x = torch.tensor([[0.0, 0.0, 0.0, 0.1, 0.1]], dtype=torch.float64)
    result = attacks.DeepFool(steps=6).run(Halfspace(w, b=-1.0), x)
    assert result.success.all()
    torch.testing.assert_close(
        result.x_adv, torch.tensor([[0, 0, 0, 0.5, 0.5]]).double(), rtol=2e-3, atol=0
    )


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_eps_is_a_budget(norm):
    """Within the ball what the attack finds without one, else the same direction, cut off."""
    net, x = convnet(dtype=torch.float64), images(dtype=torch.float64)
    free = attacks.DeepFool(norm=norm).run(net, x)
    eps = float(free.distance.median()) * (1 + 1e-9)
    held = attacks.DeepFool(norm=norm, eps=eps).run(net, x)
    near = free.distance <= eps
    assert 0 < near.sum() < len(x)
    assert torch.equal(held.success, near)
    torch.testing.assert_close(held.x_adv[near], free.x_adv[near])
    torch.testing.assert_close(held.distance[~near], torch.full_like(held.distance[~near], eps))


def test_eps_keeps_the_last_iterate_of_a_failure():
    plane = Halfspace(torch.ones(4), b=-100.0)
    result = attacks.DeepFool(eps=0.5).run(plane, torch.full((2, 4), 0.5))
    assert not result.success.any()
    torch.testing.assert_close(result.x_adv, torch.full((2, 4), 0.75))


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"norm": "l1"}, ValueError, "`norm` must be .*'l2'.*'linf'.*got 'l1'"),
        ({"steps": 0}, ValueError, "`steps` must be .*at least 1.*got 0"),
        ({"overshoot": -0.1}, ValueError, "`overshoot` must .*got -0.1"),
        ({"candidates": 0}, ValueError, "`candidates` must be .*at least 1.*got 0"),
        ({"candidates": 1.5}, TypeError, "`candidates` must be"),
        ({"eps": -1.0}, ValueError, "`eps` must .*got -1"),
    ],
)
def test_wrong_settings(settings, error, said):
    with pytest.raises(error, match=said):
        attacks.DeepFool(**settings)


def test_a_target_is_refused():
    net, x = convnet(), images()
    with pytest.raises(ValueError, match="`target` must be None for DeepFool, .* Use FAB"):
        attacks.DeepFool()(net, x, target=answers(net, x))


def axes(gaps, slopes):
    """A model of which each class but the first has a feature, its slope and its gap at 0."""
    net = nn.Linear(len(gaps), 1 + len(gaps), dtype=torch.float64)
    net.weight.data = torch.cat([torch.zeros(1, len(gaps)), torch.diag(torch.tensor(slopes))], 0)
    net.bias.data = -torch.tensor([0.0, *gaps])
    return TorchClassifier(net.double(), bounds=(-9, 9))


def test_the_nine_likeliest_classes_count_where_one_step_is_enough():
    """The ninth has the nearest boundary, but a slope not to be guessed from that of the first."""
    model = axes([1.0, *[1.3] * 7, 1.4, 1.5], [1.0] * 8 + [10.0, 100.0])
    x, y = torch.zeros(2, 10, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    found = attacks.DeepFool().run(model, x, y).distance
    torch.testing.assert_close(found, torch.full((2,), 0.14).double(), rtol=2e-3, atol=0)


def test_nine_classes_as_steep_as_each_other_are_all_considered():
    model = axes([1 + k / 1000 for k in range(10)], [1.0] * 10)
    x, y = torch.zeros(1, 10, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    queries = attacks.DeepFool().run(model, x, y).queries
    assert queries.backward.tolist() == [9 + 9]  # one step each of two walks


def test_misclassified_inputs_are_not_walked_from_again():
    model = axes([1.0, 2.0], [1.0, 1.0])
    x, y = torch.zeros(2, 2, dtype=torch.float64), torch.tensor([1, 2])
    queries = attacks.DeepFool().run(model, x, y).queries
    assert queries.forward.tolist() == [3, 3]  # of the input, as a point to refine to, as result
    assert queries.backward.tolist() == [0, 0]


def test_a_strip_of_ties_is_crossed():
    """Logits of few bits: there the distance to the boundary is zero, but no success."""

    class Coarse(nn.Module):
        def forward(self, x):
            v = x.sum(1) - 3
            steps = v + ((2 * v).floor() / 2 - v).detach()
            return torch.stack([0 * v, steps], 1)

    x, y = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0])
    result = attacks.DeepFool().run(TorchClassifier(Coarse(), bounds=(0, 9)), x, y)
    assert result.success.all()
    assert 3.5 <= float(result.distance) < 3.6


def test_a_spent_budget_leaves_no_success_outside_the_ball():
    plane = Halfspace(torch.ones(2, dtype=torch.float64), b=-2.0)
    x, y = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0])
    for eps, inside in ((0.5, False), (2.0, True)):
        counter = QueryCounter(TorchClassifier(plane, bounds=(-9, 9)), max_queries=2)
        with pytest.raises(QueryBudgetExceeded) as error:
            attacks.DeepFool(eps=eps).run(counter, x, y)
        found = error.value.result
        assert bool(found.success) == inside
        assert (float(found.distance) > 0) == inside
