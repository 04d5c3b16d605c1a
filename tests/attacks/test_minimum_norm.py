"""MinimumNorm: exact on linear models, within its steps, and with the plan of its docstring."""

import dataclasses

import pytest
import torch

from advkit import TorchClassifier, attacks
from advkit.attacks import minimum_norm
from advkit.attacks.engine.boundary_walk import BoundaryWalk
from tests.toys import Halfspace

NORMS = ("l0", "l1", "l2", "linf")
D = 12


def features_needed(w, room, gap):
    """The number of the largest gains that exceed each gap `(n,)`."""
    gains = (w.abs() * room).sort(dim=1, descending=True).values.cumsum(1)
    return (gains < gap[:, None]).sum(1) + 1


@pytest.fixture
def net():
    torch.manual_seed(0)
    hidden = torch.nn.Linear(36, 20)
    return torch.nn.Sequential(torch.nn.Flatten(), hidden, torch.nn.ReLU(), torch.nn.Linear(20, 5))


def images(n=6):
    return torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("steps", [30, 100])
@pytest.mark.parametrize("seed", range(4))
def test_it_changes_exactly_the_fewest_features_of_a_plane(steps, seed):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(D, generator=generator, dtype=torch.float64)
    plane = Halfspace(w, b=0.1)
    x = torch.rand(8, D, generator=generator, dtype=torch.float64)
    value = plane.value(x).detach()
    toward = -torch.sign(value)[:, None] * w
    room = torch.where(toward > 0, 1 - x, x)
    reachable = (room * w.abs()).sum(1) > value.abs()
    result = attacks.MinimumNorm(norm="l0", steps=steps).run(plane, x)
    assert (result.success == reachable).all()
    assert reachable.any()
    exact = features_needed(w[None], room, value.abs())[reachable]
    assert (result.distance[reachable] == exact).all()


def test_it_changes_the_fewest_features_of_all_classes():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(D, 5, generator=generator, dtype=torch.float64)
    net = torch.nn.Linear(D, 5, bias=False, dtype=torch.float64)
    net.weight.data = w.T
    x = torch.rand(8, D, generator=generator, dtype=torch.float64)
    logits = net(x).detach()
    y = logits.argmax(1)
    needed = []
    for k in range(5):
        normal = (w[:, k] - w[:, y].T).double()
        gap = logits.gather(1, y[:, None])[:, 0] - logits[:, k]
        room = torch.where(normal > 0, 1 - x, x)
        count = features_needed(normal, room, gap).double()
        needed.append(torch.where((k == y) | (count > D), torch.inf, count))
    result = attacks.MinimumNorm(norm="l0").run(net, x, y)
    assert (result.distance == torch.stack(needed).amin(0)).all()


