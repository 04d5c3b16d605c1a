"""SparseRS: which positions it changes, what it keeps, and where that leads."""

import math
from contextlib import contextmanager
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from advkit import TorchClassifier
from advkit.attacks import SparseRS
from advkit.core.norms import by_position, in_unit, lp_norm
from advkit.core.randomness import derived_keys, sample_keys, uniform
from advkit.core.results import InconclusiveWarning
from tests.toys import Halfspace, answers, convnet, images

pytestmark = pytest.mark.filterwarnings("ignore:The ball of .* holds every input")
UNITS = ("feature", "pixel")
every_unit = pytest.mark.parametrize("unit", UNITS)


class Recorder(nn.Module):
    """Three fixed linear logits of which the first leads for ever; remembers what it was asked."""

    def __init__(self, features, lead=1e6):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = torch.randn(features, 3, generator=generator, dtype=torch.float64)
        self.lead = torch.tensor([lead, 0, 0], dtype=torch.float64)
        self.asked = []

    def forward(self, x):
        self.asked.append(x.clone())
        return x.flatten(1).double() @ self.w + self.lead


def inputs(shape, n=4, dtype=torch.float64):
    x = torch.rand(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[0] = x[0].round()
    return x.to(dtype)


def asked(attack, x, bounds=(0.0, 1.0)):
    """What a run without success asks of the samples, `(queries, n, *shape)`, and the margins."""
    model = Recorder(x[0].numel())
    attack.run(TorchClassifier(model, bounds=bounds), x, torch.zeros(len(x), dtype=torch.int64))
    points = torch.stack(model.asked)
    z = points.flatten(2).double() @ model.w + model.lead
    return points, z[..., 1:].amax(-1) - z[..., 0]


def grid(x, unit):
    return by_position(x, in_unit("l0", unit))


# the reference: one sample at a time, in lists and sets


def numbers(key, size, dtype=torch.float32):
    return uniform(key.view(1), size, dtype)[0].numpy()


def numpy_corners(clean, key, places):
    """The values of `places`, one bound for each channel, never all equal to the clean ones."""
    u = numbers(key, len(places) * len(clean)).reshape(len(places), len(clean))
    values = np.where(u < 0.5, 1.0, 0.0)
    for value, place in zip(values, places, strict=True):
        if (value == clean[:, place]).all():
            value[:] = 1 - value
    return values


def numpy_distinct(key, count, limit):
    drawn, i = [int(u * limit) for u in numbers(key, count, torch.float64)], 0
    while len(set(drawn)) < count:
        i += 1
        again = [int(u * limit) for u in numbers(derived_keys(key, i), count, torch.float64)]
        drawn = [
            b if a in drawn[:j] else a for j, (a, b) in enumerate(zip(drawn, again, strict=True))
        ]
    return drawn


def numpy_swap(clean, x_adv, places, alpha, key):
    size, held = clean.shape[1], sorted(places)
    count = min(max(1, int(alpha * len(held))), max(1, size - len(held)))
    order = np.argsort(numbers(derived_keys(key, 0), len(held)), kind="stable")
    left = [held[j] for j in order[:count]]
    kept = [place for place in held if place not in left]
    free = [place for place in range(size) if place not in kept]
    entering = [free[r] for r in numpy_distinct(derived_keys(key, 1), count, len(free))]
    new = x_adv.copy()
    new[:, left] = clean[:, left]
    new[:, entering] = numpy_corners(clean, derived_keys(key, 2), entering).T
    return new, [*kept, *entering]


@every_unit
@pytest.mark.parametrize("shape", [(2, 3, 4), (7,), (3, 6)])
@pytest.mark.parametrize("eps", [1, 3, 6])
def test_the_iterates_are_those_of_a_reference(unit, shape, eps, monkeypatch):
    """Most positions are swapped in each query, so that some draws repeat."""
    monkeypatch.setattr(SparseRS, "_alpha", lambda self, i: 0.8)
    x, queries = inputs(shape), 40
    attack = SparseRS(eps=eps, unit=unit, max_queries=queries)
    points, value = asked(attack, x)
    keys = sample_keys(x, (0.0, 1.0), 0)
    for k in range(len(x)):
        clean = grid(x, unit)[k].numpy()
        size = clean.shape[1]
        order = np.argsort(numbers(derived_keys(keys[k], 0), size), kind="stable")
        places = sorted(int(p) for p in order[: min(eps, size)])
        best, margin = clean.copy(), -math.inf
        for i in range(queries - 2):
            key = derived_keys(keys[k], i + 1)
            if i == 0:
                new, new_places = clean.copy(), places
                new[:, places] = numpy_corners(clean, key, places).T
            else:
                new, new_places = numpy_swap(clean, best, places, 0.8, key)
            found = grid(points[i + 1], unit)[k].numpy()
            np.testing.assert_array_equal(found, new, err_msg=f"query {i}")
            if value[i + 1, k] >= margin:
                best, places, margin = new, new_places, value[i + 1, k]
        np.testing.assert_array_equal(grid(points[-1], unit)[k].numpy(), best)


@every_unit
@pytest.mark.parametrize("shape", [(3, 5, 5), (2, 12), (1, 4, 4), (9,), (2, 3, 3, 2)])
def test_no_query_exceeds_the_budget(unit, shape):
    x = inputs(shape, n=6)
    eps = torch.tensor([1, 1.5, 2, 3.9, 5, 8])
    points, _ = asked(SparseRS(eps=eps, unit=unit, max_queries=60, alpha_init=0.6), x)
    norm = in_unit("l0", unit)
    for point in points:
        assert (lp_norm(point - x, norm) <= eps.floor()).all()
    assert torch.equal(lp_norm(points[1] - x, norm), eps.floor().double()), "budget left unused"


@every_unit
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bounds", [(0, 255), (-2.1, 2.64)])
def test_values_are_the_bounds_in_any_dtype(dtype, bounds, unit):
    lower, upper = bounds
    x = (lower + (upper - lower) * inputs((3, 4, 4))).to(dtype).clamp(*bounds)
    points, _ = asked(SparseRS(eps=5, unit=unit, max_queries=20), x, bounds)
    changed = points[points != x.expand_as(points)].double()
    close = torch.tensor(bounds, dtype=torch.float64)[:, None]
    assert ((changed - close).abs().amin(0) <= torch.finfo(dtype).eps * 300).all()


def test_a_large_number_of_features_is_not_rounded():
    """Sixteen bits have no 2049."""
    x = torch.full((1, 4096), 0.5, dtype=torch.float16)
    points, _ = asked(SparseRS(eps=2049, max_queries=4), x)
    assert (points[1] != x).sum() == 2049


# linear models


def best_margin(plane, x, eps, unit):
    """The least `w.x + b` of one sample that `eps` positions allow, in closed form."""
    w = grid(plane.w.detach().view(x[None].shape), unit)[0].numpy()
    clean = grid(x[None], unit)[0].numpy()
    gains = np.maximum(w * clean, w * (clean - 1)).sum(0)  # to the better bound
    value = float(plane.value(x[None]).detach())
    return value - np.sort(gains)[::-1][:eps].sum()


def by_brute_force(plane, x, eps):
    """The least `w.x + b` over all choices of one or two pixels and all corners."""
    least, size = math.inf, x[0].numel()
    for places in product(range(size), repeat=eps):
        for corner in product((0.0, 1.0), repeat=eps * len(x)):
            z = x.flatten(1).clone()
            for j, place in enumerate(places):
                z[:, place] = torch.tensor(corner[j * len(x) : (j + 1) * len(x)])
            least = min(least, float(plane.value(z.view(1, *x.shape)).detach()))
    return least


def test_the_closed_form_is_that_of_brute_force():
    generator = torch.Generator().manual_seed(3)
    plane = Halfspace(torch.randn(8, generator=generator, dtype=torch.float64), b=1.0)
    x = inputs((2, 2, 2), n=2)
    for i, eps in product(range(2), (1, 2)):
        assert best_margin(plane, x[i], eps, "pixel") == pytest.approx(
            by_brute_force(plane, x[i], eps)
        )


@every_unit
@pytest.mark.parametrize(
    ("shape", "eps"), [((10,), 1), ((2, 5), 3), ((3, 3, 3), 1), ((3, 3, 3), 3)]
)
def test_the_optimum_of_a_linear_model_is_reached(unit, shape, eps):
    generator = torch.Generator().manual_seed(eps)
    w = torch.randn(math.prod(shape), generator=generator, dtype=torch.float64)
    plane, x = Halfspace(w, b=50.0), inputs(shape, n=3)
    result = SparseRS(eps=eps, unit=unit, max_queries=500).run(plane, x)
    assert not result.success.any()
    for i in range(len(x)):
        exact = best_margin(plane, x[i], eps, unit)
        found = float(plane.value(result.x_adv[i : i + 1]).detach())
        assert found == pytest.approx(exact, abs=1e-9)


@every_unit
@pytest.mark.parametrize(("past", "succeeds"), [(-1e-6, True), (1e-6, False)])
def test_success_is_exactly_the_reach_of_the_budget(unit, past, succeeds):
    """The boundary lies just within the best value of the budget, or just beyond."""
    generator = torch.Generator().manual_seed(5)
    plane = Halfspace(torch.randn(12, generator=generator, dtype=torch.float64))
    x = inputs((2, 3, 2), n=2)[1:]
    plane.b = past - best_margin(plane, x[0], 2, unit)
    assert SparseRS(eps=2, unit=unit, max_queries=400).run(plane, x).success.item() is succeeds


# the loop


def test_the_swaps_shrink_as_in_the_published_code():
    attack = SparseRS(eps=100, max_queries=10_000, alpha_init=0.6)
    last = {0: 1, 50: 2, 200: 4, 500: 5, 1000: 6, 2000: 8, 4000: 10, 6000: 12, 8000: 15, 9999: 20}
    for i, divisor in last.items():
        assert attack._alpha(i) == pytest.approx(0.6 / divisor)
    assert SparseRS(eps=100, max_queries=100)._alpha(2) == pytest.approx(0.3 / 4)


def test_the_number_of_swapped_positions():
    x = torch.full((1, 400), 0.5, dtype=torch.float64)
    points, value = asked(SparseRS(eps=40, max_queries=200, alpha_init=0.5), x)
    best, margin = points[1], value[1]
    for i in range(2, 199):
        changed = ((points[i] != x) != (best != x)).sum() / 2
        wanted = max(1, int(SparseRS(eps=40, max_queries=200, alpha_init=0.5)._alpha(i - 1) * 40))
        assert wanted - 3 <= changed <= wanted  # a position that leaves may enter again
        if value[i] >= margin:
            best, margin = points[i], value[i]
    assert (points[-1] != x).sum() == 40


def test_each_sample_is_asked_for_exactly_as_often_as_its_result_says():
    net, x = convnet(), images(8)
    y = answers(net, x)
    counts = torch.zeros(8, dtype=torch.int64)

    def count(module, args):
        near = (args[0][:, None] != x[None]).flatten(2).sum(2) <= 5
        assert (near.sum(1) == 1).all()
        counts.add_(near.sum(0))

    net.register_forward_pre_hook(count)
    result = SparseRS(eps=5, max_queries=300).run(net, x, y)
    assert torch.equal(counts, result.queries.forward)
    assert result.success.any()
    assert len(set(counts.tolist())) > 3
    assert (counts[~result.success] == 300).all()


@every_unit
@pytest.mark.parametrize("stop", ["first", "never"])
def test_a_sample_does_not_depend_on_its_batch(unit, stop):
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 5).double())
    x = inputs((3, 4, 4), n=6)
    eps = torch.tensor([1, 6, 2, 16, 3, 0])
    attack = SparseRS(eps=eps, unit=unit, max_queries=50, stop=stop, alpha_init=0.9)
    whole, again = attack.run(net, x), attack.run(net, x)
    assert torch.equal(whole.x_adv, again.x_adv)
    for i in (0, 1, 2, 4):
        alone = SparseRS(eps=int(eps[i]), unit=unit, max_queries=50, stop=stop, alpha_init=0.9).run(
            net, x[i : i + 1]
        )
        assert torch.equal(alone.x_adv, whole.x_adv[i : i + 1])
        assert alone.queries.forward == whole.queries.forward[i]
    other = SparseRS(eps=3, unit=unit, max_queries=50, stop="never", seed=1)(net, x)
    assert not torch.equal(other, SparseRS(eps=3, unit=unit, max_queries=50, stop="never")(net, x))


