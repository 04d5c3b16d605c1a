"""Square: what it asks, what it keeps, and where that leads."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from advkit import TorchClassifier
from advkit.attacks import Square
from advkit.attacks.engine.windows import Space, bump
from advkit.attacks.square import _Box, _move_length
from advkit.core.norms import lp_norm
from advkit.core.randomness import derived_keys, sample_keys, uniform
from advkit.core.results import InconclusiveWarning
from tests.toys import Halfspace, answers, convnet, images

WIDE = (-100, 100)


class Recorder(nn.Module):
    """Three fixed linear logits of which the first leads for ever; remembers what it was asked."""

    def __init__(self, features, lead=1e3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = torch.randn(features, 3, generator=generator, dtype=torch.float64)
        self.lead = torch.tensor([lead, 0, 0], dtype=torch.float64)
        self.asked = []

    def forward(self, x):
        self.asked.append(x.clone())
        return x.flatten(1).double() @ self.w + self.lead


def asked(attack, shape, n=1):
    """What a run without success asks of the samples, `(queries, n, *shape)`, and its result."""
    x = torch.zeros(n, *shape, dtype=torch.float64)
    model = Recorder(x[0].numel())
    y = torch.zeros(n, dtype=torch.int64)
    result = attack.run(TorchClassifier(model, bounds=WIDE), x, y)
    return torch.stack(model.asked), result, model


def margins(model, x_adv):
    z = x_adv.flatten(-len(x_adv.shape) + 2) @ model.w
    return (z[..., 1:].amax(-1) - z[..., 0]) - model.lead[0]


def test_the_first_patterns_are_grey_noise_and_stripes():
    points, _, _ = asked(Square(eps=0.5, max_queries=8, seed=1), (3, 6, 6))
    assert (points[0] == 0).all()
    noise, columns, rows = points[1, 0], points[2, 0], points[3, 0]
    for pattern in (noise, columns, rows):
        assert (pattern.abs() == 0.5).all()
        assert (pattern == pattern[:1]).all()  # the same in every channel
        assert (pattern != pattern.flatten()[0]).any()
    assert (columns == columns[:, :1]).all()
    assert (rows == rows[:, :, :1]).all()
    assert (noise != noise[:, :1]).any()
    assert (noise != noise[:, :, :1]).any()


def test_a_table_begins_with_noise_alone():
    points, _, _ = asked(Square(eps=0.5, max_queries=6), (40,))
    assert (points[1].abs() == 0.5).all()
    assert 5 < (points[1] > 0).sum() < 35
    changed = points[2] != points[1]
    assert 0 < changed.sum() <= 40  # a box, not a pattern


def test_each_query_changes_one_box_of_the_best_so_far():
    attack = Square(eps=0.5, max_queries=400, p_init=1.0)
    points, result, model = asked(attack, (3, 8, 8))
    value = margins(model, points)[:, 0]
    best, sizes, grey = points[0, 0], [], []
    for i in range(1, 399):
        if i > 3:
            changed = (points[i, 0] != best).any(0)
            assert changed.any(), "a query that changes nothing"
            rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
            side = round(attack._coverage(i - 1) ** 0.5 * 8)
            assert rows.max() - rows.min() < max(1, side)
            assert columns.max() - columns.min() < max(1, side)
            sizes.append(int(changed.sum()))
            box = points[i, 0][:, changed]
            assert (box.abs() == 0.5).all()
            assert (box == box[:, :1]).all()
            grey.append(bool((box == box[0, 0]).all()))
        if i == 1 or value[i] >= value[1:i].max():
            best = points[i, 0]
    assert max(sizes) > 9 > min(sizes) == 1
    assert 0.35 < sum(grey) / len(grey) < 0.9  # a half, and a quarter of the others by chance
    assert torch.equal(result.x_adv[0], best)
    assert torch.equal(points[-1, 0], best)


@pytest.mark.parametrize(("norm", "share"), [("linf", 0.5), ("l2", 1.0), ("l1", 1.0)])
def test_the_first_box_by_norm(norm, share):
    assert Square(eps=0.5, norm=norm)._coverage(0) == share


def test_boxes_shrink_as_in_the_paper():
    attack = Square(eps=0.5, max_queries=10_000, p_init=0.8)
    last = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000, 9999)  # round of each size
    for power, i in enumerate(last):
        assert attack._coverage(i) == pytest.approx(0.8 / 2**power)
        assert attack._coverage(i + 1) == pytest.approx(0.8 / 2 ** min(9, power + 1))


@pytest.mark.parametrize("shape", [(16,), (2, 8), (1, 4, 4), (1, 2, 2, 4)])
def test_on_a_linear_model_the_strongest_corner_is_found(shape):
    w = torch.linspace(-1, 1.9, 16, dtype=torch.float64)
    plane = Halfspace(w, b=100.0)
    x = torch.full((2, *shape), 0.5, dtype=torch.float64)
    result = Square(eps=0.1, max_queries=800, stop="never").run(plane, x)
    assert not result.success.any()
    assert torch.allclose(result.x_adv.flatten(1), (0.5 - 0.1 * w.sign()).expand(2, -1))
    assert (result.queries.forward == 800).all()


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 5), (30,), (2, 12), (2, 4, 4, 4)])
def test_l2_and_l1_spend_the_whole_length_and_climb(shape, norm):
    attack = Square(eps=2.0, norm=norm, max_queries=300, stop="never")
    points, result, model = asked(attack, shape)
    length = lp_norm(points[1:].flatten(0, 1), norm)
    assert torch.allclose(length, torch.full_like(length, 2.0))
    value = margins(model, points)[:, 0]
    w = model.w[:, 1:] - model.w[:, :1]
    dual = 2 if norm == "l2" else torch.inf
    most = float(2 * torch.linalg.vector_norm(w, ord=dual, dim=0).max()) - 1e3
    assert value.max() < most + 1e-9  # l1 reaches it
    assert value.max() + 1e3 > 2 * (value[1] + 1e3)
    assert torch.equal(result.x_adv, points[-1])
    assert float(value[-1]) == pytest.approx(float(value[1:].max()), abs=1e-9)


def test_l2_begins_with_a_bump_of_random_sign_in_each_tile():
    points, _, _ = asked(Square(eps=2.0, norm="l2", max_queries=6), (3, 17, 10))
    first = points[1, 0]
    assert (first[:, 15:] == 0).all()  # what is left over by five tiles of three
    tiles = first[:, :15].view(3, 5, 3, 5, 2).transpose(2, 3).flatten(0, 2).flatten(1)
    signs = tiles.sign()
    assert (signs == signs[:, :1]).all()
    assert 0.3 < (signs > 0).double().mean() < 0.7
    shape = bump((3, 2)).flatten().double()
    wanted = shape / shape.norm() * 2 / 75**0.5  # 75 tiles share the length
    assert torch.allclose(tiles.abs(), wanted.expand_as(tiles))


def test_an_l2_step_moves_length_between_two_windows():
    points, _, model = asked(Square(eps=2.0, norm="l2", max_queries=60, p_init=0.1), (3, 20, 20))
    value = margins(model, points)[:, 0]
    best = points[1, 0]
    for i in range(2, 59):
        ratio = points[i, 0] / best  # outside of the windows the same up to one factor
        same = (ratio - ratio.nanmedian()).abs() < 1e-9
        assert same.float().mean() > 0.5
        if value[i] >= value[1:i].max():
            best = points[i, 0]


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("l1", 1)])
def test_a_step_takes_up_the_length_that_the_bounds_have_left(norm, order):
    delta = torch.rand(4, 3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    delta = delta / delta.flatten(1).norm(p=order, dim=1)[:, None, None]
    eps = torch.tensor([1.0, 1.5, 2.0, 3.0], dtype=torch.float64)
    moved = _move_length(norm, Space(3, (8, 8)), delta, eps, _Box(1, 0.2, torch.arange(4)))
    torch.testing.assert_close(moved.flatten(1).norm(p=order, dim=1), eps)
    gone = (moved == 0).all(1).sum(1)
    assert (gone <= 25).all()  # what the second window has lost
    assert (gone > 0).sum() >= 3
    into = (moved != delta) & (moved != 0)
    assert (into.all(1).sum(1) == 25).all()  # a side of 4 is made odd
    assert ((moved * into).sum(2) > 0).all()  # the way it was, all positive, goes into the new one


def windows_of(u, sides, window):
    """The features of a window at corner `u`, as a bool mask of one channel."""
    mask = np.zeros(sides, bool)
    corner = [int(v * (s - w + 1)) for v, s, w in zip(u, sides, window, strict=True)]
    mask[tuple(slice(a, a + w) for a, w in zip(corner, window, strict=True))] = True
    return mask


def pyramid(sides):
    """The bump of equation 2 of the paper."""
    values, last = np.zeros(sides), max(s // 2 for s in sides)
    for at in np.ndindex(*sides):
        ring = max(abs(i - s // 2) for i, s in zip(at, sides, strict=True))
        values[at] = sum(1 / (k + 1) ** 2 for k in range(ring, last + 1))
    return values


def split_pyramid(sides, axis):
    first, rest = list(sides), list(sides)
    first[axis] //= 2
    rest[axis] -= first[axis]
    pair = np.concatenate([pyramid(first), -pyramid(rest)], axis)
    return pair / np.abs(pair).sum()


def into_l1_ball_and_box(delta, x, eps):
    """The nearest perturbation in the ball and the box [0, 1], by bisection."""
    room = np.where(delta > 0, 1 - x, x)
    low, high = 0.0, np.abs(delta).max()
    if np.minimum(np.abs(delta), room).sum() <= eps:
        high = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        length = np.minimum(np.maximum(np.abs(delta) - middle, 0), room).sum()
        low, high = (middle, high) if length > eps else (low, middle)
    return np.sign(delta) * np.minimum(np.maximum(np.abs(delta) - high, 0), room)


def numpy_start(x, u, eps):
    c, *sides = x.shape
    tile = [max(1, s // 5) for s in sides]
    counts = [s // t for s, t in zip(sides, tile, strict=True)]
    delta = np.zeros(x.shape)
    for sign, (channel, *at) in zip(np.where(u < 0.5, -1, 1), np.ndindex(c, *counts), strict=True):
        where = tuple(slice(i * t, i * t + t) for i, t in zip(at, tile, strict=True))
        delta[(channel, *where)] = sign * pyramid(tile)
    return into_l1_ball_and_box(3 * c * eps * delta / np.abs(delta).sum(), x, eps)


def numpy_step(x, delta, u, eps, coverage):
    c, *sides = x.shape
    axes = len(sides)
    window = [min(max(3, round(coverage ** (1 / axes) * s)), s) for s in sides]
    window = [min(w + 1 - w % 2, s) for w, s in zip(window, sides, strict=True)]
    target = windows_of(u[:axes], sides, window)
    source = windows_of(u[axes : 2 * axes], sides, window)
    bump = split_pyramid(window, int(u[2 * axes] * axes))
    unused, new = max(0.0, eps - np.abs(delta).sum()), delta.copy()
    for k in range(c):
        old = delta[k][target].reshape(window)
        part = (-1 if u[2 * axes + 1 + k] < 0.5 else 1) * bump + old / max(np.abs(old).sum(), 1e-9)
        length = np.abs(delta[k][target | source]).sum() + unused / c
        new[k][source] = 0
        new[k][target] = (3 * c * length * part / np.abs(part).sum()).ravel()
    return into_l1_ball_and_box(new, x, eps)


@pytest.mark.parametrize("shape", [(2, 7, 16), (1, 9, 9), (12,), (3, 10), (2, 5, 5, 6)])
@pytest.mark.parametrize("eps", [0.3, 1.5, 6.0])
def test_l1_against_numpy(shape, eps):
    """The start and the steps from it, one sample at a time."""
    x = torch.rand(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[0] = x[0].round()
    model, attack = Recorder(x[0].numel()), Square(eps=eps, norm="l1", max_queries=9, p_init=0.3)
    attack.run(TorchClassifier(model), x, torch.zeros(4, dtype=torch.int64))
    keys = sample_keys(x, (0.0, 1.0), 0)
    value = margins(model, torch.stack(model.asked))
    inputs = x.view(4, 1, -1) if len(shape) == 1 else x
    for k, clean in enumerate(inputs.numpy()):
        for i in range(1, 8):
            at = max(range(1, i), key=lambda j: (value[j, k], j), default=0)  # the best so far
            u = uniform(derived_keys(keys, i - 1), 4 * clean.size, torch.float32)[k].numpy()
            delta = model.asked[at][k].numpy().reshape(clean.shape) - clean
            if i == 1:
                tiles = [s // max(1, s // 5) for s in clean.shape[1:]]
                wanted = numpy_start(clean, u[: len(clean) * math.prod(tiles)], eps)
            else:
                wanted = numpy_step(clean, delta, u, eps, attack._coverage(i - 1))
            found = model.asked[i][k].numpy().reshape(clean.shape) - clean
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(16,), (2, 8), (1, 2, 8)])
def test_l1_finds_the_steepest_features_within_their_bounds(shape):
    w = torch.linspace(-1, 1.9, 16, dtype=torch.float64)
    x = torch.full((1, *shape), 0.7, dtype=torch.float64)
    attack = Square(eps=1.5, norm="l1", max_queries=800, stop="never")
    result = attack.run(Halfspace(w, b=100.0), x)
    room = torch.where(w < 0, 1 - x.flatten(), x.flatten())
    left, gain = 1.5, 0.0
    for i in w.abs().argsort(descending=True):
        change = min(left, float(room[i]))
        left, gain = left - change, gain + change * float(w[i].abs())
    found = ((x - result.x_adv).flatten() * w).sum()
    assert 0.95 * gain < found <= gain + 1e-9
    assert ((result.x_adv - x).abs() > 1e-6).sum() <= 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_l1_stays_in_each_ball_and_in_the_box(dtype):
    net, x = convnet().to(dtype), images(8).to(dtype)
    x[0] = x[0].round()
    eps = torch.linspace(0.0, 3.0, 8)
    attack = Square(eps=eps, norm="l1", max_queries=60, stop="never")
    x_adv = attack.run(net, x).x_adv.double()
    length = (x_adv - x.double()).flatten(1).abs().sum(1)
    rounded = torch.finfo(dtype).eps / 4 * x[0].numel()  # half a digit of each feature
    assert (length <= eps.double() * (1 + 8 * torch.finfo(dtype).eps) + rounded).all()
    assert ((x_adv >= 0) & (x_adv <= 1)).all()
    assert torch.equal(x_adv[0], x[0].double())
    assert (length[1:] > 0).all()


def test_each_sample_is_asked_for_exactly_as_often_as_its_result_says():
    """Counted by the model, which tells the samples apart; the finished ones are left alone."""
    net, x = convnet(), images(8)
    y = answers(net, x)
    eps = 0.15
    counts = torch.zeros(8, dtype=torch.int64)

    def count(module, args):
        near = (args[0][:, None] - x[None]).abs().flatten(2).amax(2) <= eps + 1e-6
        assert (near.sum(1) == 1).all()
        counts.add_(near.sum(0))

    net.register_forward_pre_hook(count)
    result = Square(eps=eps, max_queries=300).run(net, x, y)
    assert torch.equal(counts, result.queries.forward)
    assert result.success.any()
    assert len(set(counts.tolist())) > 3
    assert (counts[~result.success] == 300).all()


def test_flat_scores_are_crossed():
    """Ties are kept: a box that changes no score moves the search on."""
    asked = []

    class Flat(nn.Module):
        def forward(self, x):
            asked.append(x[0].clone())
            return torch.tensor([[2.0, 0.0]]).expand(len(x), -1)

    Square(eps=0.2, max_queries=60).run(Flat(), torch.full((1, 1, 8, 8), 0.5))
    steps = [int((after != before).sum()) for before, after in pairwise(asked[10:-1])]
    assert max(steps) <= 4  # a box of two by two at most: each begins where the last one ended
    assert (asked[-2] != asked[10]).sum() > 8
    assert torch.equal(asked[-1], asked[-2])


def test_saturated_probabilities_are_seen_through():
    net, x = convnet(), images()

    class Sure(nn.Module):
        def forward(self, x):
            return 1e3 * net(x)

    found, plain = (Square(eps=0.1, max_queries=150).run(m, x) for m in (Sure(), net))
    assert torch.equal(found.success, plain.success)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"norm": "l0"}, ValueError, "`norm` must be one of 'linf', 'l2', 'l1', got 'l0'"),
        ({"max_queries": 2}, ValueError, "`max_queries` must be at least 3, got 2"),
        ({"p_init": 0.0}, ValueError, "`?p_init`? must be positive and finite, got 0.0"),
        ({"p_init": 1.5}, ValueError, "`?p_init`? must be at most 1, got 1.5"),
        ({"stop": "last"}, ValueError, "`stop` must be one of"),
        ({"seed": 0.5}, TypeError, "`seed` must be an int"),
        ({"progress": 1}, TypeError, "`progress` must be True or False"),
        ({"eps": -1.0}, ValueError, "`eps` must be at least 0"),
    ],
)
def test_wrong_settings(settings, error, said):
    with pytest.raises(error, match=said):
        Square(**{"eps": 0.1, **settings})


def test_too_few_queries_to_begin_are_marked():
    net, x = convnet(), images(4)
    with pytest.warns(InconclusiveWarning, match="could not begin for 4 of 4 samples"):
        result = Square(eps=0.01, max_queries=3).run(net, x)
    assert result.no_start.all()
    begun = Square(eps=0.01, max_queries=3).run(net, x, answers(net, x))
    assert not begun.no_start.any()


@pytest.mark.filterwarnings("ignore:The ball of .* holds every input")
@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize(
    ("dtype", "eps"), [(torch.float16, 300.0), (torch.float16, 3e4), (torch.float32, 3e38)]
)
def test_a_large_budget_does_not_overflow(dtype, eps, norm):
    asked = []

    class Watched(torch.nn.Module):
        def forward(self, x):
            assert x.isfinite().all()
            asked.append(x)
            return torch.stack([x.flatten(1)[:, 0], -x.flatten(1)[:, 0] - 999], 1)

    x = torch.full((2, 1, 11, 11), 128.0, dtype=dtype)
    model = TorchClassifier(Watched(), bounds=(0, 255))
    Square(eps=eps, norm=norm, max_queries=20, stop="never").run(model, x, torch.tensor([0, 0]))
    assert len(torch.cat(asked).unique(dim=0)) > 10


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_sixteen_bits_square_a_budget_in_float32(norm):
    """The square of 300 is above the largest number of 16 bits."""
    asked = []
    for dtype in (torch.float16, torch.float32):
        model = Recorder(121)
        x = torch.full((1, 1, 11, 11), 128.0, dtype=dtype)
        attack = Square(eps=300.0, norm=norm, max_queries=12, stop="never")
        attack.run(TorchClassifier(model, bounds=(0, 255)), x, torch.tensor([0]))
        asked.append(torch.stack(model.asked[:4]).float())
    torch.testing.assert_close(*asked, rtol=0, atol=0.5)
