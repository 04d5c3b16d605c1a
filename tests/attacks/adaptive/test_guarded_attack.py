"""Attacks on a guarded model and its detector of inputs, together: closed forms and the guard."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from advkit import QueryBudgetExceeded, QueryCounter, attacks
from advkit import eval as rob
from advkit.attacks.adaptive import feature_matching
from advkit.attacks.adaptive.feature_matching import FeatureMatching, _MatchingProblem, _weights
from advkit.attacks.adaptive.guarded_attack import Clean, nearest_clean
from advkit.attacks.adaptive.joint_carlini_wagner import (
    JointCarliniWagner,
    _initial_residual,
    _initial_state,
    _PenaltyProblem,
    bisect_to_boundary,
)
from advkit.attacks.adaptive.joint_problem import _without_conflict, total_margin
from advkit.attacks.adaptive.selective_pgd import SelectivePGD
from advkit.attacks.engine.goal import Goal
from advkit.attacks.engine.records import Nearest
from advkit.core.norms import lp_norm
from advkit.detectors.guard import Guard
from advkit.models import REJECTED
from tests.toys import answers, convnet, images

pytestmark = pytest.mark.filterwarnings("ignore:The ball of .* holds every input")

CENTRES = torch.tensor([[0.2, 0.5, 0.5], [0.8, 0.5, 0.5]], dtype=torch.float64)


class Plane(nn.Module):
    """Two logits: the second class is x_0 > 1/2."""

    def forward(self, x):
        return torch.stack([0 * x[:, 0], 4 * (x[:, 0] - 0.5)], 1)


class Ball:
    """An alarm outside of a ball around the centre of the label; a half of it for each part."""

    def __init__(self, radius, scale=1.0, centres=CENTRES):
        self.radius, self.scale, self.centres = radius, scale, centres

    def margin_over_threshold(self, x, labels, threshold):
        away = torch.linalg.vector_norm(x - self.centres[labels], dim=1) - self.radius
        return self.scale * away[:, None] - threshold

    reads_inputs = True

    def anomaly_score(self, x, labels):
        return self.margin_over_threshold(x, labels, 0.0).amax(1)

    def features(self, x):
        return x


def ball(radius=0.2, scale=1.0):
    return Guard(Plane(), Ball(radius, scale), threshold=0.0)


def points(n=12):
    """Clean inputs of the first class, all of which are accepted."""
    generator = torch.Generator().manual_seed(0)
    x = CENTRES[0] + 0.15 * (2 * torch.rand(n, 3, generator=generator, dtype=torch.float64) - 1)
    return x[lp_norm(x - CENTRES[0], "l2") < 0.2], torch.zeros(n, dtype=torch.int64)[: len(x)]


@pytest.fixture
def x():
    x = points(40)[0]
    return x[:12]


@pytest.fixture
def y(x):
    return torch.zeros(len(x), dtype=torch.int64)


@pytest.fixture
def start_images():
    return torch.cat([CENTRES, CENTRES + 0.05, CENTRES.new_tensor([[0.99, 0.0, 0.0]])])


def nearest_in_ball(x, radius):
    """Distance to a ball around the second centre that the plane x_0 = 1/2 does not cut."""
    return lp_norm(x - CENTRES[1], "l2") - radius


def nearest_in_cap(x, radius):
    """The same for a ball that the plane cuts, from within the half-space of the first class.

    The nearest point of the disc in the plane, as far as it is nearer than the rest of the cap: the
    clean inputs are so near to the axis that it is.
    """
    disc = math.sqrt(radius**2 - 0.3**2)
    off = lp_norm(x[:, 1:] - 0.5, "l2")
    return torch.hypot(0.5 - x[:, 0], (off - disc).clamp_min(0))


def near(radius):
    return nearest_in_ball if radius < 0.3 else nearest_in_cap


def all_three(start_images, eps=1.0):
    return [
        JointCarliniWagner(start_images=start_images, search_steps=4, steps=20),
        SelectivePGD(eps=eps, start_images=start_images, steps=10),
        SelectivePGD(
            eps=eps, start_images=start_images, steps=10, kind="orthogonal", random_start=False
        ),
        FeatureMatching(eps=eps, start_images=start_images, steps=10),
    ]


every_guarded_attack = pytest.mark.parametrize("k", range(4))


# What the guard says


@every_guarded_attack
@pytest.mark.parametrize("radius", [0.001, 0.05, 0.4])
def test_with_unlimited_distortion_every_image_succeeds(x, y, start_images, k, radius):
    guard = ball(radius)
    result = all_three(start_images)[k].run(guard, x, y)
    assert result.success.all()
    assert (guard.predict(result.x_adv) == 1).all()


@every_guarded_attack
def test_success_is_what_the_guard_says_of_x_adv(x, y, start_images, k):
    guard = ball(0.2)
    attack = all_three(start_images, eps=0.4)[k]
    result = attack.run(guard, x, y)
    answered = guard.predict(result.x_adv)
    assert torch.equal(result.success, (answered != y) & (answered != REJECTED))
    assert torch.equal(result.prediction, answered.where(result.success, -1))
    torch.testing.assert_close(result.distance, lp_norm(result.x_adv - x, attack.norm))
    assert (result.x_adv >= 0).all()
    assert (result.x_adv <= 1).all()
    if k:
        assert (result.distance <= 0.4 + 1e-9).all()


@every_guarded_attack
@pytest.mark.filterwarnings("ignore:`start_images` has no image", "ignore:.*met a gradient")
def test_a_rejection_is_never_a_success(x, y, start_images, k):
    """The guard accepts nothing of the second class."""

    class Never(Ball):
        def margin_over_threshold(self, x, labels, threshold):
            return super().margin_over_threshold(x, labels, threshold) + labels[:, None]

    result = all_three(start_images)[k].run(Guard(Plane(), Never(0.2), threshold=0.0), x, y)
    assert not result.success.any()
    assert k or torch.equal(result.x_adv, x)


@every_guarded_attack
def test_what_is_wrong_and_accepted_before_is_left_as_it_is(x, start_images, k):
    y = torch.ones(len(x), dtype=torch.int64)
    result = all_three(start_images)[k].run(ball(), x, y)
    assert torch.equal(result.x_adv, x)
    assert (result.queries.backward == 0).all()
    assert result.success.all()


@every_guarded_attack
def test_targets_are_reached(start_images, k):
    x, y, centres = *three_classes(), start_images
    centres = torch.eye(3, dtype=torch.float64) * 0.8 + 0.1
    guard = Guard(nn.Identity(), Ball(0.3, centres=centres), threshold=0.0)
    for shift in (1, 2):
        target = (y + shift) % 3
        result = all_three(centres)[k].run(guard, x, y, target=target)
        assert torch.equal(guard.predict(result.x_adv), target)


def three_classes():
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(6) % 3
    x = torch.eye(3, dtype=torch.float64)[y] * 0.7
    return x + 0.2 * torch.rand(6, 3, generator=generator, dtype=torch.float64), y


@every_guarded_attack
def test_a_sample_does_not_depend_on_its_batch(x, y, start_images, k):
    attack = all_three(start_images, eps=0.4)[k]
    whole = attack.run(ball(), x, y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = [attack.run(ball(), x[rows], y[rows]) for rows in order.split(5)]
    torch.testing.assert_close(torch.cat([p.x_adv for p in parts]), whole.x_adv[order])
    assert torch.equal(torch.cat([p.success for p in parts]), whole.success[order])
    assert torch.equal(attack(ball(), x, y), whole.x_adv)


@every_guarded_attack
def test_queries_are_those_of_the_model_but_for_the_natural_images(x, y, start_images, k):
    counter = QueryCounter(Plane())
    attack = all_three(start_images, eps=0.3)[k]
    result = attack.run(Guard(counter, Ball(0.15), threshold=0.0), x, y)
    assert int(result.queries.forward.sum()) == counter.forward - len(start_images)
    if k != 2:  # of its two gradients one does not pass the model
        assert int(result.queries.backward.sum()) == counter.backward


@every_guarded_attack
@pytest.mark.parametrize("budget", [0, 20, 200, 300])
def test_what_was_found_when_the_models_budget_ends_is_not_lost(x, y, start_images, k, budget):
    counter = QueryCounter(Plane(), max_queries=budget)
    with pytest.raises(QueryBudgetExceeded) as error:
        dataclasses.replace(all_three(start_images, eps=0.38)[k], steps=300).run(
            Guard(counter, Ball(0.2), threshold=0.0), x, y
        )
    found = error.value.result
    answered = ball(0.2).predict(found.x_adv)
    assert (answered == 1)[found.success].all()
    assert torch.equal(found.x_adv[~found.success], x[~found.success]) or k


@every_guarded_attack
def test_a_counter_around_the_guard_is_passed_through(x, y, start_images, k):
    attack = all_three(start_images, eps=0.4)[k]
    assert torch.equal(attack(QueryCounter(ball()), x, y), attack(ball(), x, y))


@every_guarded_attack
def test_guards_around_guards_all_count(x, y, start_images, k):
    """The inner one accepts one half of what the outer one does."""

    class Above(Ball):
        def margin_over_threshold(self, x, labels, threshold):
            return (0.53 - x[:, 1:2]) * labels[:, None]

    class Scored(Guard):
        """Shows scores for the rejected too."""

        def scores(self, x):
            return self.model.scores(x)

    both = Guard(Scored(Plane(), Above(0), threshold=0.0), Ball(0.2), threshold=0.0)
    result = all_three(start_images)[k].run(both, x, y)
    assert result.success.all()
    assert (result.x_adv[:, 1] >= 0.53).all()


@every_guarded_attack
def test_it_passes_through_an_evaluation(x, y, start_images, k):
    attack = all_three(start_images)[k]
    report = rob.evaluate(ball(), x, y, attacks=[attack], batch_size=5)
    assert report.clean.all()
    assert not report.outcomes[0].robust.any()
    assert f"start_images=<{len(start_images)} values>" in str(report.outcomes[0].label)


# Carlini and Wagner


@pytest.mark.slow("long searches")
@pytest.mark.parametrize(
    ("radius", "scale", "with_natural"),
    [(0.1, 1e3, False), (0.1, 1.0, True), (0.25, 1e-3, False), (0.4, 1.0, False), (0.4, 0.1, True)],
)
def test_the_nearest_joint_example_is_known(x, y, start_images, radius, scale, with_natural):
    attack = JointCarliniWagner(start_images=start_images if with_natural else None)
    result = attack.run(ball(radius, scale), x, y)
    assert result.success.all()
    ratio = result.distance / near(radius)(x, radius)
    assert (ratio >= 1 - 1e-9).all()
    assert (ratio <= 1.02).all()


@pytest.mark.slow("long searches")
def test_the_published_attack_is_weak_where_its_constant_is(x, y):
    """At a weight of 1, what the ball is left by costs less than the way into it."""
    published = JointCarliniWagner(schedule="published", search_steps=6, steps=100)
    assert not published.run(ball(0.1, scale=0.05), x, y).success.any()
    assert JointCarliniWagner().run(ball(0.1, scale=0.05), x, y).success.all()
    strong = published.run(ball(0.4, scale=50.0), x, y)
    assert strong.success.all()
    assert (strong.distance <= 1.25 * nearest_in_cap(x, 0.4)).all()


def test_the_published_constants(x, y):
    """Of the class from 1/1000 tenfold at failures, of the detector one, whatever happens."""
    state = _initial_state(y, torch.ones(12), torch.tensor([[1e-3, 1.0]]).expand(12, 2))
    free, unmet = torch.tensor([True, False]), torch.ones(12, 2, dtype=torch.bool)
    hit = torch.zeros(12, dtype=torch.bool)
    for expected in (1e-2, 1e-1):
        state = state.updated(hit, unmet, free)
        torch.testing.assert_close(state.const[0], torch.tensor([expected, 1.0]))
    state = state.updated(~hit, unmet, free)
    torch.testing.assert_close(state.const[0], torch.tensor([0.055, 1.0]))
    for _ in range(30):
        state = state.updated(hit, unmet, free)
    torch.testing.assert_close(state.const[0], torch.tensor([0.1, 1.0]))


def test_both_constants_have_brackets_of_their_own():
    state = _initial_state(torch.zeros(1), torch.ones(1), torch.tensor([[2.0, 3.0]]))
    free = torch.tensor([True, True])
    miss, hit = torch.tensor([False]), torch.tensor([True])
    state = state.updated(miss, torch.tensor([[False, True]]), free)
    assert state.const.tolist() == [[2, 30]]
    state = state.updated(miss, torch.tensor([[True, True]]), free)
    assert state.const.tolist() == [[20, 300]]
    state = state.updated(hit, torch.tensor([[False, False]]), free)
    assert state.const.tolist() == [[11, 165]]
    state = state.updated(miss, torch.tensor([[True, False]]), free)
    assert state.const.tolist() == [[15.5, 165]]
    for _ in range(3):  # until its bracket is closed, and opened again
        state = state.updated(miss, torch.tensor([[True, False]]), free)
    assert state.const[0, 0] > 20
    assert state.const[0, 1] == 165


def test_both_confidences_keep_their_distance(x, y):
    guard = ball(0.4)
    result = JointCarliniWagner(confidence=0.4).run(guard, x, y)
    assert result.success.all()
    assert (4 * (result.x_adv[:, 0] - 0.5) >= 0.4 - 1e-9).all()
    assert (result.x_adv[:, 0] <= 0.61).all()
    roomy = JointCarliniWagner(detector_confidence=0.05, search_steps=1, steps=60, candidates=1)
    assert roomy.run(ball(0.1), x, y).success.all()


def begun(attack, guard, x, y):
    """The problem that a search begins with, and its first look."""
    problem = attack._problem(attack._adapt_model(guard), x, y, None)
    weight, residual = _initial_residual(
        problem, torch.tensor([[2.0, 3.0]], dtype=x.dtype).expand(len(x), 2)
    )
    more = {
        "detector_confidence": attack.detector_confidence,
        "weight": weight,
        "residual": residual,
    }
    joint = attack._joint(_PenaltyProblem, problem, **more)
    return joint, joint.forward(x, differentiate=False)


def test_the_objective_and_its_residual(x, y):
    joint, at = begun(JointCarliniWagner(detector_confidence=0.07), ball(0.4), x, y)
    behind = 4 * (0.5 - x[:, 0])
    above = (lp_norm(x - CENTRES[1], "l2") - 0.4 + 0.07).clamp_min(0)
    torch.testing.assert_close(at.value, -(2 * behind + 3 * above))
    torch.testing.assert_close(joint.residual.terms, torch.stack([behind, above], 1))
    joint.forward(x - 0.01, differentiate=False)  # leaves more
    torch.testing.assert_close(joint.residual.total, 2 * behind + 3 * above)


def test_the_target_class_is_that_of_the_nearest_class(x):
    """Whether it is the first or the last of the candidates."""
    x, y = three_classes()
    near, far = (torch.eye(3, dtype=torch.float64) * s for s in (0.8, 1.0))
    for chosen in (1, 2):
        centres = torch.where(torch.arange(3)[:, None] == chosen, near, far)
        guard = Guard(nn.Identity(), Ball(0.1, centres=centres), threshold=0.0)
        attack = JointCarliniWagner(steps=40, candidates=2)
        joint, at = begun(attack, guard, x[y == 0], y[y == 0])
        nearest, state, left = attack._search_classes(joint, at)
        assert left == 5
        assert nearest.success.all()
        assert (state.target_class == chosen).all()
        assert (nearest.x_adv.argmax(1) == chosen).all()


def test_a_natural_image_that_is_nearest_sets_the_target_class():
    x, y = three_classes()
    centres = torch.eye(3, dtype=torch.float64) * 0.8
    guard = Guard(nn.Identity(), Ball(0.1, centres=centres), threshold=0.0)
    attack = JointCarliniWagner(start_images=centres[2:])
    joint, _ = begun(attack, guard, x[y == 0], y[y == 0])
    fresh = _initial_state(y[y == 1], x[:2, 0], torch.ones(2, 2, dtype=x.dtype))
    nearest, state = attack._from_start_images(joint, Nearest.empty(joint.x), fresh)
    assert nearest.success.all()
    assert state.target_class.tolist() == [2, 2]
    assert (state.const != 1).all()


def test_what_is_found_cannot_come_nearer_on_its_way(x, y):
    coarse = JointCarliniWagner(search_steps=2, steps=12, lr=0.3, candidates=1)
    guard = ball(0.4)
    result = coarse.run(guard, x, y)
    assert result.success.any()
    nearer = x + 0.995 * (result.x_adv - x)
    assert (guard.predict(nearer) != 1)[result.success].all()


def test_the_nearest_natural_image_is_a_start_where_no_descent_gets(x, y, start_images):
    """Neither the detector nor the class shows a way: both are steps."""

    class Steps(Ball):
        def margin_over_threshold(self, x, labels, threshold):
            return super().margin_over_threshold(x, labels, threshold).sign() + 0 * x[:, :1]

    guard, few = Guard(Plane(), Steps(0.1), threshold=0.0), {"search_steps": 2, "steps": 5}
    with pytest.warns(UserWarning, match="met a gradient"):
        assert not JointCarliniWagner(**few).run(guard, x, y).success.any()
    result = JointCarliniWagner(start_images=start_images, **few).run(guard, x, y)
    assert result.success.all()
    assert (result.distance < lp_norm(x - CENTRES[1], "l2")).all()


def test_bisection_stops_at_the_boundary(x, y):
    attack = JointCarliniWagner(start_images=CENTRES)
    problem = attack._problem(attack._adapt_model(ball(0.1)), x, y, None)
    seen = []

    class Look(type(problem)):
        def forward(self, x_adv, *, differentiate, first=False):
            at = super().forward(x_adv, differentiate=differentiate, first=first)
            seen.append(len(x_adv))
            inside = lp_norm(x_adv - CENTRES[1], "l2") - 0.1
            return at._replace(violation=inside)

    look = Look(**vars(problem))
    outer = CENTRES[1:].expand_as(x).clone()
    nearest = Nearest(outer, torch.full_like(x[:, 0], -0.1), look.distance(outer))
    nearest.violation[0] = math.inf
    expected = nearest_in_ball(x, 0.1) / lp_norm(x - CENTRES[1], "l2")
    found = bisect_to_boundary(look, nearest, 12)
    share = found.distance / lp_norm(x - CENTRES[1], "l2")
    assert share[0] == 1
    assert (share[1:] >= expected[1:] - 1e-9).all()
    assert (share[1:] <= expected[1:] + 2e-3).all()
    assert seen == [len(x) - 1] * 12


def test_rounding_at_the_boundary_is_no_reason_to_lose_a_success(x, y, start_images):
    """A guard whose limit is a little tighter than what its parts say."""

    class Tight(Ball):
        reads_inputs = True

        def anomaly_score(self, x, labels):
            return super().anomaly_score(x, labels) + 1e-3

    guard = Guard(Plane(), Tight(0.25), threshold=0.0)
    result = JointCarliniWagner(start_images=start_images, steps=40).run(guard, x, y)
    assert result.success.all()
    assert (guard.predict(result.x_adv) == 1).all()


# Selective and orthogonal steps


class Valley(nn.Module):
    """A class that pays far more than any alarm costs."""

    def forward(self, x):
        return torch.stack([0 * x[:, 0], 400 * (x[:, 0] - 0.5)], 1)


def test_one_goal_at_a_time_succeeds_where_the_sum_of_both_goes_past(x, y):
    guard = Guard(Valley(), Ball(0.25), threshold=0.0)
    eps = 1.05 * (0.8 - x[:, 0]).max() + 0.0

    def summed(logits, y):
        return logits[:, 1] - logits[:, 0]

    far = attacks.PGD(eps=float(eps), norm="linf", loss=summed, stop="never", steps=40)
    past = guard.predict(far(guard.model, x, y))
    assert (past == REJECTED).float().mean() > 0.5
    for kind in ("selective", "orthogonal"):
        result = SelectivePGD(eps=float(eps), kind=kind, steps=40).run(guard, x, y)
        assert result.success.all()


def test_one_step_of_each_kind_is_that_of_the_formula():
    """Right: up the margin. Wrong and loud: down the excess, without what opposes the margin."""
    guard = Guard(Plane(), Ball(0.1), threshold=0.0)
    x = torch.tensor([[0.45, 0.1, 0.5], [0.95, 0.6, 0.5]], dtype=torch.float64)  # louder than wrong
    y = torch.zeros(2, dtype=torch.int64)
    away = CENTRES[1] - x[1]
    across = away * torch.tensor([0.0, 1.0, 1.0])
    for kind, second in (("selective", away), ("orthogonal", across)):
        attack = SelectivePGD(
            eps=0.05, norm="l2", steps=1, step_size=0.05, random_start=False, kind=kind
        )
        moved = attack.run(guard, x, y).x_adv - x
        torch.testing.assert_close(moved[1], 0.05 * second / second.norm())
    selective = SelectivePGD(eps=0.05, norm="l2", steps=1, step_size=0.05, random_start=False)
    step = torch.tensor([0.05, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(selective(guard, x[:1], y[:1])[0] - x[0], step)


def test_what_opposes_is_taken_off_and_what_agrees_is_not():
    grad = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    other = torch.tensor([[-1.0, 1.0], [1.0, 1.0], [-2.0, 0.0], [0.0, 0.0]])
    expected = torch.tensor([[0.5, 0.5], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(_without_conflict(grad, other), expected)


def test_the_total_margin_sums_the_positive_ones_or_is_the_greatest():
    margins = torch.tensor([[1.0, 2.0, -3.0], [-1.0, -0.5, -3.0]])
    assert total_margin(margins).tolist() == [3.0, -0.5]
    assert total_margin(margins[:, :0]).tolist() == [-math.inf, -math.inf]


def test_each_restart_and_the_natural_start_take_up_what_is_unsolved(x, y, start_images):
    one = SelectivePGD(eps=0.45, steps=1, step_size=0.01)
    guard = ball(0.1)
    counts = [
        dataclasses.replace(one, **more).run(guard, x, y).queries.forward.max()
        for more in ({}, {"restarts": 3}, {"start_images": start_images})
    ]
    assert counts == [4, 8, 6]  # clean, two looks of each run, the guard
    far = dataclasses.replace(one, eps=1.0, start_images=start_images).run(guard, x, y)
    assert far.success.all()


def test_never_stopping_gets_further_from_every_limit(x, y):
    first = SelectivePGD(eps=0.75, steps=30, random_start=False)
    on = dataclasses.replace(first, stop="never")
    guard = ball(0.4)
    a, b = (attack.run(guard, x, y) for attack in (first, on))
    assert a.success.all()
    assert b.success.all()

    def room(x_adv):
        return torch.minimum(4 * (x_adv[:, 0] - 0.5), 0.4 - lp_norm(x_adv - CENTRES[1], "l2"))

    assert (room(b.x_adv) >= room(a.x_adv)).all()
    assert (room(b.x_adv) > 0.35).all()  # the centre has 0.4
    assert (room(a.x_adv) < 0.3).any()


# Feature matching


def test_the_guides_are_the_nearest_of_another_label():
    rng = np.random.default_rng(0)
    at, places = rng.normal(size=(7, 4)), rng.normal(size=(9, 4))
    labels, y = np.arange(9) % 3, np.arange(7) % 3
    clean = Clean(torch.zeros(9, 2), torch.from_numpy(labels), torch.zeros(9, 3))
    for targeted in (False, True):
        goal = Goal(torch.from_numpy(y), 2, targeted)
        found = nearest_clean(clean, goal, *map(torch.from_numpy, (at, places)), max_images=4)
        assert len(found) == 4
        for i in range(7):
            wanted = (labels == y[i]) if targeted else (labels != y[i])
            distance = np.linalg.norm(places - at[i], axis=1)
            order = [j for j in np.argsort(distance) if wanted[j]][:4]
            got = [int(index[i]) for index, exists in found if exists[i]]
            assert got == order


def test_weights_make_features_and_logits_count_the_same():
    gap = torch.tensor([[3.0, 4.0, 10.0], [0.0, 0.0, 2.0]])
    weight = _weights(gap, 2)
    torch.testing.assert_close(weight, torch.tensor([[0.04, 0.04, 0.01], [1.0, 1.0, 0.25]]))
    torch.testing.assert_close(_weights(gap, 0)[0], torch.full((3,), 1 / 125))


def test_matching_needs_no_gradient_of_the_decision(x, y, start_images):
    class Steps(Ball):
        def margin_over_threshold(self, x, labels, threshold):
            return super().margin_over_threshold(x, labels, threshold).sign().detach()

    eps = float((0.85 - x).abs().amax(1).max())
    result = FeatureMatching(eps=eps, start_images=start_images, steps=30).run(
        Guard(Plane(), Steps(0.1), threshold=0.0), x, y
    )
    assert result.success.all()


def test_what_is_matched_is_a_share_of_features_and_one_of_logits(x, y, start_images):
    attack = FeatureMatching(eps=0.1, start_images=start_images)
    problem = attack._problem(attack._adapt_model(ball()), x, y, None)
    here, guide = (torch.cat([v, Plane()(v)], 1) for v in (x, CENTRES[1:].expand_as(x)))
    weight = _weights(here - guide, 3)
    matching = attack._joint(_MatchingProblem, problem, guide=guide, weight=weight)
    for share in (0.0, 0.5, 1.0):
        at = matching.forward(x.lerp(CENTRES[1:], share), differentiate=False)
        torch.testing.assert_close(at.value, torch.full_like(x[:, 0], -2 * (1 - share) ** 2))


def test_each_guide_is_gone_for_from_two_starts(x, y, start_images):
    for candidates in (1, 2):
        attack = FeatureMatching(
            eps=0.01, start_images=start_images, steps=4, candidates=candidates
        )
        queries = attack.run(ball(), x, y).queries
        assert (queries.forward == 2 + candidates * 2 * 5).all()
        assert (queries.backward == candidates * 2 * 4).all()


def test_guides_are_compared_in_features_or_without_a_guard_in_logits(
    x, y, start_images, monkeypatch
):
    seen = []

    def spy(clean, goal, points, clean_points, max_images):
        seen.append((points, clean_points))
        return nearest_clean(clean, goal, points, clean_points, max_images)

    monkeypatch.setattr(feature_matching, "nearest_clean", spy)
    for model, look in ((ball(), nn.Identity()), (Plane(), Plane())):
        FeatureMatching(eps=0.01, start_images=CENTRES, steps=1)(model, x, y)
        torch.testing.assert_close(seen.pop(), (look(x), look(CENTRES)))


def test_a_ball_with_the_guide_in_it_costs_a_look(x, y, start_images):
    result = FeatureMatching(eps=1.0, start_images=start_images).run(ball(), x, y)
    assert (result.queries.forward == 3).all()  # clean, the guide, the guard
    assert (result.queries.backward == 0).all()


def test_another_guide_is_tried_where_one_leads_nowhere(y):
    """The nearest guide is out of the ball of the sample, but for a corner that is rejected."""
    x = torch.tensor([[0.4, 0.5, 0.5]], dtype=torch.float64)
    centres = torch.tensor([[0.2, 0.5, 0.5], [0.8, 0.5, 0.5]], dtype=torch.float64)

    class Two(Ball):
        def margin_over_threshold(self, x, labels, threshold):
            here = super().margin_over_threshold(x, labels, threshold)
            return torch.minimum(here, (lp_norm(x - 0.7, "linf") - 0.01)[:, None])

        def features(self, x):
            return x[:, :2] * torch.tensor([1.0, 30.0], dtype=torch.float64)

    guard = Guard(Plane(), Two(0.01, centres=centres), threshold=0.0)
    start_images = torch.cat([centres, torch.full((1, 3), 0.7, dtype=torch.float64)])
    one = FeatureMatching(eps=0.3, start_images=start_images, candidates=1, steps=20)
    assert not one.run(guard, x, y[:1]).success.any()
    assert dataclasses.replace(one, candidates=2).run(guard, x, y[:1]).success.all()


# A model without a guard


def test_without_a_guard_they_are_attacks_on_the_model():
    net, x = convnet(), images(8)
    y, start_images = answers(net, x), images(30, seed=5)
    plain = attacks.PGD(eps=0.1, steps=10, loss="margin", random_start=False)
    one = SelectivePGD(eps=0.1, steps=10, random_start=False)
    torch.testing.assert_close(one(net, x, y), plain(net, x, y))
    orthogonal = dataclasses.replace(one, kind="orthogonal")
    torch.testing.assert_close(orthogonal(net, x, y), plain(net, x, y))
    reference = attacks.CarliniWagnerL2().run(net, x, y)
    joint = JointCarliniWagner().run(net, x, y)
    assert joint.success.all()
    assert (joint.distance <= 1.02 * reference.distance + 1e-6).all()
    matched = FeatureMatching(eps=0.2, start_images=start_images, steps=20).run(net, x, y)
    assert matched.success.float().mean() > 0.5
    assert torch.equal(matched.success, answers(net, matched.x_adv) != y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_natural_images_of_another_dtype_are_converted(dtype):
    net, x = convnet(dtype=dtype), images(8, dtype=dtype)
    y = answers(net, x)
    for attack in all_three(images(30, seed=5)):
        result = attack.run(net, x, y)
        assert result.success.all()
        assert result.x_adv.dtype == dtype


# Wrong arguments


class Outputs:
    def anomaly_score(self, outputs):
        return outputs.max(1)


@every_guarded_attack
def test_a_detector_of_outputs_is_refused(x, y, start_images, k):
    attack = all_three(start_images)[k]
    name = type(attack).__name__
    with pytest.raises(
        TypeError, match=f"for {name}, got Outputs, which has no method margin_over.* Use Adaptive"
    ):
        attack(Guard(Plane(), Outputs(), threshold=0.5), x, y)


def test_features_are_asked_for_where_they_are_used(x, y, start_images):
    class Blind:
        def margin_over_threshold(self, x, labels, threshold):
            return x[:, :0]

        reads_inputs = True

        def anomaly_score(self, x, labels):
            return x[:, 0]

    guard = Guard(Plane(), Blind(), threshold=1.0)
    with pytest.raises(TypeError, match="for FeatureMatching, got Blind, which has no method feat"):
        FeatureMatching(eps=0.1, start_images=start_images)(guard, x, y)
    assert SelectivePGD(eps=0.5, steps=10).run(guard, x, y).success.all()


@pytest.mark.parametrize("shape", [(12,), (3, 2)])
def test_excess_has_a_row_for_each_input(x, y, shape):
    class Wrong(Ball):
        def margin_over_threshold(self, x, labels, threshold):
            return torch.zeros(shape, dtype=x.dtype)

    with pytest.raises(ValueError, match=r"`margin_over_threshold` .* shape \(12, width\)"):
        SelectivePGD(eps=0.1)(Guard(Plane(), Wrong(0.1), threshold=0.0), x, y)


@every_guarded_attack
def test_what_is_no_start_is_said(x, y, start_images, k):
    attack = dataclasses.replace(all_three(start_images, eps=0.05)[k], start_images=CENTRES[:1])
    with pytest.warns(UserWarning, match=r"`start_images` has no image.*for \d+ of \d+ samples"):
        result = attack.run(ball(0.1), x, y)
    if isinstance(attack, FeatureMatching):  # the others begin at the input too
        assert result.no_start.any()
        assert not (result.no_start & result.success).any()
    else:
        assert not result.no_start.any()


@every_guarded_attack
def test_natural_images_are_like_the_inputs(x, y, start_images, k):
    for wrong, said in (
        (torch.rand(4, 2), r"samples of shape \(3,\) like x, got \(2,\)"),
        (3 * start_images, r"`start_images` must be within the model's bounds \[0, 1\]"),
        (start_images * torch.nan, "`start_images` must be within"),
    ):
        attack = dataclasses.replace(all_three(start_images, eps=0.01)[k], start_images=wrong)
        with pytest.raises(ValueError, match=said):
            attack(ball(0.1), x, y)


def wrong(kind, error, words, /, **settings):
    return pytest.param(kind, settings, error, words, id=f"{kind.__name__}-{words}")


@pytest.mark.parametrize(
    ("kind", "settings", "error", "words"),
    [
        wrong(JointCarliniWagner, ValueError, "`confidence` must be", confidence=-1.0),
        wrong(
            JointCarliniWagner,
            ValueError,
            "`detector_confidence` must be",
            detector_confidence=math.nan,
        ),
        wrong(JointCarliniWagner, ValueError, "`candidates` must be", candidates=0),
        wrong(JointCarliniWagner, ValueError, "`search_steps` must be", search_steps=0),
        wrong(JointCarliniWagner, ValueError, "`steps` must be", steps=0),
        wrong(JointCarliniWagner, ValueError, "`lr` must be", lr=0.0),
        wrong(JointCarliniWagner, ValueError, "`initial_const` must be", initial_const=-1.0),
        wrong(JointCarliniWagner, ValueError, "`schedule` must be one of", schedule=1),
        wrong(JointCarliniWagner, TypeError, "`progress` must be", progress=1),
        wrong(
            JointCarliniWagner,
            ValueError,
            "`start_images` and `detector_confidence` must",
            schedule="published",
            detector_confidence=0.1,
        ),
        wrong(
            JointCarliniWagner,
            ValueError,
            "`detector_confidence` must",
            schedule="published",
            start_images=CENTRES,
        ),
        wrong(JointCarliniWagner, TypeError, "`start_images` must be a tensor", start_images=[1.0]),
        wrong(
            SelectivePGD,
            ValueError,
            "`start_images` must have shape",
            start_images=torch.zeros(0, 3),
        ),
        wrong(SelectivePGD, TypeError, "got torch.int64", start_images=torch.zeros(2, 3).long()),
        wrong(SelectivePGD, ValueError, "`eps` must be", eps=-0.1),
        wrong(SelectivePGD, ValueError, "`norm` must be", norm="l0"),
        wrong(SelectivePGD, ValueError, "`steps` must be", steps=0),
        wrong(SelectivePGD, ValueError, "`step_size` must be", step_size=0.0),
        wrong(SelectivePGD, ValueError, "`kind` must be", kind="sum"),
        wrong(SelectivePGD, ValueError, "`restarts` must be", restarts=0),
        wrong(SelectivePGD, ValueError, "`restarts` must be 1", restarts=2, random_start=False),
        wrong(SelectivePGD, TypeError, "`random_start` must be", random_start=1),
        wrong(SelectivePGD, ValueError, "`loss` must be", loss="sum"),
        wrong(SelectivePGD, ValueError, "`stop` must be", stop="last"),
        wrong(SelectivePGD, TypeError, "`seed` must be", seed=0.5),
        wrong(SelectivePGD, TypeError, "`progress` must be", progress=1),
        wrong(
            FeatureMatching,
            TypeError,
            "`start_images` must be a tensor",
            start_images=None,
        ),
        wrong(FeatureMatching, ValueError, "`eps` must be", eps=math.inf),
        wrong(FeatureMatching, ValueError, "`norm` must be", norm="l0"),
        wrong(FeatureMatching, ValueError, "`steps` must be", steps=0),
        wrong(FeatureMatching, ValueError, "`step_size` must be", step_size=-1.0),
        wrong(FeatureMatching, ValueError, "`candidates` must be", candidates=0),
        wrong(FeatureMatching, TypeError, "`progress` must be", progress=None),
    ],
)
def test_wrong_settings_are_refused(kind, settings, error, words):
    given = {} if kind is JointCarliniWagner else {"eps": 0.1}
    given |= {"start_images": CENTRES} if kind is FeatureMatching else {}
    with pytest.raises(error, match=words):
        kind(**{**given, **settings})


def test_targeted_dlr_needs_four_classes(x, y):
    with pytest.raises(ValueError, match="`loss` must be 'ce' or 'margin' with . classes"):
        SelectivePGD(eps=0.1, loss="dlr")(ball(), x, y, target=y + 1)


class Squeezing(Ball):
    """Drops the axes of length one."""

    def margin_over_threshold(self, x, labels, threshold):
        return super().margin_over_threshold(x, labels, threshold).squeeze()

    reads_inputs = True

    def anomaly_score(self, x, labels):
        return super().margin_over_threshold(x, labels, 0.0).squeeze()


@pytest.mark.parametrize(
    "attack", [SelectivePGD(eps=0.4, steps=5), JointCarliniWagner(search_steps=2, steps=10)]
)
def test_a_detector_that_squeezes_a_single_sample(attack, x):
    y = torch.zeros(1, dtype=torch.int64)
    plain = attack(ball(), x[:1], y)
    assert torch.equal(attack(Guard(Plane(), Squeezing(0.2), threshold=0.0), x[:1], y), plain)