def test_a_budget_of_zero_costs_the_clean_query_and_the_verification():
    net, x = convnet(), images(3)
    y = answers(net, x)
    result = SparseRS(eps=torch.tensor([0.0, 4, 0]), max_queries=20, stop="never").run(net, x, y)
    assert result.queries.forward.tolist() == [2, 20, 2]
    assert (result.distance[[0, 2]] == 0).all()


def test_a_budget_of_all_positions():
    net, x = convnet(), images(4)
    for eps in (36, 1e30):
        result = SparseRS(eps=eps, max_queries=200).run(net, x, answers(net, x))
        assert result.success.all()
        assert (result.distance == 36).all()


def test_the_progress_bar_counts_queries(monkeypatch):
    steps = []

    @contextmanager
    def bar(name, total, show):
        steps.append((name, total, show))
        yield steps.append

    monkeypatch.setattr("advkit.attacks.engine.base.progress_bar", bar)
    asked(SparseRS(eps=2, max_queries=9, progress=True), inputs((5,)))
    assert steps == [("SparseRS", 9, True), *[1] * 7]


@every_unit
def test_targets_are_reached(unit):
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 5).double())
    x = inputs((3, 4, 4))
    target = (answers(net, x) + 1) % 5
    result = SparseRS(eps=10, unit=unit, max_queries=400).run(net, x, target=target)
    assert result.success.all()
    assert torch.equal(answers(net, result.x_adv), target)


