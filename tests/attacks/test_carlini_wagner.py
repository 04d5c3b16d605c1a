"""Carlini and Wagner's attack against NumPy, and what its own schedule adds."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from advkit import TorchClassifier, attacks
from advkit.attacks.engine import box_adam
from tests.toys import Halfspace, Quadratic, answers, convnet, images


def published_numpy(net, x0, label, confidence, rounds, steps, rate, const, *, target=None):
    """One sample by the paper's code: Adam in tanh space, constants by bisection."""
    a, w, b = net.numpy()
    reach = 1 + 1e-6

    def logits(x):
        return w @ x + x @ a @ x / 2 + b

    def best_other(z, k):
        return max((j for j in range(len(z)) if j != k), key=lambda j: z[j])

    low, high, best, nearest = 0.0, np.inf, x0, np.inf
    for _ in range(rounds):
        v = np.arctanh((2 * x0 - 1) / reach)
        m = s = 0.0
        reached, least, before = False, np.inf, np.inf
        for i in range(steps + 1):
            x = x0 if i == 0 else np.clip((1 + reach * np.tanh(v)) / 2, 0, 1)
            z = logits(x)
            up, down = (best_other(z, label), label) if target is None else (
                target, best_other(z, target))  # fmt: skip
            margin = z[up] - z[down]
            if margin >= confidence and margin > 0:
                reached = True
                if np.linalg.norm(x - x0) < nearest:
                    nearest, best = np.linalg.norm(x - x0), x
            if i == steps:
                break
            objective = ((x - x0) ** 2).sum() + const * max(confidence - margin, 0)
            least = min(least, objective)
            gradient = 2 * (x - x0)
            if margin < confidence:
                rows = w + a @ x
                gradient = gradient - const * (rows[up] - rows[down])
            gradient = gradient * (1 - np.tanh(v) ** 2) * reach / 2
            m, s = 0.9 * m + 0.1 * gradient, 0.999 * s + 0.001 * gradient**2
            step = (m / (1 - 0.9 ** (i + 1))) / (np.sqrt(s / (1 - 0.999 ** (i + 1))) + 1e-8)
            v = np.clip(v - rate * step, -np.arctanh(1 / reach), np.arctanh(1 / reach))
            if i and i % (steps // 10) == 0:
                if least > 0.9999 * before:  # learnt before the next iterate is judged
                    x = np.clip((1 + reach * np.tanh(v)) / 2, 0, 1)
                    z = logits(x)
                    up, down = (best_other(z, label), label) if target is None else (
                        target, best_other(z, target))  # fmt: skip
                    if z[up] - z[down] >= confidence and z[up] > z[down]:
                        reached = True
                        if np.linalg.norm(x - x0) < nearest:
                            nearest, best = np.linalg.norm(x - x0), x
                    break
                before = least
        low, high = (low, const) if reached else (const, high)
        const = (low + high) / 2 if np.isfinite(high) else 10 * const
    return best


@pytest.mark.parametrize("confidence", [0.0, 0.2])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_the_published_schedule_is_numpys(confidence, targeted, seed):
    net = Quadratic(seed=seed)
    x = torch.rand(8, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = answers(net, x)
    target = (y + 1) % 4 if targeted else None
    attack = attacks.CarliniWagnerL2(
        schedule="published",
        confidence=confidence,
        search_steps=6,
        steps=40,
        lr=0.05,
        initial_const=0.05,
    )
    result = attack.run(net, x, y, target=target)
    expected = [
        published_numpy(
            net, x[i].numpy(), int(y[i]), confidence, 6, 40, 0.05, 0.05,
            target=None if target is None else int(target[i]),
        )
        for i in range(len(x))
    ]  # fmt: skip
    assert result.success.sum() >= 4
    found = result.success.numpy()
    np.testing.assert_allclose(result.x_adv.numpy()[found], np.stack(expected)[found], atol=1e-7)


def test_the_default_schedule_is_nearer_than_the_published_one():
    net, x = convnet(dtype=torch.float64), images(32, torch.float64)
    settings = {"search_steps": 4, "steps": 30}
    ours = attacks.CarliniWagnerL2(**settings).run(net, x)
    paper = attacks.CarliniWagnerL2(schedule="published", lr=0.05, initial_const=1, **settings).run(
        net, x
    )
    assert ours.success.all()
    both = paper.success & (paper.distance > 0)
    assert (ours.distance[both] <= 1.02 * paper.distance[both]).float().mean() > 0.9
    assert ours.distance.mean() < paper.distance.mean()
    assert (ours.queries.backward <= 4 * 30).all()


@pytest.mark.parametrize("targeted", [False, True])
def test_confidence_is_enforced(targeted):
    net, x = convnet(dtype=torch.float64), images(16, torch.float64)
    y = answers(net, x)
    target = (y + 1) % 3 if targeted else None
    attack = attacks.CarliniWagnerL2(confidence=2.0, search_steps=4, steps=30)
    plain = attacks.CarliniWagnerL2(search_steps=4, steps=30).run(net, x, y, target=target)
    sure = attack.run(net, x, y, target=target)
    assert sure.success.sum() > 8
    z = net(sure.x_adv).detach()
    up = target if targeted else z.scatter(1, y[:, None], -torch.inf).argmax(1)
    down = y if not targeted else z.scatter(1, up[:, None], -torch.inf).argmax(1)
    lead = (z.gather(1, up[:, None]) - z.gather(1, down[:, None]))[:, 0]
    assert (lead[sure.success] >= 2).all()
    assert (lead[sure.success] < 2.2).float().mean() > 0.8
    assert (sure.distance[sure.success] > plain.distance[sure.success]).all()


def test_less_than_the_confidence_is_no_success():
    """The box holds no point where the other class leads by so much."""
    plane = Halfspace(torch.ones(4), b=-2.2)
    x = torch.full((2, 4), 0.5)
    assert attacks.CarliniWagnerL2(confidence=1.7).run(plane, x).success.all()
    result = attacks.CarliniWagnerL2(confidence=1.9).run(plane, x)
    assert not result.success.any()
    assert torch.equal(result.x_adv, x)


def test_features_at_the_bounds_move():
    """All features at zero: tanh that ends at the bounds has no slope there."""
    plane = Halfspace(torch.ones(9, dtype=torch.float64), b=-1.0)
    x = torch.zeros(3, 9, dtype=torch.float64)
    result = attacks.CarliniWagnerL2().run(plane, x)
    assert result.success.all()
    torch.testing.assert_close(result.distance, plane.distance(x, "l2"), rtol=0.01, atol=0)
    published = attacks.CarliniWagnerL2(schedule="published").run(plane, x)
    assert not published.success.any()


def test_a_rate_and_a_constant_of_ones_own_are_used():
    net, x = convnet(dtype=torch.float64), images(8, torch.float64)
    runs = [
        attacks.CarliniWagnerL2(search_steps=2, steps=5, **settings)(net, x)
        for settings in ({}, {"lr": 1e-4}, {"initial_const": 1e-4}, {"confidence": 0.1})
    ]
    for i, first in enumerate(runs):
        assert all(not torch.equal(first, second) for second in runs[i + 1 :])


def test_the_rate_falls_to_zero(monkeypatch):
    """Steps across the boundary and back get short towards the end of a search step."""
    monkeypatch.setattr(box_adam, "TUNING", replace(box_adam.TUNING, min_ratio=9.0))  # no early end
    seen = []

    class Plane(nn.Module):
        def forward(self, x):
            seen.append(x.detach().clone())
            return torch.stack([2 + 0 * x[:, 0], 6 * x.sum(1) - 16], 1)

    attack = attacks.CarliniWagnerL2(search_steps=1, steps=60, initial_const=10.0, lr=0.05)
    attack.run(Plane(), torch.full((1, 5), 0.5, dtype=torch.float64))
    moves = [float((b - a).norm()) for a, b in pairwise(seen[3 : 3 + 60])]
    assert max(moves[-5:]) < 0.005 * moves[0]


def test_constants_mean_the_same_for_all_bounds():
    """A net that scales its inputs down itself, with a constant and a rate that are given."""
    net, x = convnet(dtype=torch.float64), images(4, torch.float64)
    settings = {"search_steps": 3, "steps": 20, "lr": 0.02, "initial_const": 3.0}
    attack = attacks.CarliniWagnerL2(**settings)
    wide = TorchClassifier(net, (0, 255), preprocess=lambda v: v / 255)
    torch.testing.assert_close(attack(wide, 255 * x) / 255, attack(net, x))


def test_samples_that_no_longer_improve_stop():
    net, x = convnet(dtype=torch.float64), images(8, torch.float64)
    few, many = (
        attacks.CarliniWagnerL2(search_steps=1, steps=steps, lr=0.05, schedule="published").run(
            net, x
        )
        for steps in (100, 1000)
    )
    assert (many.queries.backward < 1000).any()
    assert (few.queries.backward <= 100).all()


@pytest.mark.filterwarnings("ignore:.*met a gradient")
def test_samples_without_a_gradient_end_at_once():
    class Dead(nn.Module):
        def forward(self, x):
            return torch.tensor([[3.0, -2.0]]) + 0 * x.flatten(1)[:, :2]

    for attack in (attacks.CarliniWagnerL2(), attacks.CarliniWagnerL2(schedule="published")):
        result = attack.run(Dead(), torch.rand(3, 4))
        assert not result.success.any()
        assert (result.queries.backward <= 30).all()


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"confidence": -1.0}, ValueError, "`confidence` must .*got -1"),
        ({"search_steps": 0}, ValueError, "`search_steps` must be .*at least 1"),
        ({"steps": 0}, ValueError, "`steps` must be .*at least 1"),
        ({"lr": 0.0}, ValueError, "`lr` must be"),
        ({"initial_const": -1.0}, ValueError, "`initial_const` must be"),
        ({"schedule": 1}, ValueError, "`schedule` must be one of"),
        ({"candidates": 0}, ValueError, "`candidates` must be"),
    ],
)
def test_wrong_settings(settings, error, said):
    with pytest.raises(error, match=said):
        attacks.CarliniWagnerL2(**settings)
