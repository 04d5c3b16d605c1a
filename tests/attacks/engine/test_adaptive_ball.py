"""The descent of FMN with momentum, in NumPy."""

import math

import numpy as np
import pytest
import torch

from advkit import TorchClassifier, attacks
from advkit.attacks.engine.adaptive_ball import AdaptiveBall
from advkit.attacks.engine.records import Nearest
from tests.toys import Quadratic, Recorded

BOUNDS = (-2.0, 2.0)


@pytest.mark.parametrize("momentum", [0.0, 0.75])
@pytest.mark.parametrize("seed", range(3))
def test_two_steps_with_momentum(seed, momentum):
    """In l2: the sum of the unit gradients, normalized, and the sphere of the radius."""
    net = Quadratic(seed=seed, classes=2, bend=3.0)
    a, w, b = net.numpy()
    x0 = np.full(6, 0.5)
    y = int((w @ x0 + x0 @ a @ x0 / 2 + b).argmax())
    sum_of_units, delta, radius, nearest, expected = np.zeros(6), np.zeros(6), 0.0, np.inf, [x0]
    for i in range(2):
        x = x0 + delta
        z = w @ x + x @ a @ x / 2 + b
        slope, gap = (w + a @ x)[1 - y] - (w + a @ x)[y], z[y] - z[1 - y]
        cosine = (1 + math.cos(math.pi * i / 2)) / 2
        alpha, gamma = 0.1 + 0.2 * cosine, 0.01 + 0.09 * cosine
        if gap < 0:
            nearest = min(nearest, np.linalg.norm(delta))
            radius = min(radius, nearest) * (1 - gamma)
        elif np.isfinite(nearest):
            radius *= 1 + gamma
        else:
            to_plane = 1.001 * gap / np.linalg.norm(slope)
            radius = max(np.linalg.norm(delta) + to_plane, radius * (1 + gamma))
        radius = min(radius, np.linalg.norm(np.maximum(x0, 1 - x0)))
        sum_of_units = momentum * sum_of_units + slope / np.linalg.norm(slope)
        delta = delta + alpha * sum_of_units / np.linalg.norm(sum_of_units)
        delta = np.clip(x0 + radius * delta / np.linalg.norm(delta), 0, 1) - x0
        expected.append(x0 + delta)
    recorded, x = Recorded(net, BOUNDS), torch.zeros(1, 6, dtype=torch.float64)
    attack = attacks.MinimumNorm()
    problem = attack._problem(TorchClassifier(recorded, BOUNDS), x, torch.tensor([y]), None)
    AdaptiveBall(
        norm="l2", steps=2, alpha_init=0.3, alpha_final=0.1, gamma_init=0.1, gamma_final=0.01,
        momentum=momentum,
    ).search(problem, x, Nearest.empty(x))  # fmt: skip
    np.testing.assert_allclose(torch.cat(recorded.seen).numpy(), np.stack(expected), atol=1e-10)
