"""Failures that say less than they seem to: late progress, lost successes and rejections."""

import math

import pytest
import torch
from torch import nn

from advkit import attacks
from advkit.attacks.engine.loop import FEWEST_STEPS
from tests.toys import Halfspace, convnet, images

STEPS = 20
IGNORED = pytest.mark.filterwarnings("ignore::advkit.InconclusiveWarning")
EPS = 0.1


class Valley(nn.Module):
    """The margin of label 0 is a function of the first feature."""

    def __init__(self, margin):
        super().__init__()
        self.margin = margin

    def forward(self, x):
        z = self.margin(x.flatten(1)[:, 0])
        return torch.stack([z, torch.zeros_like(z)], dim=1)


class Rejects(nn.Module):
    """A halfspace that rejects inputs whose mean is beyond a limit."""

    def __init__(self, limit):
        super().__init__()
        self.net, self.limit = Halfspace(torch.ones(4), b=-9.0), limit

    def forward(self, x):
        beyond = (x.flatten(1).mean(1) > self.limit)[:, None]
        return self.net(x).masked_fill(beyond, -math.inf)


class Replaces(nn.Module):
    """Rejections become another value."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, logits):
        return logits.masked_fill(logits == -math.inf, self.value)


def linear(n=4):
    """A halfspace that no attack within 0.1 crosses, inputs and labels."""
    return Halfspace(torch.ones(4), b=-9.0), torch.full((n, 4), 0.5), torch.zeros(n).long()


def bim(**options):
    return attacks.BIM(eps=EPS, steps=STEPS, **options)


# --- late progress -------------------------------------------------------------------------------


def test_constant_steps_within_the_ball_still_improve():
    net, x, y = linear()
    assert bim(step_size=EPS / STEPS / 2).run(net, x, y).improving.all()


def test_a_search_that_has_converged_does_not():
    net, x, y = linear()
    assert not bim(step_size=EPS / 2).run(net, x, y).improving.any()
    assert not attacks.PGD(eps=EPS, steps=STEPS).run(net, x, y).improving.any()


def test_a_search_without_any_progress_does_not():
    x, y = torch.full((4, 4), 0.5), torch.zeros(4).long()
    flat = Valley(lambda z: 3 + 0 * z)
    with pytest.warns(UserWarning, match="gradient of zero"):
        assert not bim(step_size=EPS / STEPS).run(flat, x, y).improving.any()


@pytest.mark.parametrize(
    ("late", "improving"), [(1.0, True), (0.55, True), (0.45, False), (0.01, False)]
)
def test_the_last_steps_are_compared_with_the_average(late, improving):
    """The slope is 1 for 18 of 20 steps, and such in the last two that their part is `late`.

    Progress is 18 + 2 s, of which the average of a step is (18 + 2 s) / 20. The last two make 2 s,
    and the share of the average is s / ((18 + 2 s) / 20).
    """
    slope = late * 18 / (20 - 2 * late)
    step = EPS / STEPS / 2
    bend = 0.5 - 18 * step

    def margin(z):
        down = 0.5 - z  # how far the feature has been lowered
        return 1 - down.clamp(max=0.5 - bend) - slope * (down - (0.5 - bend)).clamp(min=0)

    x, y = torch.full((1, 4), 0.5, dtype=torch.float64), torch.zeros(1).long()
    falling = Valley(margin)
    result = attacks.BIM(eps=EPS, steps=STEPS, step_size=step).run(falling, x, y)
    assert (result.improving.item(), result.success.item()) == (improving, False)


@pytest.mark.parametrize("steps", [1, FEWEST_STEPS - 1, FEWEST_STEPS, 7, 10, 33, 100])
def test_few_steps_have_no_trend(steps):
    net, x, y = linear()
    attack = attacks.BIM(eps=EPS, steps=steps, step_size=EPS / (2 * steps))
    assert attack.run(net, x, y).improving.all().item() is (steps >= FEWEST_STEPS)


def test_successes_do_not_count():
    """Half of the inputs are next to the boundary, which they cross on the way."""
    net = Halfspace(torch.ones(4), b=-2.1)
    x = torch.tensor([[0.5] * 4, [0.3] * 4, [0.52] * 4, [0.2] * 4])
    for stop in ("first", "never"):
        result = bim(step_size=EPS / STEPS, stop=stop).run(net, x, torch.zeros(4).long())
        assert result.success.tolist() == [True, False, True, False]
        assert result.improving.tolist() == [False, True, False, True]


@pytest.mark.parametrize("stop", ["first", "never"])
def test_late_progress_does_not_depend_on_the_batch(stop):
    """Neither on its order nor on samples that finish early."""
    net, x = convnet(dtype=torch.float64), images(12, dtype=torch.float64)
    y = net(x).argmax(1)
    attack = attacks.BIM(eps=0.02, steps=10, step_size=0.001, stop=stop)
    whole = attack.run(net, x, y)
    alone = [attack.run(net, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    assert whole.improving.any()
    assert whole.success.any()
    assert whole.improving.tolist() == [bool(result.improving) for result in alone]
    turned = attack.run(net, x.flip(0), y.flip(0))
    assert torch.equal(turned.improving.flip(0), whole.improving)


def test_a_restart_that_converges_is_remembered():
    """The last run of a sample decides."""
    net, x, y = linear()
    result = attacks.PGD(eps=EPS, steps=STEPS, restarts=3).run(net, x, y)
    assert not result.improving.any()


@pytest.mark.parametrize(
    "attack",
    [attacks.DeepFool(), attacks.Square(eps=EPS, max_queries=50),
     attacks.HopSkipJump(max_queries=50), attacks.FGSM(eps=EPS)],
    ids=repr,
)  # fmt: skip
@IGNORED
def test_other_searches_have_no_trend(attack):
    net, x, y = linear()
    assert not attack.run(net, x, y).improving.any()


# --- lost successes ------------------------------------------------------------------------------


def test_a_success_of_the_random_start_is_lost_by_the_step():
    """Label 1 is where the feature is within 0.02 of 0.5. A step of 0.125 leaps over this band."""
    band = Valley(lambda z: (z - 0.5).abs() - 0.02)
    x = torch.linspace(0.53, 0.57, 64, dtype=torch.float64)[:, None]
    y = torch.zeros(64).long()
    attack = attacks.FGSM(eps=0.1, random_start=True, stop="never")
    result = attack.run(band, x, y)
    at_once = attacks.FGSM(eps=0.1, random_start=True, stop="first").run(band, x, y)
    assert not result.success.any()
    assert torch.equal(result.success_lost, at_once.success)  # which end at the start
    assert result.success_lost.any()
    assert not result.success_lost.all()
    assert not at_once.success_lost.any()
    alone = [attack.run(band, x[i : i + 1], y[i : i + 1]).success_lost.item() for i in range(16)]
    assert alone == result.success_lost[:16].tolist()


def test_the_strongest_iterate_is_not_lost():
    """BIM walks through the valley and out of it, and returns its lowest point."""
    valley = Valley(lambda z: (z - 0.45).abs() - 0.01)
    x, y = torch.full((3, 1), 0.5), torch.zeros(3).long()
    result = attacks.BIM(eps=0.1, steps=10, step_size=0.03, stop="never").run(valley, x, y)
    assert result.success.all()
    assert not result.success_lost.any()


# --- rejections ----------------------------------------------------------------------------------


@IGNORED
@pytest.mark.parametrize(("limit", "rejected"), [(0.55, True), (0.65, False)])
def test_a_rejected_iterate(limit, rejected):
    x, y = torch.full((5, 4), 0.5), torch.zeros(5).long()
    result = attacks.PGD(eps=EPS, steps=STEPS).run(Rejects(limit), x, y)
    assert not result.success.any()
    assert result.rejected.all().item() is rejected
    assert not result.not_finite.any()


@IGNORED
def test_each_sample_has_its_own_rejections():
    x = torch.tensor([[0.5] * 4, [0.3] * 4, [0.5] * 4])
    result = bim().run(Rejects(0.55), x, torch.zeros(3).long())
    assert result.rejected.tolist() == [True, False, True]
    alone = [bim().run(Rejects(0.55), row[None], torch.zeros(1).long()) for row in x]
    assert [bool(r.rejected) for r in alone] == result.rejected.tolist()


@IGNORED
def test_logits_that_are_not_finite_are_not_a_rejection():
    """Neither NaN nor plus infinity; only minus infinity for every class is one."""
    x, y = torch.full((2, 4), 0.5), torch.zeros(2).long()
    for value in (math.nan, math.inf):
        net = Rejects(0.55)
        broken = nn.Sequential(net, Replaces(value))
        result = attacks.PGD(eps=EPS, steps=STEPS).run(broken, x, y)
        assert result.not_finite.all()
        assert not result.rejected.any()


def test_a_rejection_before_a_success_does_not_count():
    """The step into the rejected part is followed by one with a success, or none."""
    net = Halfspace(torch.ones(4), b=-2.1)

    class Between(nn.Module):
        def forward(self, x):
            inside = (x.mean(1) - 0.51).abs() < 0.004
            return net(x).masked_fill(inside[:, None], -math.inf)

    x, y = torch.full((2, 4), 0.5), torch.zeros(2).long()
    result = attacks.PGD(eps=EPS, steps=STEPS).run(Between(), x, y)
    assert result.success.all()
    assert not result.rejected.any()


@IGNORED
def test_cascades_pass_obstacles_on():
    x, y = torch.full((3, 4), 0.5), torch.zeros(3).long()
    parts = [attacks.FGSM(eps=EPS), bim(step_size=EPS / STEPS / 2)]
    result = attacks.Cascade(attacks=parts).run(Rejects(0.52), x, y)
    assert result.rejected.all()
    net, *rest = linear()
    assert attacks.Cascade(attacks=parts).run(net, *rest).improving.shape == (4,)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("steps", [20, 100])
def test_a_search_that_has_converged_is_not_improving(norm, steps):
    """In l2 and l1 the steps outside the ball find most of what there is."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    x = torch.rand(50, 1, 8, 8)
    y = net(x).argmax(1)
    eps = {"linf": 0.01, "l2": 0.05, "l1": 0.3}[norm]
    assert not attacks.PGD(eps=eps, norm=norm, steps=steps).run(net, x, y).improving.any()
    slow = attacks.PGD(eps=eps, norm=norm, steps=steps, step_size=eps / (5 * steps))
    result = slow.run(net, x, y)
    assert result.improving.sum() > 0.5 * (~result.success).sum()


def test_a_decrease_of_less_than_a_hundredth_is_not_progress():
    net, x, y = linear()
    for divisor, improving in ((20_000, False), (40, True)):
        attack = attacks.BIM(eps=EPS, steps=20, step_size=EPS / divisor)
        assert attack.run(net, x, y).improving.any().item() is improving
