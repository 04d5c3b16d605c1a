"""Attacks against plain NumPy versions, one sample at a time, with hand-written gradients.

They share no line with the library, so that the two are wrong together only if the algorithm is
misread. The model is softmax regression of three classes.
"""

import itertools

import numpy as np
import pytest
import torch

from advkit import TorchClassifier, attacks
from advkit.attacks.engine.steepest_ascent import step_schedule
from advkit.core.randomness import uniform_noise
from tests.toys import Linear3

W = np.array(Linear3.W)


def gradient(x, label):
    """Of log(1 - p) - log(p) with respect to x: others' softmax mean of rows, minus own row."""
    z = W @ x
    rest = [k for k in range(3) if k != label]
    weight = np.exp(z[rest] - z[rest].max())
    return (weight / weight.sum()) @ W[rest] - W[label]


def margin(x, label):
    z = W @ x
    return max(z[k] for k in range(3) if k != label) - z[label]


def to_ball(delta, eps, norm):
    if norm == "linf":
        return np.clip(delta, -eps, eps)
    return delta * min(1.0, eps / max(np.linalg.norm(delta), 1e-300))


def climb(x0, label, eps, lengths, norm="linf", momentum=0.0, first=False, sign=1.0):
    """Projected steepest ascent from the clean input, the largest margin or the first success."""
    at, velocity = x0.copy(), 0.0
    best, top = x0.copy(), -np.inf
    for length in [*lengths, None]:
        value = sign * margin(at, label)
        if value > top:
            top, best = value, at.copy()
        if length is None or (first and value > 0):
            break
        g = sign * gradient(at, label)
        if momentum:
            velocity = momentum * velocity + g / np.abs(g).sum()
            g = velocity
        move = np.sign(g) if norm == "linf" else g / np.linalg.norm(g)
        delta = to_ball(at - x0 + length * move, eps, norm)
        at = np.clip(x0 + delta, 0, 1)
    return best


@pytest.fixture(scope="module")
def data():
    x = np.random.default_rng(0).uniform(size=(24, 3))
    return x, (x @ W.T).argmax(1)


def check(attack, expected, data, **target):
    x, y = data
    given = {k: torch.from_numpy(v) for k, v in target.items()}
    found = attack(Linear3(), torch.from_numpy(x), torch.from_numpy(y), **given)
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-12)


