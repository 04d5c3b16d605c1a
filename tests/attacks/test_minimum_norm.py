"""MinimumNorm on linear models, where the nearest is known, and how it spends its steps."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from advkit import InconclusiveWarning, TorchClassifier, attacks
from advkit.attacks import minimum_norm
from advkit.attacks.engine.records import Nearest
from tests.attacks.test_linear import Softmax, smallest_budget
from tests.toys import Halfspace, answers, convnet, images

LENGTHS = ["l1", "l2", "linf"]
NORMS = ["l0", *LENGTHS]


def linear_net(classes, features, seed):
    """A net whose boundaries lie behind walls of the box for some of the inputs, and the inputs."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    x = torch.rand(8, features, generator=generator, dtype=torch.float64)
    x[torch.rand(x.shape, generator=generator) < 0.3] = 0
    return Softmax(w, 0.3 * torch.randn(classes, generator=generator, dtype=torch.float64)), x


def fewest(gains, gap):
    """The least number of the largest `gains` whose sum exceeds `gap`, inf if all do not."""
    sums = np.append(0, np.sort(gains)[::-1].cumsum())
    return int((sums <= gap).sum()) if sums[-1] > gap else math.inf


def exact_distance(net, x, y, norm):
    """The distance of the nearest point of any other class in the unit box, for one sample."""
    w, b, found = net.w.detach().numpy(), net.b.detach().numpy(), math.inf
    for k in set(range(len(w))) - {y}:
        slope, gap = w[k] - w[y], (w[y] - w[k]) @ x + b[y] - b[k]
        room = np.where(slope > 0, 1 - x, x)
        if np.abs(slope) @ room <= gap:
            continue
        if norm == "l0":
            found = min(found, fewest(np.abs(slope) * room, gap))
        else:
            found = min(found, smallest_budget(slope, room, gap, norm))
    return found


def exact_distance_to(net, x, target, norm):
    """The distance of the nearest point of class `target`, by a program; `None` without one."""
    w, b, d = net.w.detach().numpy(), net.b.detach().numpy(), len(x)
    slopes, gaps = w[target] - w, (w - w[target]) @ x + b - b[target]
    if norm == "linf":
        cost, rows = np.append(np.zeros(d), 1), np.hstack([-slopes, np.zeros((len(w), 1))])
        ends = np.hstack([np.vstack([np.eye(d), -np.eye(d)]), -np.ones((2 * d, 1))])
        limits = [*zip(-x, 1 - x, strict=True), (0, None)]
        found = linprog(cost, np.vstack([rows, ends]), [*-gaps, *np.zeros(2 * d)], bounds=limits)
        return found.fun if found.status == 0 else None
    limits = [*((0, v) for v in 1 - x), *((0, v) for v in x)]
    found = linprog(np.ones(2 * d), np.hstack([-slopes, slopes]), -gaps, bounds=limits)
    if found.status != 0 or norm == "l1":
        return found.fun if found.status == 0 else None
    return minimize(
        lambda v: v @ v, found.x[:d] - found.x[d:], jac=lambda v: 2 * v, method="SLSQP",
        bounds=list(zip(-x, 1 - x, strict=True)), options={"ftol": 1e-14, "maxiter": 1000},
        constraints={"type": "ineq", "fun": lambda v: slopes @ v - gaps, "jac": lambda v: slopes},
    ).fun ** 0.5  # fmt: skip


def ratios(attack, classes, seed):
    """The distances over the exact ones, of the inputs that can leave their class."""
    net, x = linear_net(classes, 12, seed)
    y, result = answers(net, x), attack.run(net, x)
    exact = [exact_distance(net, x[i].numpy(), int(y[i]), attack.norm) for i in range(len(x))]
    assert result.success.tolist() == [math.isfinite(distance) for distance in exact]
    found = (result.distance / torch.tensor(exact))[result.success]
    assert (found >= 1 - 1e-9).all()
    return found.tolist()


