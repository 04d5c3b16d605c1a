"""FAB against NumPy, and how it spends its steps."""

import math

import numpy as np
import pytest
import torch

from advkit import QueryBudgetExceeded, QueryCounter, TorchClassifier, attacks
from advkit.attacks.engine import boundary_walk
from tests.toys import Halfspace, Quadratic, answers, convnet, images

ORDER = {"l2": 2, "linf": np.inf, "l1": 1}
DUAL = {"l2": 2, "linf": 1, "l1": np.inf}
NORMS = list(ORDER)


def shortest_step(x, normal, gap, norm):
    """The shortest step in the box that adds `gap` to the product with `normal`, by bisection."""
    toward = normal if gap >= 0 else -normal
    room, slope = np.where(toward > 0, 1 - x, x) * (toward != 0), np.abs(toward)
    order = np.argsort(-slope, kind="stable")

    def size(t):
        if norm == "l1":
            left = np.clip(t - np.cumsum(room[order]) + room[order], 0, None)
            return np.minimum(room[order], left)[np.argsort(order, kind="stable")]
        return np.minimum(room, t * slope if norm == "l2" else t)

    low, high = 0.0, 1e6
    if slope @ size(high) <= abs(gap):
        return np.sign(toward) * size(high)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if slope @ size(middle) > abs(gap) else (middle, high)
    return np.sign(toward) * size(high)


class Toy:
    """A net of a few features, one sample at a time."""

    def __init__(self, net, norm):
        self.a, self.w, self.b = net.numpy()
        self.norm = norm

    def logits(self, x):
        return self.w @ x + x @ self.a @ x / 2 + self.b

    def plane(self, x, toward, away):
        """Normal of dual norm 1 and gap of the boundary between two classes at `x`."""
        normal = (self.w + self.a @ x)[toward] - (self.w + self.a @ x)[away]
        slope = np.linalg.norm(normal, DUAL[self.norm])
        return normal / slope, (self.logits(x)[away] - self.logits(x)[toward]) / slope

    def size(self, v):
        return np.linalg.norm(v, ORDER[self.norm])

    def step(self, x, normal, gap):
        return shortest_step(x, normal, gap, self.norm)


def adaptive_walk(toy, x0, target, steps):
    """One sample to one class: onto the plane, then towards the input's projection."""
    x, mean, over, best, nearest = x0, np.zeros_like(x0), 0.02, x0, np.inf
    for i in range(steps + 1):
        z = toy.logits(x)
        success, distance = z.argmax() == target, toy.size(x - x0)
        if success and distance < nearest:
            nearest, best = distance, x
        if i == steps:
            return best
        away = max((k for k in range(len(z)) if k != target), key=lambda k: z[k])
        share = 0.01 + 0.49 * (1 + math.cos(math.pi * i / (steps - 1))) / 2
        unit, gap = toy.plane(x, target, away)
        over = np.clip(over * (0.7 if success else 1.3), 1e-3, 2.0)
        if success:
            back = x0 + (1 - 0.2 * share) * (x - x0)
            x, gap = back, gap + unit @ (x - back)
        on_plane = x + toy.step(x, unit, gap + over * max(distance, gap))
        mean = 0.2 * unit + 0.8 * mean
        direction = mean / np.linalg.norm(mean, DUAL[toy.norm])
        foot = x0 + toy.step(x0, direction, direction @ (on_plane - x0))
        x = np.clip((1 - share) * on_plane + share * foot, 0, 1)


def published_walk(toy, x0, y, candidate, steps):
    """One sample to one class, as in the code of the paper."""
    x, best, nearest = x0, x0, np.inf
    for _ in range(steps):
        unit, gap = toy.plane(x, candidate, y)
        d1 = toy.step(x, unit, gap)
        d2 = toy.step(x0, unit, gap + unit @ (x - x0))
        a1, a2 = max(toy.size(d1), 1e-8), max(toy.size(d2), 1e-8)
        alpha = min(a1 / (a1 + a2), 0.1)
        x = np.clip((x + 1.05 * d1) * (1 - alpha) + (x0 + 1.05 * d2) * alpha, 0, 1)
        if toy.logits(x).argmax() != y:
            if toy.size(x - x0) < nearest:
                nearest, best = toy.size(x - x0), x
            x = x0 + 0.9 * (x - x0)
    return nearest, best


