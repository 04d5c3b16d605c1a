"""Sigma-zero against NumPy and closed forms."""

import math

import numpy as np
import pytest
import torch

from advkit import InconclusiveWarning, TorchClassifier, attacks
from tests.toys import Halfspace, Quadratic, Recorded, convnet, images

SETTINGS = {"steps": 30, "lr": 0.6, "sigma": 2e-3, "tau_init": 0.2, "tau_factor": 0.03}


def walk(toy, x0, label, sign):
    """One sample in NumPy: all iterates, and the fewest features of a success."""
    a, w, b = toy
    steps, sigma, tau = SETTINGS["steps"], SETTINGS["sigma"], SETTINGS["tau_init"]
    delta, first, second = np.zeros_like(x0), np.zeros_like(x0), np.zeros_like(x0)
    iterates, fewest = [], np.inf

    def rate(i):
        return SETTINGS["lr"] * (0.1 + 0.9 * (1 + math.cos(math.pi * i / steps)) / 2)

    for i in range(steps + 1):
        x = x0 + delta
        iterates.append(x)
        z = w @ x + x @ a @ x / 2 + b
        other = max((k for k in range(len(z)) if k != label), key=lambda k: z[k])
        success = (z.argmax() == label) == (sign < 0)
        if success:
            fewest = min(fewest, np.count_nonzero(delta))
        # of the mean of d^2 / (d^2 + sigma), by the quotient rule
        slope = (2 * delta * (delta**2 + sigma) - delta**2 * 2 * delta) / (delta**2 + sigma) ** 2
        slope = slope / len(x0)
        if not success:
            slope -= sign * (w[other] + a[other] @ x - w[label] - a[label] @ x)
        slope /= np.abs(slope).max()
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope**2
        scale = np.sqrt(second / (1 - 0.999 ** (i + 1))) + 1e-8
        delta = delta - rate(i) * first / (1 - 0.9 ** (i + 1)) / scale
        delta = np.clip(x0 + delta, 0, 1) - x0
        tau = np.clip(tau + SETTINGS["tau_factor"] * rate(i + 1) * (1 if success else -1), 0, 1)
        delta[np.abs(delta) < tau] = 0
    return np.stack(iterates), fewest


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("bounds", [(0, 1), (-2, 2)])
@pytest.mark.parametrize("seed", range(4))
def test_against_numpy(seed, bounds, targeted):
    net, (lower, upper) = Quadratic(seed=seed, features=9), bounds
    x = torch.rand(12, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = net(x).topk(2, dim=1).indices[:, int(targeted)]
    attack, found = attacks.SigmaZero(**SETTINGS), 0
    for i in range(12):
        recorded, label = Recorded(net, bounds), labels[i : i + 1]
        known = {"target": label} if targeted else {"y": label}
        inputs = lower + (upper - lower) * x[i : i + 1]
        result = attack.run(TorchClassifier(recorded, bounds), inputs, **known)
        iterates, fewest = walk(net.numpy(), x[i].numpy(), int(label), -1 if targeted else 1)
        if fewest == 1:
            iterates = iterates[: len(recorded.iterates())]
        np.testing.assert_allclose(recorded.iterates(), iterates, atol=1e-8)
        assert result.success.item() == np.isfinite(fewest)
        if np.isfinite(fewest):
            found += 1
            assert result.distance.item() == fewest
    assert found >= 8


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 9])
def test_the_fewest_features_leave_a_halfspace(needed):
    """The bounds limit what each feature adds, so the fewest are those that add the most."""
    w = torch.linspace(-1, 2, 24, dtype=torch.float64)
    gains = (w.abs() / 2).sort(descending=True).values.cumsum(0)
    short = float(gains[needed - 1]) - 0.05
    plane = Halfspace(w, b=-0.5 * float(w.sum()) - short)
    result = attacks.SigmaZero(steps=300).run(plane, torch.full((2, 24), 0.5).double())
    assert result.success.all()
    assert (result.distance == needed).all()


def test_a_sample_of_one_feature_leaves_the_batch():
    plane = Halfspace(torch.linspace(-1, 2, 24), b=-0.5 * 12 - 0.6)
    result = attacks.SigmaZero(steps=1000).run(plane, torch.full((2, 24), 0.5))
    assert (result.distance == 1).all()
    assert (result.queries.backward < 500).all()


def test_a_sample_without_a_gradient_leaves_the_batch():
    class Flat(torch.nn.Module):
        def forward(self, x):
            return torch.stack([0 * x[:, 0] + 2, 0 * x[:, 1]], dim=1)

    with pytest.warns(InconclusiveWarning, match="2 of 2 samples met a gradient of zero"):
        result = attacks.SigmaZero().run(Flat(), torch.full((2, 5), 0.5), torch.zeros(2))
    assert result.queries.backward.tolist() == [1, 1]


def test_the_bar_counts_the_steps(capsys):
    attacks.SigmaZero(steps=7, progress=True).run(convnet(), images())
    assert "7/7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"steps": 0}, ValueError, "`steps` must be at least 1, got 0"),
        ({"lr": 0.0}, ValueError, "`lr` must be positive and finite, got 0.0"),
        ({"sigma": 0.0}, ValueError, "`sigma` must be positive and finite, got 0.0"),
        ({"tau_init": 1.5}, ValueError, r"`tau_init` must lie in \[0, 1\], got 1.5"),
        ({"tau_factor": -0.1}, ValueError, r"`tau_factor` must lie in \[0, 1\], got -0.1"),
        ({"progress": 1}, TypeError, "`progress` must be True or False"),
    ],
)
def test_wrong_settings(settings, error, said):
    with pytest.raises(error, match=said):
        attacks.SigmaZero(**settings)
