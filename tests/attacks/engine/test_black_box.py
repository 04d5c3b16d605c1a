"""Attacks by labels on a model that rejects inputs: a rejection is no success, and no error."""

import math

import pytest
import torch
from torch import nn

from advkit import QueryBudgetExceeded, QueryCounter, attacks
from advkit.attacks.engine.black_box import warn_of_random_labels
from advkit.attacks.engine.records import Best
from advkit.core.results import InconclusiveWarning
from advkit.models import REJECTED
from tests.toys import Halfspace

W = torch.tensor([1.0, 1.0])


class Strip:
    """A half-space x1 + x2 > 1 that rejects what is within `width` of the boundary."""

    bounds, num_classes = (0.0, 1.0), 2

    def __init__(self, width):
        self.net = Halfspace(W, b=-1.0)
        self.width = width

    def predict(self, x):
        near = self.net.value(x).abs() < self.width
        return self.net(x).argmax(1).masked_fill(near, REJECTED)


class Never:
    """Rejects everything."""

    bounds, num_classes = (0.0, 1.0), 2

    def predict(self, x):
        return torch.full((len(x),), REJECTED)


class Moved:
    """An attack that adds `by` to every feature."""

    norm, eps = "linf", 1.0

    def __init__(self, by):
        self.by = by

    def __call__(self, model, x, y=None, *, target=None):
        return self.run(model, x, y, target=target).x_adv

    def run(self, model, x, y=None, *, target=None):
        found = attacks.RandomNoise(eps=0.0).run(model, x, y, target=target)
        object.__setattr__(found, "x_adv", (x + self.by).clamp(0, 1))
        return found


BY_LABELS = [
    attacks.RandomNoise(eps=0.2, restarts=3),
    attacks.RandomNoise(eps=0.2, stop="never"),
    attacks.HopSkipJump(max_queries=60),
    attacks.HopSkipJump(max_queries=60, norm="linf"),
    attacks.Transfer(attack=attacks.FGSM(eps=0.2), surrogate=Halfspace(W, b=-1.0)),
    attacks.Transfer(attack=attacks.FAB(steps=3), surrogate=Halfspace(W, b=-1.0)),
]


@pytest.fixture
def x():
    return torch.tensor([[0.3, 0.3], [0.45, 0.45], [0.2, 0.7], [0.6, 0.7]])


@pytest.mark.parametrize("attack", BY_LABELS, ids=repr)
@pytest.mark.parametrize("goal", ["y", "target"])
@pytest.mark.filterwarnings("ignore:the search could not begin")
def test_who_rejects_everything_is_never_fooled(x, attack, goal):
    labels = torch.tensor([0, 0, 1, 1])
    result = attack.run(Never(), x, **{goal: labels})
    assert not result.success.any()
    assert not result.no_gradient.any()


@pytest.mark.parametrize("attack", BY_LABELS, ids=repr)
def test_success_is_another_label_and_no_rejection(x, attack):
    model, y = Strip(0.05), torch.tensor([0, 0, 0, 1])
    result = attack.run(model, x, y)
    answer = model.predict(result.x_adv)
    assert torch.equal(result.success, (answer != y) & (answer != REJECTED))


@pytest.mark.filterwarnings("ignore:The ball of .* holds every input")
def test_a_step_into_the_strip_fails_and_one_beyond_it_succeeds(x):
    """The sums 0.6 and 0.9 become 0.7 and 1.0, or 1.0 and 1.3; the strip is 0.8 to 1.2."""
    y = torch.zeros(4, dtype=torch.int64)
    for by, expected in ((0.05, [False, False]), (0.2, [False, True])):
        transfer = attacks.Transfer(attack=Moved(by), surrogate=Halfspace(W, b=-1.0))
        assert transfer.run(Strip(0.2), x, y).success.tolist()[:2] == expected