def test_flat_scores_are_crossed():
    """Ties are kept, so that the search moves on."""
    points = []

    class Flat(nn.Module):
        def forward(self, x):
            points.append(x[0].clone())
            return torch.tensor([[2.0, 0.0]]).expand(len(x), -1)

    SparseRS(eps=4, max_queries=60).run(Flat(), torch.full((1, 1, 8, 8), 0.5))
    before, after = (v != 0.5 for v in (points[2], points[-1]))
    assert (before != after).sum() >= 6
    assert torch.equal(points[-1], points[-2])


def test_nan_at_the_first_change_does_not_end_the_search():
    net, x, calls = convnet(), images(2), []
    y = answers(net, x)

    class Broken(nn.Module):
        def forward(self, v):
            calls.append(len(v))
            return net(v) * (torch.nan if len(calls) == 2 else 1)

    result = SparseRS(eps=12, max_queries=300).run(Broken(), x, y)
    assert result.success.all()


def test_too_few_queries_to_begin_are_marked():
    net, x = convnet(), images(4)
    with pytest.warns(InconclusiveWarning, match="could not begin for 4 of 4 samples"):
        result = SparseRS(eps=1, max_queries=3).run(net, x)
    assert result.no_start.all()


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"unit": "pixels"}, ValueError, "`unit` must be one of 'feature', 'pixel', got 'pixels'"),
        ({"eps": -1.0}, ValueError, "`eps` must be at least 0"),
        ({"eps": 0.5}, ValueError, "`eps` must be 0 or a number of features of at least 1"),
        (
            {"eps": torch.tensor([2.0, 0.1]), "unit": "pixel"},
            ValueError,
            "`eps` must be 0 or a number of pixels of at least 1, got 0.1. Multiply",
        ),
        ({"max_queries": 2}, ValueError, "`max_queries` must be at least 3, got 2"),
        ({"alpha_init": 0.0}, ValueError, r"`alpha_init` must lie in \(0, 1\], got 0.0"),
        ({"alpha_init": 1.5}, ValueError, r"`alpha_init` must lie in \(0, 1\], got 1.5"),
        ({"stop": "last"}, ValueError, "`stop` must be one of"),
        ({"seed": 0.5}, TypeError, "`seed` must be an int"),
        ({"progress": 1}, TypeError, "`progress` must be True or False"),
        ({"n_queries": 10}, TypeError, "Use `max_queries`."),
        ({"norm": "l2"}, TypeError, "norm"),
    ],
)
def test_wrong_settings(settings, error, said):
    with pytest.raises(error, match=said):
        SparseRS(**{"eps": 3, **settings})
