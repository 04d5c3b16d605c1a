"""DDN against NumPy and closed forms."""

import math

import numpy as np
import pytest
import torch

from advkit import InconclusiveWarning, TorchClassifier, attacks
from tests.attacks.test_linear import Softmax
from tests.toys import Halfspace, Quadratic, Recorded, convnet, images

SETTINGS = {"steps": 15, "gamma": 0.1, "length": 0.4}


def gradient(toy, x, label):
    """Of the cross-entropy at `label`."""
    a, w, b = toy
    z = w @ x + x @ a @ x / 2 + b
    p = np.exp(z - z.max())
    p /= p.sum()
    p[label] -= 1
    return p @ (w + a @ x)


def predicted(toy, x):
    a, w, b = toy
    return (w @ x + x @ a @ x / 2 + b).argmax()


def walk(toy, x0, label, sign, *, steps, gamma, length):
    """One sample in NumPy: all iterates, and the distance of the nearest success."""
    longest, delta = np.linalg.norm(np.maximum(x0, 1 - x0)), np.zeros_like(x0)
    iterates, nearest = [], np.inf
    for i in range(steps + 1):
        iterates.append(x0 + delta)
        success = (predicted(toy, x0 + delta) == label) == (sign < 0)
        if success:
            nearest = min(nearest, np.linalg.norm(delta))
        slope = sign * gradient(toy, x0 + delta, label)
        alpha = 0.01 + 0.99 * (1 + math.cos(math.pi * i / steps)) / 2
        delta = delta + alpha * slope / np.linalg.norm(slope)
        length = min(length * (1 - gamma if success else 1 + gamma), longest)
        delta = np.clip(x0 + length * delta / np.linalg.norm(delta), 0, 1) - x0
    return np.stack(iterates), nearest


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("bounds", [(0, 1), (-2, 6)])
@pytest.mark.parametrize("seed", range(4))
def test_against_numpy(seed, bounds, targeted):
    net, (lower, upper) = Quadratic(seed=seed), bounds
    x = torch.rand(12, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = net(x).topk(2, dim=1).indices[:, int(targeted)]
    attack, found = attacks.DDN(steps=15, gamma=0.1, init_norm=0.4), 0
    for i in range(12):
        recorded, label = Recorded(net, bounds), labels[i : i + 1]
        model = TorchClassifier(recorded, bounds)
        inputs = lower + (upper - lower) * x[i : i + 1]
        known = {"target": label} if targeted else {"y": label}
        result = attack.run(model, inputs, **known)
        iterates, nearest = walk(
            net.numpy(), x[i].numpy(), int(label), -1 if targeted else 1, **SETTINGS
        )
        np.testing.assert_allclose(recorded.iterates(), iterates, atol=1e-8)
        assert result.success.item() == np.isfinite(nearest)
        if np.isfinite(nearest):
            found += 1
            np.testing.assert_allclose(result.distance.item() / (upper - lower), nearest)
    assert found >= 8


@pytest.mark.parametrize("bounds", [(0, 1), (0, 255)])
@pytest.mark.parametrize("gamma", [0.05, 0.02])
def test_a_halfspace_is_left_at_its_boundary_up_to_gamma(bounds, gamma):
    w = torch.linspace(-1, 2, 24, dtype=torch.float64)
    width = bounds[1] - bounds[0]
    plane = Halfspace(w, b=-width * (0.5 * float(w.sum()) + 1.3))
    x = torch.full((3, 4, 6), 0.5 * width, dtype=torch.float64)
    attack = attacks.DDN(gamma=gamma, init_norm=0.5)
    result, exact = attack.run(TorchClassifier(plane, bounds), x), plane.distance(x, "l2")
    assert result.success.all()
    assert (result.distance >= exact * (1 - 1e-9)).all()
    assert (result.distance <= (1 + 2 * gamma) * exact).all()


def test_the_nearest_of_several_classes_is_about_found():
    generator = torch.Generator().manual_seed(0)
    net = Softmax(
        torch.randn(5, 12, generator=generator, dtype=torch.float64), torch.zeros(5).double()
    )
    x = 0.4 + 0.2 * torch.rand(16, 12, generator=generator, dtype=torch.float64)
    result = attacks.DDN(init_norm=0.1).run(TorchClassifier(net, bounds=(-1, 2)), x)
    assert result.success.all()
    ratio = result.distance / net.distance(x, "l2")
    assert (ratio >= 1 - 1e-9).all()
    assert ratio.median() < 1.05


def test_the_first_length_is_in_widths_of_the_bounds():
    """One step from the input, which succeeds exactly if it is long enough."""
    plane = Halfspace(torch.tensor([3.0, 4.0], dtype=torch.float64), b=-10.0)  # 2 away from zero
    model, x = TorchClassifier(plane, bounds=(-10, 10)), torch.zeros(1, 2, dtype=torch.float64)
    length = 2 / 20 / 1.5
    near = attacks.DDN(steps=1, gamma=0.5, init_norm=1.001 * length).run(model, x)
    assert near.success.all()
    torch.testing.assert_close(near.distance, torch.tensor([2.002]).double())
    assert not attacks.DDN(steps=1, gamma=0.5, init_norm=0.999 * length).run(model, x).success.any()


def test_a_sample_without_a_gradient_leaves_the_batch():
    class Half(torch.nn.Module):
        """Constant logits for the first sample."""

        def forward(self, x):
            slope = torch.tensor([0.0, 1.0], dtype=x.dtype)[: len(x)]
            slope = slope if len(x) == 2 else slope.new_ones(1)
            return torch.stack([0 * x[:, 0] + 1, slope * (x[:, 0] + x[:, 1])], dim=1)

    x = torch.tensor([[0.2, 0.2], [0.3, 0.3]])
    with pytest.warns(InconclusiveWarning, match=r"gradient of zero .*sample 0"):
        result = attacks.DDN(steps=20).run(Half(), x, torch.zeros(2))
    assert result.success.tolist() == [False, True]
    assert result.queries.backward.tolist() == [1, 20]


def test_the_bar_counts_the_steps(capsys):
    attacks.DDN(steps=7, progress=True).run(convnet(), images())
    assert "7/7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"steps": 0}, ValueError, "`steps` must be at least 1, got 0"),
        ({"gamma": 0.0}, ValueError, r"`gamma` must lie in \(0, 1\), got 0.0"),
        ({"gamma": 1.0}, ValueError, r"`gamma` must lie in \(0, 1\), got 1.0"),
        ({"init_norm": 0.0}, ValueError, "`init_norm` must be positive and finite, got 0.0"),
        ({"progress": 1}, TypeError, "`progress` must be True or False"),
        ({"norm": "linf"}, TypeError, "`norm` must be a parameter of DDN"),
    ],
)
def test_wrong_settings(settings, error, said):
    with pytest.raises(error, match=said):
        attacks.DDN(**settings)