@pytest.mark.parametrize("stop", ["first", "never"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_pgd_with_constant_steps(data, stop, norm, momentum):
    attack = attacks.PGD(
        eps=0.2, norm=norm, step_size=0.03, steps=11, stop=stop, momentum=momentum,
        random_start=False,
    )  # fmt: skip
    expected = [
        climb(x, y, 0.2, [0.03] * 11, norm, momentum, stop == "first")
        for x, y in zip(*data, strict=True)
    ]
    check(attack, expected, data)


def test_pgd_with_shrinking_steps(data):
    attack = attacks.PGD(eps=0.2, steps=5, stop="never", random_start=False)
    lengths = [0.2, 0.16, 0.12, 0.08, 0.04]
    check(attack, [climb(x, y, 0.2, lengths) for x, y in zip(*data, strict=True)], data)


def step_l1(g, length, at):
    """The features of largest gradient go to their bounds, one after another."""
    move = np.zeros(3)
    for k in np.argsort(-np.abs(g)):
        room = 1 - at[k] if g[k] > 0 else at[k]
        move[k] = np.sign(g[k]) * min(room, length)
        length -= abs(move[k])
    return move


def to_l1_ball(delta, eps):
    """Soft threshold, found by trying how many features stay."""
    size = np.sort(np.abs(delta))[::-1]
    if size.sum() <= eps:
        return delta
    cut = max((size[:k].sum() - eps) / k for k in (1, 2, 3))
    return np.sign(delta) * np.maximum(np.abs(delta) - cut, 0)


def path_from_afar(start, x0, label, eps, steps, norm, momentum):
    """Iterates in balls of 4 eps to more than eps, and those in the ball of eps."""
    wide = min(3 * steps // 10, 8)
    times = [4 - 3 * i / wide for i in range(wide)] + [1.0] * (steps + 1 - wide)
    at, velocity, path = start.copy(), 0.0, [start]
    for i in range(steps):
        g = gradient(at, label)
        if momentum:
            g = velocity = momentum * velocity + g / np.abs(g).sum()
        length = eps * times[i] * (steps - i) / steps
        move = step_l1(g, length, at) if norm == "l1" else length * g / np.linalg.norm(g)
        delta, radius = at + move - x0, eps * times[i + 1]
        delta = to_l1_ball(delta, radius) if norm == "l1" else to_ball(delta, radius, norm)
        at = np.clip(x0 + delta, 0, 1)
        path.append(at)
    return path[:wide], path[wide:]


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("steps", [4, 7, 10, 40])
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_pgd_with_a_wide_start(data, norm, steps, momentum):
    x, y = map(torch.from_numpy, data)
    attack = attacks.PGD(eps=0.1, norm=norm, steps=steps, momentum=momentum, stop="never")
    seen = []
    found = attack(Remembering(Linear3(), seen), x, y).numpy()
    radius = torch.full((24,), 0.1 * {"l2": 8, "l1": 24}[norm], dtype=x.dtype)
    start = uniform_noise(x, radius, norm, (0, 1), 0, 0).clamp(0, 1).numpy()
    for i, (x0, label) in enumerate(zip(*data, strict=True)):
        wide, kept = path_from_afar(start[i], x0, label, 0.1, steps, norm, momentum)
        path = [at[i].numpy() for at in seen[: steps + 1]]
        np.testing.assert_allclose(path, wide + kept, atol=1e-9)
        # several iterates may have the largest margin
        assert margin(found[i], label) == pytest.approx(max(margin(at, label) for at in kept))
        assert min(np.abs(found[i] - at).max() for at in kept) < 1e-9


def test_targeted_pgd(data):
    x, y = data
    target = (y + 1) % 3
    attack = attacks.PGD(eps=0.3, step_size=0.05, steps=9, stop="never", random_start=False)
    expected = [climb(a, t, 0.3, [0.05] * 9, sign=-1.0) for a, t in zip(x, target, strict=True)]
    check(attack, expected, data, target=target)


def test_bim_takes_its_papers_steps(data):
    attack = attacks.BIM(eps=0.2, stop="never")
    expected = [climb(x, y, 0.2, [0.025] * 10) for x, y in zip(*data, strict=True)]
    check(attack, expected, data)


def test_fgsm_is_its_formula(data):
    expected = [
        np.clip(x + 0.2 * np.sign(gradient(x, y)), 0, 1) for x, y in zip(*data, strict=True)
    ]
    check(attacks.FGSM(eps=0.2, stop="never"), expected, data)
    check(attacks.FGM(eps=0.2, norm="linf", stop="never"), expected, data)


def test_fgsm_returns_its_formula_even_where_it_weakens_the_attack():
    """A step too long for the bend of the loss ends below where it began, and is still FGSM."""

    class Bent(torch.nn.Module):
        def forward(self, x):
            return torch.stack([0 * x[:, 0], -((x[:, 0] - 0.55) ** 2) - 0.01], 1)

    x, y = torch.tensor([[0.5]]), torch.tensor([0])
    result = attacks.FGSM(eps=0.3).run(Bent(), x, y)
    torch.testing.assert_close(result.x_adv, torch.tensor([[0.8]]))
    torch.testing.assert_close(attacks.PGD(eps=0.3, steps=1, random_start=False)(Bent(), x, y), x)


def test_fgm_in_l2_is_its_formula(data):
    def formula(x, y):
        g = gradient(x, y)
        return np.clip(x + 0.2 * g / np.linalg.norm(g), 0, 1)

    expected = [formula(x, y) for x, y in zip(*data, strict=True)]
    check(attacks.FGM(eps=0.2, stop="never"), expected, data)


@pytest.mark.filterwarnings("ignore:.*`step_size` must be large enough")
def test_fast_fgsm_steps_five_quarters_of_eps_from_its_start(data):
    """The start is where PGD with the same seed begins; one step from there, cut to the ball."""
    x, y = (torch.from_numpy(v) for v in data)
    steps = {"eps": 0.2, "stop": "never", "seed": 3}
    start = attacks.PGD(**steps, steps=1, step_size=1e-300)(Linear3(), x, y).numpy()
    assert (np.abs(start - data[0]) > 0.01).any()
    expected = [
        np.clip(x0 + np.clip(s - x0 + 0.25 * np.sign(gradient(s, k)), -0.2, 0.2), 0, 1)
        for x0, s, k in zip(data[0], start, data[1], strict=True)
    ]
    check(attacks.FGSM(**steps, random_start=True), expected, data)


class Remembering(torch.nn.Module):
    """A module that notes its inputs."""

    def __init__(self, inner, seen):
        super().__init__()
        self.inner, self.seen = inner, seen

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.inner(x)


class Trail(torch.nn.Module):
    """A steep linear model that remembers where it was asked."""

    def __init__(self):
        super().__init__()
        self.at = []

    def forward(self, x):
        self.at.append(x.detach().clone())
        return torch.stack([x.sum(1), 0 * x[:, 0] - 99], 1)


def lengths_of(attack):
    """Lengths of an attack's steps on a model whose gradient is everywhere the same."""
    trail = Trail()
    model = TorchClassifier(trail, bounds=(-100, 100))
    attack.run(model, torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0]))
    moves = [float((b - a).abs().max()) for a, b in itertools.pairwise(trail.at[:-1])]
    return [round(move, 9) for move in moves]


def test_steps_have_the_lengths_that_the_docstrings_say():
    assert lengths_of(attacks.BIM(eps=8.0)) == [1.0] * 8 + [0.0] * 2
    assert lengths_of(attacks.BIM(eps=8.0, steps=5)) == [2.0] * 4 + [0.0]
    assert lengths_of(attacks.BIM(eps=8.0, steps=3, step_size=0.5)) == [0.5] * 3
    plain = {"random_start": False, "steps": 3}
    assert lengths_of(attacks.PGD(eps=9.0, step_size=2.0, **plain)) == [2.0] * 3
    assert lengths_of(attacks.PGD(eps=9.0, **plain)) == [9.0, 0.0, 0.0]


def test_shrinking_steps_fall_linearly_from_eps():
    found = step_schedule(torch.tensor([1.0, 8.0]), 4)
    torch.testing.assert_close(found, torch.tensor([[1, 0.75, 0.5, 0.25], [8, 6, 4, 2]]))
