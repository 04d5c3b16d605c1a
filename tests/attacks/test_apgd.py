"""APGD against a plain NumPy version, one sample at a time, and what its pieces promise."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from advkit import QueryBudgetExceeded, QueryCounter, TorchClassifier, attacks
from advkit.core.norms import lp_norm
from advkit.core.randomness import normal, sample_keys, uniform
from tests.toys import Halfspace, answers, convnet, images

CLASSES, FEATURES = 5, 6
RNG = np.random.default_rng(3)
W = RNG.normal(size=(CLASSES, FEATURES))
CURVATURE = RNG.uniform(0, 4, size=CLASSES)
CENTERS = RNG.uniform(size=(CLASSES, FEATURES))


class Curved(nn.Module):
    """Logits that are quadratic in the input, so that long steps overshoot."""

    def forward(self, x):
        w, curvature, centers = (torch.from_numpy(v) for v in (W, CURVATURE, CENTERS))
        return x @ w.T - curvature * (x[:, None] - centers).square().sum(2)


def logits_of(x):
    return W @ x - CURVATURE * np.square(x - CENTERS).sum(1)


def slopes_of(x):
    """Gradient of each logit, `(classes, features)`."""
    return W - 2 * CURVATURE[:, None] * (x - CENTERS)


def log_odds(x, y):
    """Loss and gradient of the cross-entropy in log-odds."""
    z, slopes, rest = logits_of(x), slopes_of(x), [k for k in range(CLASSES) if k != y]
    weights = np.exp(z[rest] - z[rest].max())
    value = z[rest].max() + np.log(weights.sum()) - z[y]
    return value, (weights / weights.sum()) @ slopes[rest] - slopes[y]


def dlr_toward(candidate):
    """The targeted DLR loss at a class, with its gradient by differences of the logits."""

    def objective(x, y):
        z, slopes = logits_of(x), slopes_of(x)
        first, _, third, fourth = np.argsort(-z)[:4]
        scale = z[first] - (z[third] + z[fourth]) / 2
        gap = z[candidate] - z[y]
        down = slopes[first] - (slopes[third] + slopes[fourth]) / 2
        return gap / scale, (slopes[candidate] - slopes[y]) / scale - gap * down / scale**2

    return objective


def margin(x, y):
    z = logits_of(x)
    return max(z[k] for k in range(CLASSES) if k != y) - z[y]


def into_ball(point, x, eps, norm):
    delta = point - x
    if norm == "linf":
        delta = np.clip(delta, -eps, eps)
    elif norm == "l2":
        delta = delta * min(1, eps / max(np.linalg.norm(delta), 1e-300))
    else:  # the threshold of the l1 ball in the box, by bisection
        room = np.where(delta > 0, 1 - x, x)
        low, high = -1e-12, np.abs(delta).max()
        for _ in range(200):
            middle = (low + high) / 2
            size = np.minimum(np.clip(np.abs(delta) - max(middle, 0), 0, None), room)
            low, high = (middle, high) if size.sum() > eps else (low, middle)
        delta = np.sign(delta) * np.minimum(np.clip(np.abs(delta) - max(high, 0), 0, None), room)
    return np.clip(x + delta, 0, 1)


def climb(x, y, start, eps, steps, norm, objective):
    """Every iterate of one phase, and the one of greatest loss."""
    at = before = into_ball(start, x, eps, norm)
    visited, top = [], (-np.inf, None, None)
    size = eps if norm == "l1" else 2 * eps
    period = max(int((0.04 if norm == "l1" else 0.22) * steps), 1)
    next_check, increases, last, checked, reduced = period, 0, np.inf, -np.inf, True
    changed = np.count_nonzero(at - x)
    for i in range(steps + 1):
        visited.append(at)
        value, grad = objective(at, y)
        increases += value > last
        last = value
        if value > top[0]:
            top = (value, at, grad)
        if i == steps:
            return visited, top[1]
        if i == next_check and norm == "l1":
            sparse = np.count_nonzero(top[1] - x)
            sparser = sparse < 0.95 * changed
            size = eps if sparser else max(size / 1.5, eps / 10)
            changed = sparse
            next_check += period
            if sparser:
                at, grad = top[1:]
        elif i == next_check:
            reduced = increases <= 0.75 * period or (not reduced and top[0] <= checked)
            checked, increases = top[0], 0
            period = max(period - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
            next_check += period
            if reduced:
                size /= 2
                at, grad = top[1:]
        if norm == "l1":
            count = min(max(math.ceil(changed / 1.5), 1), FEATURES)
            smallest = np.sort(np.abs(grad))[::-1][count - 1]
            sign = np.sign(grad) * (np.abs(grad) >= smallest)
            moved = into_ball(at + size * sign / np.abs(sign).sum(), x, eps, norm)
        else:
            direction = np.sign(grad) if norm == "linf" else grad / np.linalg.norm(grad)
            moved = into_ball(at + size * direction, x, eps, norm)
            if i:
                mean = at + 0.75 * (moved - at) + 0.25 * (at - before)
                moved = into_ball(mean, x, eps, norm)
        at, before = moved, at


def random_start(x, eps, norm, run):
    """The published distributions, from the numbers that the library draws."""
    keys = sample_keys(torch.from_numpy(x)[None], (0, 1), 0, run)
    draw = uniform if norm == "linf" else normal
    u = draw(keys, FEATURES, torch.float64).numpy()[0]
    if norm == "linf":
        u = 2 * u - 1
        return x + eps * u / np.abs(u).max()
    return x + (eps * u / np.linalg.norm(u) if norm == "l2" else u)


def reference(x, y, eps, steps, norm, first, objectives=(log_odds,)):
    """The strongest iterate over the runs, or the first success."""
    best, top = x, -np.inf
    if margin(x, y) > 0:
        best, top = x, margin(x, y)
    for run, objective in enumerate(objectives):
        at = random_start(x, eps, norm, run)
        phases = [(1, steps)]
        if norm == "l1":
            long = math.ceil(0.3 * steps)
            phases = [(3, long), (2, long), (1, steps - 2 * long)]
        for radius, taken in phases:
            visited, at = climb(x, y, at, radius * eps, taken, norm, objective)
        for point in visited:
            if first and top > 0:
                return best
            if margin(point, y) > top:
                top, best = margin(point, y), point
    return best


@pytest.fixture(scope="module")
def data():
    x = np.random.default_rng(0).uniform(size=(16, FEATURES))
    return x, np.array([int(logits_of(each).argmax()) for each in x])


EPS = {"linf": 0.08, "l2": 0.15, "l1": 0.3}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("stop", ["first", "never"])
@pytest.mark.parametrize("steps", [7, 40])
def test_golden(data, norm, stop, steps):
    attack = attacks.APGD(eps=EPS[norm], norm=norm, steps=steps, stop=stop)
    expected = [
        reference(x, y, EPS[norm], steps, norm, stop == "first") for x, y in zip(*data, strict=True)
    ]
    found = attack(Curved(), *(torch.from_numpy(v) for v in data)).numpy()
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_golden_at_classes(data, norm):
    attack = attacks.APGD(
        eps=EPS[norm], norm=norm, steps=20, stop="never", loss="dlr", candidates=3
    )
    expected = []
    for x, y in zip(*data, strict=True):
        likeliest = [k for k in np.argsort(-logits_of(x)) if k != y][:3]
        objectives = [dlr_toward(k) for k in likeliest]
        expected.append(reference(x, y, EPS[norm], 20, norm, False, objectives))
    found = attack(Curved(), *(torch.from_numpy(v) for v in data)).numpy()
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_halfspace_within_the_budget_is_left(norm):
    """The distance to a plane decides, in all norms and close to the limit."""
    plane = Halfspace(torch.linspace(-1, 1, 12, dtype=torch.float64))
    x = torch.full((2, 12), 0.5, dtype=torch.float64)
    x[1] += 0.01 * torch.linspace(0, 1, 12, dtype=torch.float64)
    plane.b = 0.3
    distance = plane.distance(x, norm)
    y = TorchClassifier(plane, bounds=(-9, 9)).predict(x)
    for factor, expected in ((1.02, True), (0.98, False)):
        attack = attacks.APGD(eps=factor * distance, norm=norm, steps=60)
        result = attack.run(TorchClassifier(plane, bounds=(-9, 9)), x, y)
        assert (result.success == expected).all()


def test_larger_radii_are_never_results():
    net, x = convnet(), images()
    result = attacks.APGD(eps=0.2, norm="l1", steps=10, stop="never").run(net, x)
    assert (lp_norm(result.x_adv - x, "l1") <= 0.2 * (1 + 1e-5)).all()


def test_the_mean_of_several_gradients_finds_what_noise_hides():
    class Noisy(nn.Module):
        """A sum of features whose gradient is random and whose value is not."""

        def forward(self, x):
            noise = 4 * torch.randn_like(x) * (x - x.detach())
            return torch.stack([0 * x.sum(1), (x - 0.5 + noise).sum(1) - 2], 1)

    x, y = torch.full((40, 8), 0.45), torch.zeros(40, dtype=torch.int64)
    moved = []
    for samples in (1, 40):
        torch.manual_seed(0)
        attack = attacks.APGD(eps=0.1, steps=3, gradient_samples=samples, stop="never")
        result = attack.run(Noisy(), x, y)
        moved.append(float((result.x_adv - x).mean()))
        assert (result.queries.backward == 3 * samples).all()
    assert moved[1] > 0.09 > 0.08 > moved[0]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_finished_sample_takes_no_more_passes(norm):
    net, x = convnet(), images()
    y = answers(net, x)
    easy = attacks.APGD(eps=5 if norm != "linf" else 0.5, norm=norm, steps=50).run(net, x, y)
    assert easy.success.all()
    assert (easy.queries.backward < 50).all()


def test_dlr_needs_three_classes_and_four_to_aim_at_one():
    x, y = torch.rand(4, 3), torch.tensor([0, 1, 0, 1])
    two, three = nn.Linear(3, 2), nn.Linear(3, 3)
    with pytest.raises(
        ValueError, match="`loss` must be 'ce' or 'margin' with 2 classes, got 'dlr'"
    ):
        attacks.APGD(eps=0.1, loss="dlr")(two, x, y)
    with pytest.raises(ValueError, match="with 3 classes, got 'dlr', which needs four"):
        attacks.APGD(eps=0.1, loss="dlr", candidates=2)(three, x, y)
    with pytest.raises(ValueError, match="with 3 classes, got 'dlr', which needs four"):
        attacks.APGD(eps=0.1, loss="dlr")(three, x, y, target=y)
    attacks.APGD(eps=0.1, loss="dlr")(three, x, y)


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_targets_are_reached_with_every_loss(data, loss):
    x, y = (torch.from_numpy(v) for v in data)
    target = Curved()(x).topk(2, dim=1).indices[:, 1]
    result = attacks.APGD(eps=0.9, loss=loss, steps=30).run(Curved(), x, y, target=target)
    assert result.success.float().mean() > 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "`steps` must be"),
        ({"restarts": 0}, "`restarts` must be"),
        ({"candidates": 0}, "`candidates` must be"),
        ({"gradient_samples": 0}, "`gradient_samples` must be"),
        ({"norm": "l0"}, "`norm` must be"),
        ({"loss": "nll"}, "`loss` must be"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        attacks.APGD(**{"eps": 0.1, **options})


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.filterwarnings("ignore:The ball of .* holds every input")
def test_radii_near_the_largest_number_send_finite_inputs(norm):
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            seen.append(bool(x.isfinite().all()))
            return torch.stack([x.flatten(1).sum(1), 500 + 0 * x.flatten(1).sum(1)], 1).float()

    x = torch.full((2, 4), 100.0, dtype=torch.float16)
    model = TorchClassifier(Watched(), bounds=(0, 255))
    attacks.APGD(eps=60000, norm=norm, steps=10)(model, x, torch.tensor([1, 1]))
    assert all(seen)


def test_a_budget_that_ends_in_a_larger_ball_gives_no_iterate_outside_of_eps():
    net, x = convnet(), images(4)
    y, inside, distances = answers(net, x), 0.3, []
    for max_queries in range(4, 4 * 18, 4):
        counted = QueryCounter(TorchClassifier(net), max_queries=max_queries)
        try:
            attacks.APGD(eps=inside, norm="l1", steps=20, stop="never").run(counted, x, y)
        except QueryBudgetExceeded as error:
            distances.append(float(error.result.distance.max()))
    assert len(distances) > 10
    assert max(distances) <= inside * (1 + 1e-5)
