"""Linear models, where the nearest adversarial example and the best one in a ball are known."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize
from torch import nn

from advkit import TorchClassifier, attacks
from tests.toys import Halfspace

pytestmark = pytest.mark.slow("every attack in many dimensions, boxes and dtypes")
NORMS = ("linf", "l2", "l1")
RATIOS = ((0.97, False), (1.03, True))
D = 12


def planes(seed):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(D, generator=generator, dtype=torch.float64)
    return Halfspace(w, b=0.1), torch.rand(8, D, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("ratio", "succeeds"), RATIOS)
@pytest.mark.parametrize("stop", ["first", "never"])
@pytest.mark.parametrize("step_size", [None, "constant"])
@pytest.mark.parametrize("seed", range(3))
def test_pgd_succeeds_exactly_when_the_boundary_is_within_eps(
    norm, ratio, succeeds, stop, step_size, seed
):
    plane, x = planes(seed)
    eps = ratio * plane.distance(x, norm)
    model = TorchClassifier(plane, bounds=(-100, 100))
    for i in range(len(x)):
        step = None if step_size is None else 2.5 * float(eps[i]) / 40
        attack = attacks.PGD(eps=float(eps[i]), norm=norm, stop=stop, step_size=step)
        result = attack.run(model, x[i : i + 1])
        assert result.success.item() is succeeds
        assert result.distance.item() <= eps[i] * (1 + 1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("ratio", "succeeds"), RATIOS)
def test_one_step_is_enough_and_no_more_than_enough(norm, ratio, succeeds):
    plane, x = planes(0)
    model = TorchClassifier(plane, bounds=(-100, 100))
    attack = attacks.FGM(eps=ratio * plane.distance(x, norm), norm=norm)
    assert (attack.run(model, x).success == succeeds).all()
    if norm == "linf":
        attack = attacks.FGSM(eps=ratio * plane.distance(x, norm))
        assert (attack.run(model, x).success == succeeds).all()
        attack = attacks.BIM(eps=ratio * plane.distance(x, norm))
        assert (attack.run(model, x).success == succeeds).all()


def best_gain(w, room, eps, norm):
    """max of w.d over |d| <= eps and |d_i| <= room_i in w's direction, for one sample in NumPy."""
    w = np.abs(w)
    if norm == "linf":
        return float(w @ np.minimum(eps, room))
    if norm == "l1":
        gain, left = 0.0, eps
        for i in np.argsort(-w):
            select = min(room[i], left)
            gain, left = gain + w[i] * select, left - select
        return gain
    if np.linalg.norm(room) <= eps:
        return float(w @ room)
    scale = brentq(lambda s: np.linalg.norm(np.minimum(s * w, room)) - eps, 0, 1e6)
    return float(w @ np.minimum(scale * w, room))


def smallest_budget(w, room, value, norm):
    return brentq(lambda eps: best_gain(w, room, eps, norm) - value, 0, 100, xtol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("ratio", "succeeds"), RATIOS)
@pytest.mark.parametrize("seed", range(4))
def test_pgd_knows_the_walls_of_the_box(norm, ratio, succeeds, seed):
    """Boundaries that can be reached only with several features at their bounds."""
    plane, x = planes(seed)
    w = plane.w.detach()
    room = torch.where(w > 0, 1 - x, x)
    value = 0.75 * (room * w.abs()).sum(1)
    walls = 0
    for i in range(len(x)):
        plane.b = -float(value[i] + x[i] @ w)
        eps = smallest_budget(w.numpy(), room[i].numpy(), float(value[i]), norm)
        walls += best_gain(w.numpy(), np.full(D, 100.0), eps, norm) > 1.05 * float(value[i])
        attack = attacks.PGD(eps=ratio * eps, norm=norm, steps=100)
        assert attack.run(plane, x[i : i + 1]).success.item() is succeeds
    assert walls >= 3


@pytest.mark.parametrize("norm", NORMS)
def test_targets_on_a_linear_model(norm):
    """Against a target of two classes the attack is the untargeted one of the other label."""
    plane, x = planes(1)
    model = TorchClassifier(plane, bounds=(-100, 100))
    y = model.predict(x)
    attack = attacks.PGD(eps=1.05 * plane.distance(x, norm), norm=norm, steps=20)
    assert attack.run(model, x, target=1 - y).success.all()
    torch.testing.assert_close(attack(model, x, target=1 - y), attack(model, x, y))


