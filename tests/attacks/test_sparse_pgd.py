"""SparsePGD: which positions it changes, where that leads, and what it leaves alone."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from advkit import TorchClassifier
from advkit.attacks import SparsePGD
from advkit.attacks.engine.sparse_ascent import TUNING
from advkit.core.norms import by_position, in_unit, lp_norm
from advkit.core.randomness import derived_keys, normal, sample_keys, uniform
from tests.toys import Halfspace, Quadratic, Recorded, answers, convnet, images

pytestmark = pytest.mark.filterwarnings("ignore:The ball of .* holds every input")
UNITS = ("feature", "pixel")
every_unit = pytest.mark.parametrize("unit", UNITS)
every_gradient = pytest.mark.parametrize("gradient", ["unprojected", "projected"])


# the reference: one sample, in NumPy


class Reference:
    """The iterates of a run without success on a Quadratic, one sample of (channels, positions)."""

    def __init__(self, net, x, unit, eps, steps, gradient, seed=0):
        self.a, self.w, self.b = net.numpy()
        self.x = by_position(x, in_unit("l0", unit))[0].numpy()
        self.eps, self.steps, self.projected = eps, steps, gradient == "projected"
        self.drawn_again = False
        self.keys = derived_keys(sample_keys(x, (0.0, 1.0), seed, 0), 2)

    def margin_and_gradient(self, x_adv, label):
        """How far the label leads, and the gradient of the log-odds against it, of length 1."""
        v = x_adv.ravel()
        z = self.w @ v + np.einsum("i,kij,j->k", v, self.a, v) / 2 + self.b
        slopes = self.w + np.einsum("kij,j->ki", self.a, v)
        others = [k for k in range(len(z)) if k != label]
        p = np.exp(z[others] - z[others].max())
        g = (p / p.sum()) @ slopes[others] - slopes[label]
        return z[label] - z[others].max(), (g / np.linalg.norm(g)).reshape(x_adv.shape)

    def top(self, scores, count):
        mask = np.zeros(len(scores), dtype=bool)
        mask[np.argsort(-scores, kind="stable")[:count]] = True
        return mask

    def gains(self, grad):
        ends = np.where(grad > 0, 1.0, np.where(grad < 0, 0.0, self.x))
        return (grad * (ends - self.x)).sum(0), ends

    def iterates(self, label):
        size, descents = self.x.shape[1], max(1, int(TUNING.descent_share * self.steps))
        x_adv, mask, best, unchanged, found = self.x, np.zeros(size, dtype=bool), None, 0, []
        mean = 0
        for i in range(self.steps):
            found.append(x_adv)
            lead, grad = self.margin_and_gradient(x_adv, label)
            mean = grad if i == 0 else mean + (1 - TUNING.momentum) * (grad - mean)
            if mask.any() and (best is None or lead <= best[0]):
                best = (lead, x_adv, mask, grad)
            if i == 0:
                gain, values = self.gains(grad)
                scores = (gain - gain.mean()) / gain.std(ddof=1)
                mask = self.top(gain, self.eps)
            elif i < descents:
                weight = 1 / (1 + np.exp(-scores))
                slope = (grad * (values - self.x)).sum(0) * weight * (1 - weight)
                scores = scores + TUNING.beta * math.sqrt(size) * slope / np.linalg.norm(slope)
                moved = grad * mask if self.projected else grad
                values = np.clip(values + TUNING.alpha * np.sign(moved), 0, 1)
                before, mask = mask, self.top(scores, self.eps)
                unchanged = unchanged + 1 if (mask == before).all() else 0
                if unchanged >= TUNING.patience:
                    scores = normal(derived_keys(self.keys, i), size, torch.float64)[0].numpy()
                    mask, unchanged, self.drawn_again = self.top(scores, self.eps), 0, True
            else:
                mask, values = self.swapped(i, best, mean, (i - descents) / (self.steps - descents))
            x_adv = np.where(mask, values, self.x)
        return [*found, x_adv]

    def swapped(self, i, best, mean, progress):
        _, strongest, held, grad = best
        grad = (grad + mean) / 2
        gain, ends = self.gains(grad)
        kept = (grad * (strongest - self.x)).sum(0)
        count = max(1, round(TUNING.swap_share * (1 - progress) * self.eps))
        u = uniform(derived_keys(self.keys, i), len(held), torch.float64)[0].numpy()
        noise = -TUNING.noise * np.log(-np.log(u))
        small = 1e-30
        entering = np.where(held, -np.inf, np.log(np.maximum(gain, small)) + noise)
        leaving = np.where(held, noise - np.log(np.maximum(kept, small)), -np.inf)
        mask = held & ~self.top(leaving, count) | self.top(entering, count)
        return mask, np.where(held, strongest, ends)


@every_unit
@every_gradient
def test_the_iterates_are_those_of_a_reference(unit, gradient):
    """Twice as long as the descent needs to draw its mask again."""
    eps, steps = {"feature": 5, "pixel": 2}[unit], 40
    x = torch.rand(1, 3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    net = Quadratic(features=24, classes=4, bend=0.4)
    net.b.data[1] += 1e3  # the label leads for ever
    recorded = Recorded(net, (0.0, 1.0))
    attack = SparsePGD(eps=eps, unit=unit, gradient=gradient, steps=steps, stop="never")
    attack.run(TorchClassifier(recorded), x, torch.tensor([1]))
    seen = [by_position(v.view(1, 3, 2, 4), in_unit("l0", unit))[0].numpy() for v in recorded.seen]
    reference = Reference(net, x, unit, eps, steps, gradient)
    wanted = reference.iterates(label=1)
    assert reference.drawn_again
    assert len(seen) == steps + 2  # with the verification
    for a, b in zip(seen, wanted, strict=False):
        np.testing.assert_allclose(a, b, atol=1e-9)


# linear models


def plane_and_inputs(shape, bounds, n=6):
    """A plane out of reach, and inputs some features of which are at their bounds."""
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(math.prod(shape), dtype=torch.float64, generator=generator)
    x = torch.rand(n, *shape, dtype=torch.float64, generator=generator)
    x[0] = x[0].round()
    lower, upper = bounds
    return Halfspace(w, b=1e4), lower + (upper - lower) * x


def least_value(plane, x, unit, eps, bounds):
    """The least of w.x + b with `eps` positions at any values, for each sample, in NumPy."""
    w, found = plane.w.detach().numpy(), []
    for row, count in zip(x, eps, strict=True):
        v = row.numpy().ravel()
        gain = np.abs(w) * np.where(w > 0, v - bounds[0], bounds[1] - v)
        gain = gain.reshape(len(row) if unit == "pixel" else 1, -1).sum(0)
        found.append(w @ v + plane.b - np.sort(gain)[::-1][: int(count)].sum())
    return np.array(found)


@every_unit
@every_gradient
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-128.0, 127.0)], ids=str)
@pytest.mark.parametrize("steps", [1, 12])
def test_the_optimum_of_a_linear_model_is_reached(unit, gradient, bounds, steps):
    plane, x = plane_and_inputs((3, 2, 4), bounds)
    eps = torch.tensor([0.0, 1.0, 2.0, 3.9, 8.0, 24.0], dtype=torch.float64)
    attack = SparsePGD(eps=eps, unit=unit, gradient=gradient, steps=steps, stop="never")
    with pytest.warns(UserWarning, match="any change is allowed. In l0, eps is a number of"):
        result = attack.run(TorchClassifier(plane, bounds=bounds), x, torch.ones(6).long())
    best = least_value(plane, x, unit, eps, bounds)
    np.testing.assert_allclose(plane.value(result.x_adv).detach().numpy(), best, rtol=1e-12)


@every_unit
def test_it_succeeds_exactly_when_enough_positions_may_change(unit):
    plane, x = plane_and_inputs((3, 2, 4), (0.0, 1.0))
    x, label, plane.b = x[1:2], torch.ones(1).long(), 0.0
    least = least_value(plane, x, unit, [3], (0.0, 1.0))[0]
    for slack, succeeds in ((1e-6, True), (-1e-6, False)):
        plane.b = -least - slack
        result = SparsePGD(eps=3, unit=unit, steps=12).run(plane, x, label)
        assert result.success.item() is succeeds
        assert result.queries.backward.item() == (1 if succeeds else 12)


def test_a_table_has_one_channel():
    plane, x = plane_and_inputs((24,), (0.0, 1.0))
    for unit in UNITS:
        attack = SparsePGD(eps=3, unit=unit, steps=2, stop="never")
        value = plane.value(attack(plane, x, torch.ones(6).long())).detach()
        np.testing.assert_allclose(value, least_value(plane, x, "feature", [3] * 6, (0, 1)))


# limits, batches and options


class Color(nn.Module):
    """Three channels in place of the one of `images`, into the same net."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = convnet(), []

    def forward(self, x):
        self.seen.append(x.detach())
        weights = torch.tensor([0.5, -0.3, 0.8], dtype=x.dtype).view(3, 1, 1)
        return self.net((x * weights).sum(1, keepdim=True))