def points(seed):
    """Inputs of a net of a few features, the first one in a corner of the box."""
    net = Quadratic(seed=seed)
    x = torch.rand(12, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[0] = (x[0] > 0.5).double()
    return net, x


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(4))
def test_the_adaptive_walk(norm, seed, monkeypatch):
    monkeypatch.setattr(attacks.FAB, "_refine_steps", 0)
    net, x = points(seed)
    target = net(x).topk(2, dim=1).indices[:, 1]
    result = attacks.FAB(norm=norm, steps=9).run(net, x, target=target)
    found, toy = result.success, Toy(net, norm)
    assert found.sum() >= 8
    expected = [adaptive_walk(toy, x[i].numpy(), int(target[i]), 9) for i in range(12)]
    np.testing.assert_allclose(
        result.x_adv[found].numpy(), np.stack(expected)[found.numpy()], atol=1e-8
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(4))
def test_the_published_walks(norm, seed, monkeypatch):
    """The likeliest two classes one after another, with a second evaluation after a success."""
    monkeypatch.setattr(attacks.FAB, "_refine_steps", 0)
    net, x = points(seed)
    y, toy = answers(net, x), Toy(net, norm)
    attack = attacks.FAB(norm=norm, steps=9, schedule="published", candidates=2)
    result = attack.run(net, x, y)
    assert result.success.sum() >= 8
    for i in range(12):
        x0, label = x[i].numpy(), int(y[i])
        others = [k for k in np.argsort(-toy.logits(x0)) if k != label][:2]
        nearest, best = min(published_walk(toy, x0, label, k, 9) for k in others[::-1])
        assert result.success[i] == np.isfinite(nearest)
        np.testing.assert_allclose(result.x_adv[i].numpy(), best, atol=1e-8)


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


@pytest.fixture
def walks(monkeypatch):
    """The steps of each walk, and its first iterates."""
    seen, search = [], boundary_walk.BoundaryWalk.search

    def recorded(walk, problem, start, nearest, **options):
        seen.append((len(walk.fractions), start.clone()))
        return search(walk, problem, start, nearest, **options)

    monkeypatch.setattr(boundary_walk.BoundaryWalk, "search", recorded)
    return seen


def test_half_of_the_steps_go_on_from_the_nearest_success(walks):
    net, x = convnet(classes=10, dtype=torch.float64), images(4, torch.float64)
    found = attacks.FAB(steps=20).run(net, x, answers(net, x))
    assert [steps for steps, _ in walks] == [5, 5, 10]
    assert torch.equal(walks[0][1], x)
    assert torch.equal(walks[1][1], x)
    start = walks[2][1] - x
    assert (start.flatten(1).norm(dim=1) > 0).all()
    assert (found.distance <= start.flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [10] * 5 + [50]),
        ({"steps": 199}, [19] * 5 + [104]),
        ({"steps": 1000}, [10] * 5 + [50] + [100] * 9),
        ({"steps": 20, "restarts": 3}, [5, 5, 10, 20, 20]),
        ({"steps": 9}, [9]),
        ({"steps": 40, "candidates": 2}, [10, 10, 20]),
        ({"steps": 3, "schedule": "published"}, [3] * 9),
        ({"steps": 3, "schedule": "published", "candidates": 2, "restarts": 2}, [3] * 4),
    ],
)
def test_the_schedule(walks, settings, steps):
    net, x = convnet(classes=10), images(2)
    attacks.FAB(**settings).run(net, x, answers(net, x))
    assert [taken for taken, _ in walks] == steps


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("schedule", ["adaptive", "published"])
def test_further_runs_begin_at_random_at_half_the_distance(walks, norm, schedule):
    net, x = convnet(dtype=torch.float64), images(4, torch.float64)
    x = 0.4 + 0.2 * x
    options = {"norm": norm, "steps": 10, "schedule": schedule, "candidates": 1, "seed": 3}
    first = attacks.FAB(**options)
    found = first.run(net, x, answers(net, x))
    walks.clear()
    more = attacks.FAB(restarts=3, **options)
    result = more.run(net, x, answers(net, x))
    (_, one), (_, two) = walks[-2:]
    assert not torch.allclose(one, two)
    lengths = torch.linalg.vector_norm((one - x).flatten(1), ord=ORDER[norm], dim=1)
    # the first run is not refined yet
    assert ((lengths >= 0.5 * found.distance) & (lengths < 0.75 * found.distance)).all()
    assert (result.distance <= 1.01 * found.distance).all()