class Softmax(nn.Module):
    """Logits w_k.x + b_k: the nearest boundary of an input is that of one of the classes."""

    def __init__(self, w, b):
        super().__init__()
        self.w, self.b = nn.Parameter(w), nn.Parameter(b)

    def forward(self, x):
        return x.flatten(1) @ self.w.T + self.b

    def distance(self, x, norm):
        z, rows = self(x), torch.arange(len(x))
        y = z.argmax(1)
        gaps, normals = z[rows, y][:, None] - z, self.w[y][:, None] - self.w
        dual = {"l2": 2, "linf": 1, "l1": torch.inf}[norm]
        lengths = torch.linalg.vector_norm(normals, ord=dual, dim=2)
        return (gaps / lengths).index_put((rows, y), z.new_tensor(torch.inf)).amin(1).detach()


def regression(shape, n, bounds, dtype):
    """Five classes, inputs in the middle fifth of the box: no wall is near."""
    generator = torch.Generator().manual_seed(len(shape))
    lower, upper = bounds
    w = torch.randn(5, math.prod(shape), generator=generator, dtype=torch.float64)
    x = 0.4 + 0.2 * torch.rand(n, *shape, generator=generator, dtype=torch.float64)
    x = (lower + (upper - lower) * x).to(dtype)
    net = Softmax(w.to(dtype), (-w.sum(1) * (lower + upper) / 2).to(dtype))
    return net, TorchClassifier(net, bounds=bounds), x


NEAREST = [
    attacks.DeepFool(),
    attacks.DeepFool(norm="linf"),
    attacks.CarliniWagnerL2(),
    attacks.LBFGS(),
    attacks.FAB(),
    attacks.FAB(norm="linf"),
    attacks.FAB(norm="l1"),
    *(attacks.FAB(norm=norm, steps=20, schedule="published") for norm in NORMS),
    *(attacks.MinimumNorm(norm=norm) for norm in NORMS),
]


@pytest.mark.parametrize("attack", NEAREST, ids=repr)
@pytest.mark.parametrize("shape", [(8,), (4, 6), (3, 5, 7)], ids=str)
@pytest.mark.parametrize("bounds", [(0, 1), (0, 255), (-1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1, 3, 32])
def test_the_nearest_boundary_is_found(attack, shape, bounds, dtype, n):
    net, model, x = regression(shape, n, bounds, dtype)
    result = attack.run(model, x)
    exact = net.distance(x, attack.norm)
    slack = 1e-5 if dtype == torch.float32 else 1e-9
    assert result.success.all()
    assert (result.distance <= 1.02 * exact + slack * (bounds[1] - bounds[0])).all()
    assert (result.distance >= exact * (1 - slack) - slack * (bounds[1] - bounds[0])).all()


@pytest.mark.parametrize("attack", [a for a in NEAREST if a != attacks.DeepFool()], ids=repr)
@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_boundary_behind_walls_is_found(attack, seed):
    """Boundaries that can be reached only with several features at their bounds."""
    plane, x = planes(seed)
    w = plane.w.detach()
    room = torch.where(w > 0, 1 - x, x)
    value = 0.75 * (room * w.abs()).sum(1)
    for i in range(len(x)):
        plane.b = -float(value[i] + x[i] @ w)
        exact = smallest_budget(w.numpy(), room[i].numpy(), float(value[i]), attack.norm)
        result = attack.run(plane, x[i : i + 1])
        assert result.success.all()
        assert exact * (1 - 1e-6) <= result.distance.item() <= 1.06 * exact


@pytest.mark.parametrize("attack", NEAREST[2:5], ids=repr)
def test_the_nearest_point_of_a_target_is_found(attack):
    """In l2, where it lies on the boundaries to several classes at once."""
    net, model, x = regression((6,), 16, (-50, 50), torch.float64)
    target = (model.predict(x) + 1) % 5
    result = attack.run(model, x, target=target)
    assert result.success.all()
    w, b = net.w.detach().numpy(), net.b.detach().numpy()
    for i in range(len(x)):
        normals, offsets = w[target[i]] - w, b[target[i]] - b
        gaps = normals @ x[i].numpy() + offsets
        lead = {"type": "ineq", "fun": lambda d, n=normals, g=gaps: n @ d + g}
        found = minimize(
            lambda d: d @ d, np.zeros(6), constraints=lead, options={"ftol": 1e-12}, method="SLSQP"
        )
        assert 1 - 1e-6 <= result.distance[i].item() / found.fun**0.5 <= 1.06