def test_hopskipjump_goes_to_the_far_side_of_the_strip(x):
    """The nearest success is at x1 + x2 = 1 + width, not at the boundary."""
    x, y = x[:2], torch.tensor([0, 0])
    for width in (0.1, 0.3):
        result = attacks.HopSkipJump(max_queries=700).run(Strip(width), x, y)
        expected = (1 + width - x.sum(1)) / math.sqrt(2)
        assert result.success.all()
        assert (result.distance >= expected - 1e-5).all()
        torch.testing.assert_close(result.distance, expected, rtol=0, atol=0.02)


def test_a_rejected_clean_input_may_be_attacked(x):
    """In the middle of the strip the goal is a label, as everywhere."""
    x, y = torch.full((1, 2), 0.5), torch.tensor([0])
    assert Strip(0.1).predict(x).item() == REJECTED
    result = attacks.HopSkipJump(max_queries=300).run(Strip(0.1), x, y)
    assert result.success.item()
    assert result.distance > 0.1 / math.sqrt(2) - 1e-5
    assert attacks.RandomNoise(eps=0.3, restarts=50).run(Strip(0.1), x, y).success.item()


def test_without_labels_a_rejected_input_has_nothing_to_leave(x):
    x[2] = 0.5
    with pytest.raises(ValueError, match=r"`y` must be given .* got None \(sample 2"):
        attacks.RandomNoise(eps=0.1).run(Strip(0.1), x)
    result = attacks.RandomNoise(eps=0.1).run(Strip(0.1), x[:2] / 2)
    assert not result.success.any()


def test_scores_on_the_way_and_a_rejection_at_the_end(x):
    """Square climbs scores; what counts is the label, and that it is another one is said."""

    class Scored(Strip):
        def scores(self, x):
            return self.net(x).softmax(1)

    y = torch.tensor([0, 0])
    with pytest.warns(UserWarning, match="other labels for . of 2 inputs"):
        result = attacks.Square(eps=0.08, max_queries=50).run(Scored(0.2), x[:2], y)
    assert result.success.tolist() == [False, False]
    assert attacks.Square(eps=0.08, max_queries=50).run(Scored(0.01), x[1:2], y[:1]).success.all()


def test_a_spent_budget_keeps_what_was_found(x):
    y = torch.tensor([0, 0, 0, 1])
    model = QueryCounter(Never(), max_queries=30)
    with pytest.raises(QueryBudgetExceeded) as caught:
        attacks.HopSkipJump(max_queries=60).run(model, x, y)
    assert torch.equal(caught.value.result.x_adv, x)
    assert not caught.value.result.success.any()


def test_what_is_no_answer_and_no_rejection_is_still_an_error(x):
    class Nan(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 2), torch.nan)

    class Odd(Never):
        def predict(self, x):
            return torch.full((len(x),), -2)

    y = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"got NaN or infinity \(samples 0, 1, 2, 3\)"):
        attacks.RandomNoise(eps=0.1).run(Nan(), x, y)
    with pytest.raises(RuntimeError, match="non-negative"):
        attacks.RandomNoise(eps=0.1).run(Odd(), x, y)


class Wary(Strip):
    """The same with logits, which do not tell of rejections."""

    def logits(self, x):
        return self.net(x)


def test_a_gradient_has_no_label_to_leave_either():
    x = torch.tensor([[0.9, 0.9], [0.5, 0.52]])
    with pytest.raises(ValueError, match=r"`y` must be given .* got None \(sample 1"):
        attacks.FGSM(eps=0.1).run(Wary(0.1), x)
    assert attacks.FGSM(eps=0.1).run(Wary(0.1), x, torch.tensor([1, 1])).success.tolist() == [
        False,
        True,
    ]


def test_no_warning_where_nothing_was_labelled_before():
    x = torch.zeros(2, 1)
    verified = Best(x, torch.tensor([-1.0, 1.0]))
    warn_of_random_labels(Best.unevaluated(x), verified)
    with pytest.warns(InconclusiveWarning, match="other labels for 1 of 2 inputs"):
        warn_of_random_labels(Best(x, torch.tensor([1.0, 1.0])), verified)
