"""FAB against NumPy, and how it spends its steps."""

import math

import numpy as np
import pytest
import torch

from advkit import TorchClassifier, attacks
from advkit.attacks import fab
from tests.toys import Halfspace, Quadratic, answers, convnet, images


def walk_numpy(net, x0, target, norm, steps):
    """One sample to one class: onto the plane, then towards its point nearest to the input."""
    a, w, b = net.numpy()

    def answer(x):
        return int((w @ x + x @ a @ x / 2 + b).argmax())

    def size(v):
        return np.linalg.norm(v, 2 if norm == "l2" else np.inf)

    def dual(v):
        return np.linalg.norm(v, 2 if norm == "l2" else 1)

    def straight(v):
        return v if norm == "l2" else np.sign(v)

    x, mean, over, nearest, best = x0.copy(), np.zeros_like(x0), 0.02, np.inf, x0
    for i in range(steps):
        success = answer(x) == target
        if success and size(x - x0) < nearest:
            nearest, best = size(x - x0), x
        z = w @ x + x @ a @ x / 2 + b
        candidate = max((k for k in range(len(b)) if k != target), key=lambda k: z[k])
        normal = (w + a @ x)[target] - (w + a @ x)[candidate]
        normal[(x <= 0) & (normal < 0) | (x >= 1) & (normal > 0)] = 0
        over = np.clip(over * (0.7 if success else 1.3), 1e-3, 2.0)
        ahead = (z[candidate] - z[target]) / dual(normal)
        ahead += over * max(size(x - x0), ahead)
        unit = normal / dual(normal)
        on_plane = x - x0 + ahead * straight(unit)
        mean = 0.2 * unit + 0.8 * mean
        level = mean @ on_plane / dual(mean)
        foot = straight(mean / dual(mean)) * level
        share = 0.01 + 0.49 * (1 + math.cos(math.pi * i / (steps - 1))) / 2
        x = np.clip(x0 + (1 - share) * on_plane + share * foot, 0, 1)
    if answer(x) == target and size(x - x0) < nearest:
        best = x
    return best


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("seed", range(4))
def test_numpy(norm, seed, monkeypatch):
    monkeypatch.setattr(attacks.FAB, "_refine_steps", 0)
    net = Quadratic(seed=seed)
    x = torch.rand(12, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[0] = (x[0] > 0.5).double()
    target = net(x).topk(2, dim=1).indices[:, 1]
    result = attacks.FAB(norm=norm, steps=9).run(net, x, target=target)
    found = result.success
    assert found.sum() >= 8
    expected = [walk_numpy(net, x[i].numpy(), int(target[i]), norm, 9) for i in range(12)]
    np.testing.assert_allclose(
        result.x_adv[found].numpy(), np.stack(expected)[found.numpy()], atol=1e-8
    )


def test_a_success_is_refined_in_two_steps(monkeypatch):
    """After one pass for the success itself; few steps leave it far past the boundary."""
    plane = Halfspace(torch.linspace(-1, 2, 12, dtype=torch.float64), b=-5.0)
    x = torch.full((3, 12), 0.5, dtype=torch.float64)
    attack, model = attacks.FAB(steps=1), TorchClassifier(plane, bounds=(-9, 9))
    refined = attack.run(model, x)
    torch.testing.assert_close(refined.distance, plane.distance(x, "l2"), rtol=2e-3, atol=0)
    monkeypatch.setattr(attacks.FAB, "_refine_steps", 0)
    found = attack.run(model, x)
    assert (found.distance > 1.01 * refined.distance).all()
    assert torch.equal(refined.queries.forward, found.queries.forward + 1 + 2)


def test_the_last_walk_goes_on_from_the_nearest_success_at_a_slower_pace(monkeypatch):
    net, x = convnet(classes=10), images(1)
    y, seen, schedules, schedule = answers(net, x), [], [], fab._step_schedule
    monkeypatch.setattr(
        fab, "_step_schedule", lambda *given: schedules.append(given) or schedule(*given)
    )

    hook = net.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    attacks.FAB(steps=20).run(net, x, y)
    hook.remove()
    assert schedules == [(0.5, 5), (0.2, 10)]
    assert sum(torch.equal(each, x) for each in seen) == 1 + 2  # evaluated, and a start twice


@pytest.mark.parametrize("steps", [1, 7, 20, 50, 100])
def test_no_more_passes_than_steps(steps):
    net, x = convnet(classes=10), images(16)
    queries = attacks.FAB(steps=steps).run(net, x).queries
    assert (queries.backward <= steps).all()
    assert (queries.forward <= steps + 5 + 25).all()


def test_more_classes_come_nearer():
    net, x = convnet(classes=10, dtype=torch.float64), images(32, torch.float64)
    one, five = (attacks.FAB(candidates=c).run(net, x).distance for c in (1, 5))
    assert five.mean() < 0.99 * one.mean()


def test_more_steps_come_nearer():
    net, x = convnet(classes=10, dtype=torch.float64), images(32, torch.float64)
    few, many = (attacks.FAB(steps=s).run(net, x).distance for s in (10, 100))
    assert (many <= 1.005 * few).float().mean() > 0.9
    assert many.mean() < 0.99 * few.mean()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_budget_attack_finds_nothing_much_nearer(norm):
    """PGD with many steps at nine tenths of the distance."""
    net, x = convnet(dtype=torch.float64), images(16, torch.float64)
    y = answers(net, x)
    found = attacks.FAB(norm=norm).run(net, x, y)
    assert found.success.all()
    eps = 0.95 * found.distance
    pgd = attacks.PGD(eps=eps, norm=norm, steps=100, restarts=3, loss="margin").run(net, x, y)
    assert pgd.success.sum() <= 1


def test_a_walk_that_stands_still_ends():
    plane = Halfspace(torch.linspace(-1, 1, 8, dtype=torch.float64), b=0.3)
    result = attacks.FAB(steps=1000).run(plane, torch.full((4, 8), 0.5, dtype=torch.float64))
    assert (result.queries.backward < 60).all()


def test_classes_that_are_far_are_given_up_early():
    """One boundary is near and four are ten times as far: five steps for each of them will do."""
    net = torch.nn.Linear(8, 6).double()
    net.weight.data = torch.eye(6, 8, dtype=torch.float64) - 0.1
    net.bias.data = torch.tensor([1.0, 0.9, 0, 0, 0, 0]).double()
    model = TorchClassifier(net, bounds=(-9, 9))
    result = attacks.FAB().run(model, torch.zeros(4, 8, dtype=torch.float64))
    walks, last = 10 + 4 * 6, 22
    assert result.success.all()
    assert (result.queries.backward <= walks + last).all()


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"norm": "l1"}, ValueError, "`norm` must be .*'l2'.*'linf'.*got 'l1'"),
        ({"steps": 0}, ValueError, "`steps` must be .*at least 1.*got 0"),
        ({"candidates": 0}, ValueError, "`candidates` must be .*at least 1.*got 0"),
        ({"progress": 1}, TypeError, "`progress` must be"),
    ],
)
def test_wrong_settings(settings, error, said):
    with pytest.raises(error, match=said):
        attacks.FAB(**settings)