def color_images(n=6):
    return torch.cat([images(n, seed=seed) for seed in range(3)], dim=1)


@every_unit
@every_gradient
def test_no_iterate_leaves_the_ball(unit, gradient):
    net, x = Color(), color_images()
    eps = torch.tensor([0, 1, 2, 5, 17, 36])
    y = answers(net, x)
    attack = SparsePGD(
        eps=eps, unit=unit, gradient=gradient, steps=20, restarts=2, stop="never", loss="margin"
    )
    net.seen.clear()
    result = attack.run(net, x, y)
    norm, counts = in_unit("l0", unit), eps
    for v in net.seen:
        n = len(v)
        assert (lp_norm(v - x[-n:], norm) <= counts[-n:]).all()
        assert ((v >= 0) & (v <= 1)).all()
    assert result.norm == norm
    assert torch.equal(result.distance, lp_norm(result.x_adv - x, norm))
    assert (result.distance <= counts).all()
    assert result.queries.backward.tolist() == [2] + [40] * 5  # one of a shared graph in each run
    assert result.queries.forward.tolist() == [3] + [43] * 5


@every_unit
def test_a_sample_does_not_depend_on_its_batch(unit):
    net, x = Color().double(), color_images().double()
    y = answers(net, x)
    attack = SparsePGD(eps=3, unit=unit, steps=12, restarts=2, stop="never")
    whole = attack.run(net, x, y)
    for rows in ([2], [5, 0, 3]):
        part = attack.run(net, x[rows], y[rows])
        torch.testing.assert_close(part.x_adv, whole.x_adv[rows], rtol=0, atol=1e-12)