@pytest.mark.parametrize("steps", [30, 100])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", [0, 2, 3])  # in l0 a gap within 0.1 % of a feature is passed by
def test_the_nearest_of_two_classes(norm, steps, seed):
    attack = attacks.MinimumNorm(norm=norm, steps=steps)
    limit = 1.02 if steps == 100 else 1.03
    assert max(ratios(attack, 2, seed)) <= (1 if norm == "l0" else limit)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_of_several_classes(norm, classes, seed):
    """The nearest class may be one of the less likely ones."""
    found = ratios(attacks.MinimumNorm(norm=norm), classes, seed)
    assert max(found) <= (1 if norm == "l0" else 1.02)


@pytest.mark.parametrize("steps", [30, 100])
@pytest.mark.parametrize("norm", NORMS)
def test_walls_that_several_features_meet(norm, steps):
    """Three quarters of all that the box allows are needed."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(12, generator=generator, dtype=torch.float64)
    x = torch.rand(1, 12, generator=generator, dtype=torch.float64)
    room = torch.where(w > 0, 1 - x, x)
    plane = Halfspace(w, b=-float(x[0] @ w + 0.75 * (room[0] * w.abs()).sum()))
    two = Softmax(torch.stack([0 * w, w]), torch.tensor([0.0, plane.b], dtype=torch.float64))
    exact = exact_distance(two, x[0].numpy(), 0, norm)
    (distance,) = attacks.MinimumNorm(norm=norm, steps=steps).run(plane, x).distance.tolist()
    assert distance == exact if norm == "l0" else exact <= distance <= 1.02 * exact


@pytest.mark.parametrize("steps", [30, 100])
@pytest.mark.parametrize("norm", NORMS)
def test_the_target_of_two_classes_is_the_other_class(norm, steps):
    net, x = linear_net(2, 12, 3)
    y = answers(net, x)
    result = attacks.MinimumNorm(norm=norm, steps=steps).run(net, x, target=1 - y)
    for i in range(len(x)):
        exact = exact_distance(net, x[i].numpy(), int(y[i]), norm)
        assert bool(result.success[i]) is math.isfinite(exact)
        if norm == "l0" and result.success[i]:
            assert result.distance[i] == exact
        elif result.success[i]:
            assert exact * (1 - 1e-9) <= result.distance[i] <= 1.02 * exact


@pytest.mark.parametrize("norm", LENGTHS)
def test_a_target_of_five_classes(norm):
    """The nearest point may lie on the boundaries to several classes at once."""
    net, x = linear_net(5, 12, 4)
    target = (answers(net, x) + 1) % 5
    result, met = attacks.MinimumNorm(norm=norm).run(net, x, target=target), 0
    for i in range(len(x)):
        exact = exact_distance_to(net, x[i].numpy(), int(target[i]), norm)
        if exact is not None:
            met += 1
            assert result.success[i]
            assert exact * (1 - 1e-6) <= result.distance[i] <= 1.02 * exact
    assert met >= 4


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("steps", [1, 5, 13, 26, 100, 300])
def test_each_sample_has_no_more_passes_than_steps(norm, steps):
    net, x = convnet(classes=10), images(16)
    result = attacks.MinimumNorm(norm=norm, steps=steps).run(net, x)
    assert (result.queries.backward <= steps).all()
    assert (result.queries.forward <= 1.1 * steps + 10).all()
    if steps > 1:
        assert result.success.all()
    if steps >= 100:  # what walks leave over goes to other walks
        assert (result.queries.backward >= 0.65 * steps).all()


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_come_nearer(norm):
    net, x = convnet(classes=10), images(16)
    few, many = (attacks.MinimumNorm(norm=norm, steps=s).run(net, x).distance for s in (25, 200))
    assert (many <= few * (1 + 1e-2)).all()  # their noise differs
    assert many.mean() < few.mean()


@pytest.mark.parametrize("norm", LENGTHS)
def test_the_seed_decides(norm):
    """In l0, where all seeds find one feature on this net, the starts are tested below."""
    net, x = convnet(classes=10), images(16)
    attack = attacks.MinimumNorm(norm=norm, steps=120)
    first, same, other = (replace(attack, seed=seed)(net, x) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("norm", NORMS)
def test_a_sample_is_attacked_as_in_a_batch_of_its_own(norm):
    net, x = convnet(classes=10, dtype=torch.float64), images(8, torch.float64)
    attack = attacks.MinimumNorm(norm=norm, steps=120)
    alone = torch.cat([attack(net, x[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(attack(net, x), alone)


@pytest.mark.parametrize("norm", NORMS)
def test_a_sample_without_a_gain_is_finished(norm, monkeypatch):
    """On a linear net nothing is nearer than the first walk or descent finds."""
    net, x = linear_net(2, 12, 3)
    attack = attacks.MinimumNorm(norm=norm, steps=400)
    patient = attack.run(net, x)
    assert (patient.queries.backward[patient.success] > 350).any()
    monkeypatch.setattr(minimum_norm, "TUNING", replace(minimum_norm.TUNING, patience=60))
    found = attack.run(net, x)
    assert (found.queries.backward < patient.queries.backward)[patient.success].any()
    torch.testing.assert_close(found.distance, patient.distance, rtol=1e-3, atol=1e-12)


def searches(attack, monkeypatch, gains=()):
    """The searches of a run whose distances begin at 1 and are reduced by `gains` in turn."""
    seen, left = [], iter(gains)

    def find(self, problem, search, start, nearest):
        seen.append(search)
        problem.statistics.steps[problem.rows] += search.steps - 1
        distance = nearest.distance.clamp_max(1) * (1 - next(left, 0))
        return Nearest(start, torch.zeros_like(distance), distance)

    monkeypatch.setattr(attacks.MinimumNorm, "_find", find)
    net, x = convnet(classes=10), images(4)
    problem = attack._problem(TorchClassifier(net), x, answers(net, x), None)
    attack._search_nearest(problem, problem.forward(x, differentiate=False))
    return seen


def test_a_gain_renews_the_patience(monkeypatch):
    """The first of five probes of 4 steps is a gain, and so may be a later walk of 25."""
    attack = attacks.MinimumNorm(steps=2000)
    idle = math.ceil((600 - 4 * 4) / 25)
    assert len(searches(attack, monkeypatch)) == 5 + idle
    assert len(searches(attack, monkeypatch, [0] * 10 + [0.1])) == 11 + 600 / 25
    assert len(searches(attack, monkeypatch, [0] * 10 + [1e-4])) == 5 + idle


@pytest.mark.parametrize("norm", NORMS)
def test_the_plan(norm, monkeypatch):
    """A probe for each class, descents in l0 and l1, then walks from every start to every class."""
    seen = searches(attacks.MinimumNorm(norm=norm, steps=1000), monkeypatch, [0.01] * 99)
    assert seen[:5] == [
        minimum_norm._Search(minimum_norm._Start(rank=k), minimum_norm.TUNING.probe_steps)
        for k in range(5)
    ]
    seen = seen[5:]
    descents = list(itertools.takewhile(lambda search: search.descent, seen))
    assert sum(search.steps for search in descents) == (490 if norm in ("l0", "l1") else 0)
    assert sum(search.steps for search in seen) > 950
    walks = seen[len(descents) :]
    assert not any(search.descent for search in walks)
    assert {search.steps for search in walks} == {{"l0": 12, "l1": 24}.get(norm, 25)}
    starts = [search.start for search in walks]
    assert len({*starts}) >= 4
    if norm != "l0":
        assert starts[1].point == "nearest"
        assert {start.rank for start in starts} == {None, 0, 1, 2}
        assert {start.point for start in starts} == {"input", "nearest"}
        assert {start.toward for start in starts if start.share} == {"noise", "gray"}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("steps", [5, 17, 30, 40, 63, 100])
def test_searches_are_of_a_length_that_leaves_few_steps_over(norm, steps, monkeypatch):
    seen = searches(attacks.MinimumNorm(norm=norm, steps=steps), monkeypatch)
    assert 0.85 * steps <= sum(search.steps for search in seen) <= steps


def test_a_walk_far_from_the_nearest_success_is_given_up(monkeypatch):
    net, x = convnet(classes=10), images(4)
    walks = []
    for ratio in (0.01, 100.0):
        count, original = itertools.count(), attacks.MinimumNorm._find
        monkeypatch.setattr(
            attacks.MinimumNorm, "_find", lambda *a, c=count, o=original: (next(c), o(*a))[1]
        )
        monkeypatch.setattr(minimum_norm, "HOPELESS_RATIO", {"l2": ratio})
        attacks.MinimumNorm(steps=200).run(net, x)
        walks.append(next(count))
        monkeypatch.undo()
    assert walks[0] > 1.3 * walks[1]


def test_starts_towards_gray_and_random_images():
    net, bounds = Halfspace(torch.ones(6, dtype=torch.float64), b=-47.0), (0.0, 8.0)
    x = torch.zeros(2, 6, dtype=torch.float64)
    x[1] = 8.0
    model, attack = TorchClassifier(net, bounds), attacks.MinimumNorm()
    problem = attack._problem(model, x, torch.tensor([0, 1]), None)
    nearest, start = Nearest.empty(x)._replace(x_adv=x + 1), minimum_norm._Start
    assert torch.equal(attack._begin(problem, start(), nearest, 1), x)
    assert torch.equal(attack._begin(problem, start("nearest"), nearest, 1), x + 1)
    gray = attack._begin(problem, start(share=0.25, toward="gray"), nearest, 1)
    assert gray.tolist() == [[1.0] * 6, [7.0] * 6]
    noise = attack._begin(problem, start(share=1.0), nearest, 1)
    assert ((noise >= 0) & (noise <= 8)).all()
    assert noise.std() > 1
    half = attack._begin(problem, start(share=0.5), nearest, 1)
    torch.testing.assert_close(half, (x + noise) / 2)
    assert not torch.equal(attack._begin(problem, start(share=1.0), nearest, 2), noise)
    other = replace(attack, seed=1)._begin(problem, start(share=1.0), nearest, 1)
    assert not torch.equal(other, noise)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_that_are_nan_are_reported_where_no_start_is_a_success(norm):
    class Cusp(torch.nn.Module):
        def forward(self, x):
            z = (x + 0 * (0 * x).sqrt()).flatten(1).sum(1)  # 0 * inf backwards
            return torch.stack([0 * z, z - 11.9], 1)

    x = torch.zeros(2, 12)
    with pytest.warns(InconclusiveWarning, match="2 of 2 samples met a gradient of zero or NaN"):
        result = attacks.MinimumNorm(norm=norm).run(Cusp(), x)
    assert torch.equal(result.x_adv, x)
    assert result.no_gradient.all()


def test_few_features_fool_a_net_whose_gradients_mislead(real_net, mnist_test):
    """Steps along the normal that the box cuts short leave some images without a near example."""
    net = real_net("mnist_lenet5", "mnist_lenet5_robust.pt")
    x, y = mnist_test.x[:32], mnist_test.y[:32]
    result = attacks.MinimumNorm(norm="l0").run(net, x, y)
    assert result.success.all()
    assert result.distance.median() <= 10
    assert result.distance.max() <= 60


def test_the_bar_counts_the_steps(capsys):
    attacks.MinimumNorm(steps=40, progress=True).run(convnet(), images())
    assert "/40" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"norm": "l3"}, ValueError, "`norm` must be .*, got 'l3'"),
        ({"steps": 0}, ValueError, "`steps` must be at least 1, got 0"),
        ({"steps": 1.5}, TypeError, "`steps` must be an int, got float: 1.5"),
        ({"seed": "a"}, TypeError, "`seed` must be an int, got str: 'a'"),
        ({"progress": 1}, TypeError, "`progress` must be True or False"),
    ],
)
def test_wrong_settings(settings, error, said):
    with pytest.raises(error, match=said):
        attacks.MinimumNorm(**settings)