def test_a_random_start_without_a_success_is_anywhere_in_the_box(walks):
    class Constant(torch.nn.Module):
        def forward(self, x):
            zero = 0 * x.flatten(1).sum(1)
            return torch.stack([zero + 9, zero], dim=1)

    x = torch.full((2, 50), 0.5)
    with pytest.warns(UserWarning, match="gradient of zero"):
        attacks.FAB(steps=2, restarts=2, norm="linf").run(Constant(), x, torch.zeros(2))
    reached = (walks[-1][1] - x).abs().amax(1)
    torch.testing.assert_close(reached, torch.full((2,), 0.25))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("schedule", ["adaptive", "published"])
def test_a_budget_decides_about_success(norm, schedule):
    net, x = convnet(dtype=torch.float64), images(12, torch.float64)
    y, options = answers(net, x), {"norm": norm, "schedule": schedule, "steps": 20, "restarts": 2}
    nearest = attacks.FAB(**options).run(net, x, y).distance
    for factor, reached in ((1.3, True), (0.7, False)):
        eps = factor * nearest
        result = attacks.FAB(eps=eps, **options).run(net, x, y)
        assert (result.success == reached).all()
        assert (result.distance <= eps * (1 + 1e-9)).all()
        if not reached:
            torch.testing.assert_close(result.distance, eps)  # the nearest success, projected


def test_a_sample_is_finished_at_its_first_success_in_the_ball():
    net, x = convnet(classes=10), images(8)
    y, steps = answers(net, x), 40
    nearest = attacks.FAB(steps=steps).run(net, x, y)
    eps = torch.where(torch.arange(8) < 4, 3 * nearest.distance, 0.5 * nearest.distance)
    queries = attacks.FAB(steps=steps, eps=eps).run(net, x, y).queries
    assert (queries.backward[:4] <= 5).all()
    assert (queries.forward[:4] <= queries.backward[:4] + 3).all()
    assert torch.equal(queries.backward[4:], nearest.queries.backward[4:])


def test_a_success_in_the_ball_ends_a_walk():
    net, x = convnet(classes=10), images(8)
    y, options = answers(net, x), {"steps": 30, "schedule": "published", "candidates": 1}
    nearest = attacks.FAB(**options).run(net, x, y)
    assert nearest.success.all()
    queries = attacks.FAB(eps=2 * nearest.distance, **options).run(net, x, y).queries
    assert (queries.backward < 15).all()


