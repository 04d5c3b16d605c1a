"""FMN against NumPy and closed forms, in its four norms."""

import math

import numpy as np
import pytest
import torch

from advkit import InconclusiveWarning, TorchClassifier, attacks
from advkit.core.norms import keep_largest
from tests.toys import Halfspace, Quadratic, Recorded, convnet, images

ORDER = {"l0": 0, "l1": 1, "l2": 2, "linf": np.inf}
DUAL = {"l1": np.inf, "l2": 2, "linf": 1}
SETTINGS = {"steps": 20, "alpha_init": 0.5, "alpha_final": 0.02, "gamma_init": 0.1}


def to_ball(delta, eps, norm):
    """Duchi's projection by bisection, the largest entries, a clip, or in l2 the sphere."""
    size = np.abs(delta)
    if norm == "linf":
        return np.clip(delta, -eps, eps)
    if norm == "l2":
        return delta * eps / np.linalg.norm(delta)
    if norm == "l0":
        return np.where(np.argsort(np.argsort(-size, kind="stable")) < eps, delta, 0)
    low, high = 0.0, size.max()
    if size.sum() <= eps:
        return delta
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(size - middle, 0).sum() > eps else (low, middle)
    return np.sign(delta) * np.maximum(size - low, 0)


def walk(toy, x0, label, sign, norm, published):
    """One sample in NumPy: all iterates, and the distance of the nearest success."""
    a, w, b = toy
    steps, (first, last) = SETTINGS["steps"], (SETTINGS["alpha_init"], SETTINGS["alpha_final"])
    eps, delta, nearest, iterates = (1 if norm == "l0" else 0), np.zeros_like(x0), np.inf, []
    longest = np.linalg.norm(np.maximum(x0, 1 - x0), ORDER[norm])
    for i in range(steps + 1):
        x = x0 + delta
        iterates.append(x)
        z = w @ x + x @ a @ x / 2 + b
        other = max((k for k in range(len(z)) if k != label), key=lambda k: z[k])
        success = (z.argmax() == label) == (sign < 0)
        if abs(z[other] - z[label]) < 1e-9:
            break  # on the boundary itself rounding decides
        distance = np.linalg.norm(delta, ORDER[norm])
        if success:
            nearest = min(nearest, distance)
        slope = sign * (w[other] + a[other] @ x - w[label] - a[label] @ x)
        cosine = (1 + math.cos(math.pi * i / steps)) / 2
        alpha, gamma = last + (first - last) * cosine, 0.001 + 0.099 * cosine
        if norm == "l0":
            fewer = min(eps - 1, math.floor(eps * (1 - gamma)), nearest)
            more = max(eps + 1, math.floor(eps * (1 + gamma)))
            eps = max(fewer if success else more, 1)
        elif success:
            eps = min((1 - gamma) * eps, nearest * (1 if published else 1 - gamma))
        elif np.isfinite(nearest):
            eps = (1 + gamma) * eps
        else:
            plane = abs(z[other] - z[label]) / np.linalg.norm(slope, DUAL[norm])
            grown = 0 if published else (1 + gamma) * eps
            eps = max(distance + plane * (1 if published else 1.001), grown)
        eps = min(eps, longest)
        delta = to_ball(delta + alpha * slope / np.linalg.norm(slope), eps, norm)
        delta = np.clip(x0 + delta, 0, 1) - x0
    return np.stack(iterates), nearest


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("schedule", ["adaptive", "published"])
@pytest.mark.parametrize("norm", ORDER)
@pytest.mark.parametrize("seed", range(4))
def test_against_numpy(seed, norm, schedule, targeted):
    net, bounds = Quadratic(seed=seed), (-2, 2)
    x = torch.rand(12, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = net(x).topk(2, dim=1).indices[:, int(targeted)]
    attack, found = attacks.FMN(norm=norm, schedule=schedule, **SETTINGS), 0
    for i in range(12):
        recorded, label = Recorded(net, bounds), labels[i : i + 1]
        known = {"target": label} if targeted else {"y": label}
        result = attack.run(TorchClassifier(recorded, bounds), 4 * x[i : i + 1] - 2, **known)
        sign, published = (-1 if targeted else 1), schedule == "published"
        iterates, nearest = walk(net.numpy(), x[i].numpy(), int(label), sign, norm, published)
        common = min(len(iterates), len(recorded.iterates()))
        assert common == 21 or published or nearest == 1
        np.testing.assert_allclose(recorded.iterates()[:common], iterates[:common], atol=1e-8)
        if len(iterates) <= 20:
            continue
        assert result.success.item() == np.isfinite(nearest)
        if np.isfinite(nearest):
            found += 1
            scale = 1 if norm == "l0" else 4
            np.testing.assert_allclose(result.distance.item() / scale, nearest)
    assert found >= 5


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("bounds", [(0, 1), (0, 255)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_halfspace_is_left_at_its_boundary(norm, bounds, dtype):
    w = torch.linspace(-1, 2, 24, dtype=dtype)
    width = bounds[1] - bounds[0]
    plane = Halfspace(w, b=-width * (0.5 * float(w.sum()) + 0.7))
    x = torch.full((3, 4, 6), 0.5 * width, dtype=dtype)
    result = attacks.FMN(norm=norm).run(TorchClassifier(plane, bounds), x)
    exact = plane.distance(x, norm)
    assert result.success.all()
    assert (result.distance >= exact * (1 - 1e-5)).all()
    assert (result.distance <= 1.01 * exact).all()


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 9])
def test_the_fewest_features_leave_a_halfspace(needed):
    """The bounds limit what each feature adds, so the fewest are those that add the most."""
    w = torch.linspace(-1, 2, 24, dtype=torch.float64)
    gains = (w.abs() / 2).sort(descending=True).values.cumsum(0)
    short = float(gains[needed - 1]) - 0.05
    plane = Halfspace(w, b=-0.5 * float(w.sum()) - short)
    result = attacks.FMN(norm="l0").run(plane, torch.full((2, 24), 0.5, dtype=torch.float64))
    assert result.success.all()
    assert (result.distance == needed).all()


def test_a_sample_of_one_feature_leaves_the_batch():
    plane = Halfspace(torch.linspace(-1, 2, 24), b=-0.5 * 12 - 0.3)
    result = attacks.FMN(norm="l0").run(plane, torch.full((2, 24), 0.5))
    assert (result.distance == 1).all()
    assert (result.queries.backward < 10).all()


def test_a_sample_without_a_gradient_leaves_the_batch():
    class Flat(torch.nn.Module):
        def forward(self, x):
            return torch.stack([0 * x[:, 0] + 2, 0 * x[:, 1]], dim=1)

    for norm in ORDER:
        with pytest.warns(InconclusiveWarning, match="2 of 2 samples met a gradient of zero"):
            result = attacks.FMN(norm=norm).run(Flat(), torch.full((2, 5), 0.5), torch.zeros(2))
        assert result.queries.backward.tolist() == [1, 1]


def test_the_adaptive_radius_crosses_the_boundary_where_the_published_one_does_not():
    net, x = convnet(dtype=torch.float64), images(dtype=torch.float64)
    for norm in ("l2", "l1"):
        assert not attacks.FMN(norm=norm, schedule="published").run(net, x).success.all()
        assert attacks.FMN(norm=norm).run(net, x).success.all()


def test_the_last_step_is_a_hundredth_of_the_first_one():
    net, x = convnet(dtype=torch.float64), images(dtype=torch.float64)
    plain, given = attacks.FMN(alpha_init=0.4), attacks.FMN(alpha_init=0.4, alpha_final=0.004)
    assert torch.equal(plain(net, x), given(net, x))
    assert not torch.equal(attacks.FMN(alpha_init=0.4, alpha_final=0.4)(net, x), plain(net, x))


@pytest.mark.parametrize("features", [5, 40, 700])
def test_the_largest_entries_are_kept(features):
    """Of equal ones the first, also where only the largest entries are sorted."""
    generator = torch.Generator().manual_seed(features)
    delta = torch.randint(-4, 5, (6, features), generator=generator).double()
    count = torch.tensor([1, 2, 3, 5, 4, features]).clamp_max(features)
    expected = np.stack(
        [to_ball(d, int(k), "l0") for d, k in zip(delta.numpy(), count, strict=True)]
    )
    kept = keep_largest(delta, count.double())
    np.testing.assert_array_equal(kept.numpy(), expected)
    alone = torch.cat([keep_largest(delta[i : i + 1], count[i : i + 1]) for i in range(6)])
    assert torch.equal(kept, alone)


def test_the_bar_counts_the_steps(capsys):
    attacks.FMN(steps=7, progress=True).run(convnet(), images())
    assert "7/7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"norm": "l3"}, ValueError, "`norm` must be one of .*'l0'.*'linf', got 'l3'"),
        ({"steps": 0}, ValueError, "`steps` must be at least 1, got 0"),
        ({"alpha_init": 0.0}, ValueError, "`alpha_init` must be positive and finite, got 0.0"),
        ({"alpha_final": -1.0}, ValueError, "`alpha_final` must be positive and finite, got -1"),
        ({"gamma_init": 0.0}, ValueError, r"`gamma_init` must lie in \(0, 1\), got 0.0"),
        ({"gamma_final": 1.0}, ValueError, r"`gamma_final` must lie in \[0, 1\), got 1.0"),
        ({"schedule": "fast"}, ValueError, "`schedule` must be .*'published'.*got 'fast'"),
        ({"progress": 1}, TypeError, "`progress` must be True or False"),
    ],
)
def test_wrong_settings(settings, error, said):
    with pytest.raises(error, match=said):
        attacks.FMN(**settings)