@pytest.mark.parametrize("seed", range(6))
def test_a_walk_in_l0_overshoots_by_a_share_of_the_way_along_the_normal(seed, monkeypatch):
    """By a share of the number of features, it would change more of them than needed."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(400, generator=generator, dtype=torch.float64)
    plane, x = Halfspace(w), torch.rand(8, 400, generator=generator, dtype=torch.float64)
    value = plane.value(x).detach()
    room = torch.where(-torch.sign(value)[:, None] * w > 0, 1 - x, x)
    monkeypatch.setattr(
        minimum_norm, "TUNING", dataclasses.replace(minimum_norm.TUNING, descent_share=0.0)
    )
    monkeypatch.setitem(minimum_norm.AGAIN, "l0", (minimum_norm._Start(share=1.0),))
    result = attacks.MinimumNorm(norm="l0", steps=3).run(plane, x)
    assert (result.distance <= features_needed(w[None], room, value.abs()) + 1).all()


def test_few_features_fool_a_net_whose_gradients_mislead(real_net, mnist_test):
    """Steps along the normal that the box cuts short leave some images without a near example."""
    net = real_net("mnist_lenet5", "mnist_lenet5_robust.pt")
    x, y = mnist_test.x[:32], mnist_test.y[:32]
    result = attacks.MinimumNorm(norm="l0").run(net, x, y)
    assert result.success.all()
    assert result.distance.median() <= 10
    assert result.distance.max() <= 60


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("steps", [1, 5, 13, 26, 100, 300])
def test_it_takes_at_most_its_steps(net, norm, steps):
    result = attacks.MinimumNorm(norm=norm, steps=steps).run(net, images())
    assert (result.queries.backward <= 1.1 * steps).all()
    # the clean and the last pass, the refinement, and passes of what remains of a batch
    assert (result.queries.forward <= 1.1 * steps + 12).all()
    assert result.success.all() or steps < 26


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_find_nothing_farther(net, norm):
    short, long = (attacks.MinimumNorm(norm=norm, steps=s).run(net, images()) for s in (50, 400))
    assert (long.distance <= 1.01 * short.distance).all()


@pytest.mark.parametrize("norm", NORMS)
def test_two_classes_leave_no_other_class_to_aim_at(norm):
    plane = Halfspace(torch.linspace(-1, 1, D), b=0.05)
    x = torch.rand(4, D, generator=torch.Generator().manual_seed(0))
    assert attacks.MinimumNorm(norm=norm).run(plane, x).success.all()


def test_a_sample_that_finds_nothing_nearer_is_finished(net, monkeypatch):
    full = attacks.MinimumNorm(steps=400).run(net, images()).queries.backward
    impatient = dataclasses.replace(minimum_norm.TUNING, patience=50)
    monkeypatch.setattr(minimum_norm, "TUNING", impatient)
    early = attacks.MinimumNorm(steps=400).run(net, images()).queries.backward
    assert (early < full).all()


def test_a_gain_renews_the_patience(net, monkeypatch):
    """A sample keeps searching while it finds nearer examples, beyond its patience."""
    impatient = dataclasses.replace(minimum_norm.TUNING, patience=26, min_gain=-1.0)
    monkeypatch.setattr(minimum_norm, "TUNING", impatient)
    result = attacks.MinimumNorm(steps=200).run(net, images())
    assert (result.queries.backward > 100).all()


def test_walks_begin_where_the_plan_says(net, monkeypatch):
    starts, search = [], BoundaryWalk.search

    def recorded(self, problem, start, nearest, **options):
        starts.append((problem.x, start.clone(), nearest.x_adv.clone(), problem.goal.candidate))
        return search(self, problem, start, nearest, **options)

    monkeypatch.setattr(BoundaryWalk, "search", recorded)
    attacks.MinimumNorm(steps=225).run(net, images())
    probes = [minimum_norm._Start(rank=k) for k in range(4)]
    for (x, start, nearest, candidate), planned in zip(
        starts, (*probes, *minimum_norm.FIRST["l2"]), strict=False
    ):
        point = nearest if planned.point == "nearest" else x
        assert (candidate is None) == (planned.rank is None)
        if not planned.share:
            assert torch.equal(start, point)
        elif planned.toward == "gray":
            assert torch.allclose(start, point.lerp(torch.full_like(x, 0.5), planned.share))
        else:
            noise = (start - (1 - planned.share) * point) / planned.share
            assert -1e-4 < noise.min() < 0.1
            assert 0.9 < noise.max() < 1 + 1e-4
    assert len(starts) >= 12


@pytest.mark.parametrize("norm", NORMS)
def test_the_search_is_the_same_in_other_units(net, norm):
    wide = torch.nn.Sequential(torch.nn.Flatten(), Scaled(net, 1 / 255))
    small = attacks.MinimumNorm(norm=norm, steps=60).run(net, images())
    large = attacks.MinimumNorm(norm=norm, steps=60).run(
        TorchClassifier(wide, bounds=(0, 255)), 255 * images()
    )
    factor = 1 if norm == "l0" else 255
    assert torch.allclose(large.distance, factor * small.distance, rtol=0.02)


class Scaled(torch.nn.Module):
    """A net on inputs that are multiplied by a factor."""

    def __init__(self, net, factor):
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x):
        return self.net(x * self.factor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l3"}, "`norm` must be"),
        ({"steps": 0}, "`steps` must be"),
        ({"steps": 1.5}, "`steps` must be"),
        ({"seed": "a"}, "`seed` must be"),
        ({"progress": 2}, "`progress` must be"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        attacks.MinimumNorm(**options)