def test_a_random_start_is_within_half_of_the_budget(walks):
    net, x = convnet(dtype=torch.float64), images(4, torch.float64)
    x = 0.4 + 0.2 * x
    attacks.FAB(eps=1e-3, steps=10, restarts=2).run(net, x, answers(net, x))
    length = (walks[-1][1] - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(length, torch.full((4,), 5e-4, dtype=torch.float64))


def test_a_used_up_query_budget_returns_only_successes_in_the_ball():
    net, x = convnet(dtype=torch.float64), images(4, torch.float64)
    y = answers(net, x)
    eps = 0.5 * attacks.FAB().run(net, x, y).distance
    model = QueryCounter(TorchClassifier(net), max_queries=60)
    with pytest.raises(QueryBudgetExceeded) as error:
        attacks.FAB(eps=eps).run(model, x, y)
    assert not error.value.result.success.any()
    assert torch.equal(error.value.result.x_adv, x)


def test_random_starts_aim_at_the_class_of_the_success_and_at_any_in_turn(monkeypatch):
    aims, search = [], boundary_walk.BoundaryWalk.search

    def recorded(walk, problem, start, nearest, **options):
        reached = answers(net, nearest.x_adv) if nearest.success.all() else None
        aims.append((problem.goal.candidate, reached))
        return search(walk, problem, start, nearest, **options)

    monkeypatch.setattr(boundary_walk.BoundaryWalk, "search", recorded)
    net, x = convnet(classes=10), images(4)
    attacks.FAB(steps=20, restarts=4).run(net, x, answers(net, x))
    (one, found), (two, _), (three, again) = aims[-3:]
    assert two is None
    assert torch.equal(one, found)
    assert torch.equal(three, again)


def test_a_success_outside_the_ball_is_projected_onto_it():
    """The step of half the overshoot more than needed does not count as a failure."""
    plane = Halfspace(torch.linspace(-1, 2, 12, dtype=torch.float64), b=-5.0)
    x = torch.full((3, 12), 0.5, dtype=torch.float64)
    model, exact = TorchClassifier(plane, bounds=(-9, 9)), plane.distance(x, "l2")
    result = attacks.FAB(steps=1, eps=1.003 * exact).run(model, x)
    assert result.success.all()
    torch.testing.assert_close(result.distance, 1.003 * exact)


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


def test_all_of_many_steps_are_taken():
    """Where one boundary is all there is, and after the first hundred steps."""
    plane = Halfspace(torch.linspace(-1, 1, 8, dtype=torch.float64), b=0.3)
    result = attacks.FAB(steps=500).run(plane, torch.full((4, 8), 0.5, dtype=torch.float64))
    assert (result.queries.backward >= 400).all()


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
    result = attacks.FAB().run(plane, torch.full((4, 8), 0.5, dtype=torch.float64))
    assert (result.queries.backward < 60).all()


def test_classes_that_are_far_are_given_up_early():
    """One boundary is near and four are ten times as far: seven steps for each of them will do."""
    net = torch.nn.Linear(8, 6).double()
    net.weight.data = torch.eye(6, 8, dtype=torch.float64) - 0.1
    net.bias.data = torch.tensor([1.0, 0.9, 0, 0, 0, 0]).double()
    model = TorchClassifier(net, bounds=(-9, 9))
    result = attacks.FAB().run(model, torch.zeros(4, 8, dtype=torch.float64))
    walks, last = 10 + 4 * 8, 22
    assert result.success.all()
    assert (result.queries.backward <= walks + last).all()


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"norm": "l0"}, ValueError, "`norm` must be .*'l2'.*'linf'.*'l1'.*got 'l0'"),
        ({"steps": 0}, ValueError, "`steps` must be .*at least 1.*got 0"),
        ({"candidates": 0}, ValueError, "`candidates` must be .*at least 1.*got 0"),
        ({"restarts": 0}, ValueError, "`restarts` must be .*at least 1.*got 0"),
        ({"eps": -1.0}, ValueError, "`eps` must"),
        ({"schedule": "fast"}, ValueError, "`schedule` must be .*'published'.*got 'fast'"),
        ({"seed": 0.5}, TypeError, "`seed` must be"),
        ({"progress": 1}, TypeError, "`progress` must be"),
    ],
)
def test_wrong_settings(settings, error, said):
    with pytest.raises(error, match=said):
        attacks.FAB(**settings)