def test_a_pixel_is_worth_more_than_a_feature():
    net, x = Color(), color_images()
    y = answers(net, x)
    lead = {}
    for unit in UNITS:
        z = net(SparsePGD(eps=2, unit=unit, stop="never", steps=20)(net, x, y)).detach()
        lead[unit] = z.gather(1, y[:, None])[:, 0] - z.scatter(1, y[:, None], -1e9).amax(1)
    assert (lead["pixel"] < lead["feature"]).all()


def test_the_first_success_ends_the_search_of_a_sample():
    net, x = Color(), color_images()
    y = answers(net, x)
    result = SparsePGD(eps=8, unit="pixel").run(net, x, y)
    assert result.success.all()
    assert (result.queries.backward < 20).all()
    wrong = SparsePGD(eps=8, unit="pixel").run(net, x, (y + 1) % 3)
    assert torch.equal(wrong.x_adv, x)
    assert not wrong.queries.backward.any()


def test_targets_are_reached():
    net, x = Color(), color_images()
    target = (answers(net, x) + 1) % 3
    result = SparsePGD(eps=12, unit="pixel", loss="margin").run(net, x, target=target)
    assert result.success.all()
    assert torch.equal(answers(net, result.x_adv), target)


def test_restarts_differ_and_only_help():
    net, x = Color(), color_images()
    y = answers(net, x)
    one, two = (
        SparsePGD(eps=2, unit="pixel", steps=4, restarts=n, stop="never").run(net, x, y)
        for n in (1, 8)
    )

    def lead(result):
        z = net(result.x_adv).detach()
        return z.gather(1, y[:, None])[:, 0] - z.scatter(1, y[:, None], -1e9).amax(1)

    assert (lead(two) <= lead(one)).all()
    assert (lead(two) < lead(one)).any()
    seeds = (
        SparsePGD(eps=9, steps=3, restarts=2, seed=seed, stop="never")(net, x, y) for seed in (0, 1)
    )
    assert not torch.equal(*seeds)


def test_sixteen_bits_hold_large_budgets():
    """257 positions have no number in bfloat16."""
    plane = Halfspace(torch.linspace(1, 2, 300, dtype=torch.bfloat16), b=1e4)
    x = torch.ones(1, 300, dtype=torch.bfloat16)
    x_adv = SparsePGD(eps=257, steps=1, stop="never")(plane, x, torch.ones(1).long())
    assert int((x_adv != x).sum()) == 257


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.5}, "`eps` must be 0 or a number of features of at least 1, got 0.5."),
        ({"eps": 0.5, "unit": "pixel"}, "`eps` must be 0 or a number of pixels of at least 1"),
        ({"eps": torch.tensor([3.0, 0.2])}, "of at least 1, got 0.2. Multiply a share of the"),
        ({"eps": -1}, "`eps` must be at least 0 and finite, got -1."),
        ({"eps": 3, "unit": "pixels"}, "`unit` must be one of 'feature', 'pixel', got 'pixels'."),
        ({"eps": 3, "gradient": "sparse"}, "`gradient` must be one of 'unprojected', 'projected'"),
        ({"eps": 3, "steps": 0}, "`steps` must be at least 1, got 0."),
        ({"eps": 3, "restarts": 0}, "`restarts` must be at least 1, got 0."),
        ({"eps": 3, "stop": "last"}, "`stop` must be one of"),
    ],
)
def test_errors_name_the_argument(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SparsePGD(**options)


def test_a_flat_input_is_left_for_a_random_point():
    """A gradient that is zero at the clean input alone does not end the search."""

    class Valley(nn.Module):
        def forward(self, x):
            moved = (x - 0.5).square().flatten(1).sum(1)
            return torch.stack([0 * moved + 0.6, moved], 1)

    x = torch.full((2, 3, 2, 2), 0.5)
    result = SparsePGD(eps=1, unit="pixel", steps=30).run(Valley(), x)
    assert result.success.all()
    assert (result.distance == 1).all()


def test_swaps_go_on_where_every_step_is_worse_than_the_clean_input():
    """A gradient of the wrong sign; the clean input has no positions to swap."""

    class Reversed(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.seen = net, []

        def forward(self, x):
            self.seen.append(x.detach())
            return self.net(2 * x.detach() - x)

    plane, x = plane_and_inputs((12,), (0.0, 1.0), n=1)
    x = 0.25 + x / 2
    net = Reversed(plane)
    SparsePGD(eps=2, steps=12).run(net, x, torch.ones(1).long())
    assert [int((v != x).sum()) for v in net.seen[:13]] == [0] + [2] * 12
