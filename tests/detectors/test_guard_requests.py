"""Requests that a guard refuses by their values, and the ids of those that it serves."""

import re

import pytest
import torch
from torch import nn

from advkit import TorchClassifier, attacks, defenses
from advkit.detectors.guard import Guard
from advkit.models import Ensemble, QueryCounter
from tests.detectors.stub_detectors import Identity, Returns, Second, Unsure
from tests.toys import convnet, images

ASK = pytest.mark.parametrize("ask", ["inspect", "predict", "scores"])


def queried(net):
    """Return a list that grows by the size of each batch that the module gets."""
    sizes = []
    net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes


class TestBounds:
    @ASK
    @pytest.mark.parametrize(
        ("x", "error", "words"),
        [
            (
                1000 * images(3),
                ValueError,
                r"`x` must lie in the model's bounds \[0, 1\], got values",
            ),
            (images(3) - 1, ValueError, "`x` must lie in the model's bounds"),
            (images(3) * torch.nan, ValueError, r"`x` must be finite, got NaN .*samples 0, 1, 2"),
            (images(3) + torch.inf, ValueError, "`x` must be finite"),
            (images(3).long(), TypeError, "`x` must have a floating dtype, got torch.int64"),
            (torch.zeros(3), ValueError, r"`x` must have shape \(n, ...\)"),
            (images(3).numpy(), TypeError, "`x` must be a torch.Tensor"),
        ],
    )
    def test_neither_model_nor_detector_gets_what_is_no_input(self, ask, x, error, words):
        net = convnet()
        sizes, guard = queried(net), Guard(net, Returns(ArithmeticError("asked")), threshold=0.4)
        with pytest.raises(error, match=words):
            getattr(guard, ask)(x)
        assert sizes == []
        assert guard.counts() == {"requests": 0, "alarms": 0}

    @ASK
    def test_the_bounds_are_those_of_the_model(self, ask):
        guard = Guard(TorchClassifier(convnet(), bounds=(0, 1000)), Unsure(), threshold=0.4)
        getattr(guard, ask)(1000 * images(3))
        with pytest.raises(ValueError, match=r"model's bounds \[0, 1000\]"):
            getattr(guard, ask)(1001 * torch.ones(1, 1, 6, 6))

    def test_a_defense_inside_the_guard_gets_no_other_pixels(self):
        """It would round pixels of 1,000 to 1, and label a white image."""
        squeezed = defenses.FeatureSqueezing(convnet(), bits=3)
        with pytest.raises(ValueError, match="must lie in the model's bounds"):
            Guard(squeezed, Unsure(), threshold=0.9).predict(1000 * images(3))

    def test_rounding_errors_are_clamped_for_all_and_the_callers_stay(self):
        seen = []

        class Sees:
            reads_inputs = True

            def anomaly_score(self, x, labels):
                seen.append(x)
                return torch.ones(len(x))

        def on_alarm(alarm):
            seen.append(alarm.x)
            return alarm.labels

        net = Identity()
        net.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        x = torch.tensor([[1 + 1e-6, -1e-6]])
        before = x.clone()
        Guard(net, Sees(), threshold=0.5, outputs="logits", on_alarm=on_alarm).predict(x)
        assert [found.tolist() for found in seen] == 3 * [[[1.0, 0.0]]]
        assert torch.equal(x, before)

    @ASK
    @pytest.mark.parametrize("bounds", [None, 1.0, (1.0, 0.0)])
    def test_a_model_without_usable_bounds_is_an_error(self, ask, bounds):
        class Custom:
            num_classes = 2

            def scores(self, x):
                raise AssertionError

            predict = scores

        Custom.bounds = bounds
        with pytest.raises((TypeError, ValueError), match="`bounds` must be .*numbers"):
            getattr(Guard(Custom(), Second(), threshold=0.5), ask)(torch.rand(2, 2))

    def test_attacks_through_a_guard_stay_inside(self):
        guard, x = Guard(convnet(), Unsure(), threshold=0.9), images(8)
        attacks.Square(eps=0.9, max_queries=20).run(guard, x)
        attacks.HopSkipJump(max_queries=60).run(guard, x)
        assert guard.requests > len(x)


class TestRequestId:
    def test_an_id_is_made_for_each_request(self):
        guard = Guard(convnet(), Unsure(), threshold=0.4)
        found = {guard.inspect(images(2)).request_id for _ in range(50)}
        assert len(found) == 50
        assert all(re.fullmatch("[0-9a-f]{32}", request_id) for request_id in found)

    def test_the_id_that_is_given_is_kept(self):
        given = []

        def on_alarm(alarm):
            given.append(alarm.request_id)
            return alarm.labels

        guard = Guard(convnet(), Unsure(), threshold=-1.0, on_alarm=on_alarm)
        assert guard.inspect(images(2), request_id="abc").request_id == "abc"
        guard.predict(images(2), request_id="def")
        guard.scores(images(2), request_id="ghi")
        made = guard.inspect(images(2)).request_id
        assert given == ["abc", "def", "ghi", made]

    @ASK
    @pytest.mark.parametrize(
        ("request_id", "error", "words"),
        [
            (7, TypeError, "`request_id` must be a str, got int"),
            (b"id", TypeError, "`request_id` must be a str, got bytes"),
            ("", ValueError, "`request_id` must not be empty"),
        ],
    )
    def test_another_id_is_refused_before_the_model_is_queried(self, ask, request_id, error, words):
        net = convnet()
        sizes, guard = queried(net), Guard(net, Unsure(), threshold=0.4)
        with pytest.raises(error, match=words):
            getattr(guard, ask)(images(2), request_id=request_id)
        assert sizes == []


class OwnClassifier(nn.Module):
    """A module that is a classifier itself, and does not save its state."""

    bounds, num_classes = (0.0, 1.0), 3

    def __init__(self):
        super().__init__()
        self.net = convnet()

    def scores(self, x):
        return self.net(x).softmax(1).detach()

    def predict(self, x):
        return self.scores(x).argmax(1)


class SavesItself(OwnClassifier):
    """A module that is a classifier itself, and saves its state."""

    def evaluating(self):
        return TorchClassifier(self.net).evaluating()

    def scores(self, x):
        with self.evaluating():
            return super().scores(x)


class OwnDetector(nn.Module):
    """A module that is a detector itself."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def anomaly_score(self, outputs):
        return self.drop(torch.from_numpy(outputs)).amax(1).numpy()


REFUSED = {
    "model": lambda part: Guard(part, Unsure(), threshold=0.4, fpr=0.5),
    "counted": lambda part: Guard(QueryCounter(part), Unsure(), threshold=0.4, fpr=0.5),
    "member": lambda part: Guard(Ensemble([convnet(), part], "vote"), Unsure(), threshold=0.4),
}


class TestTrainingMode:
    @pytest.mark.parametrize("kind", REFUSED)
    def test_a_module_that_is_a_classifier_must_be_in_evaluation_mode(self, kind):
        make, own = REFUSED[kind], OwnClassifier()
        words = "`model` must be in evaluation mode, got OwnClassifier in training mode. Call its"
        with pytest.raises(ValueError, match=words):
            make(own.train())
        guard = make(own.eval())
        own.net.drop.train()  # a part is enough
        for ask in (guard.predict, guard.scores, guard.inspect, guard.calibrate):
            with pytest.raises(ValueError, match=words):
                ask(images(8))
        assert own.net.calls == 0
        own.eval()
        assert guard.predict(images(8)).shape == (8,)

    def test_a_module_that_is_a_detector_must_be_in_evaluation_mode(self):
        own = OwnDetector()
        words = "`detector` must be in evaluation mode, got OwnDetector in training mode. Call its"
        with pytest.raises(ValueError, match=words):
            Guard(convnet(), own, threshold=0.4)
        guard = Guard(convnet(), own.eval(), threshold=0.4, fpr=0.5)
        own.train()
        for ask in (guard.predict, guard.scores, guard.inspect, guard.calibrate):
            with pytest.raises(ValueError, match=words):
                ask(images(8))

    def test_a_module_that_saves_its_state_may_be_in_training_mode(self):
        own, x = SavesItself().train(), images(8)
        expected = Guard(convnet(), Unsure(), threshold=0.4).predict(x)
        assert torch.equal(Guard(own, Unsure(), threshold=0.4).predict(x), expected)
        assert own.net.training

    def test_a_torch_classifier_runs_it_in_evaluation_mode(self):
        net, x = convnet().train(), images(8)
        expected = Guard(convnet(), Unsure(), threshold=0.4).inspect(x)
        found = Guard(net, Unsure(), threshold=0.4).inspect(x)
        assert torch.equal(found.labels, expected.labels)
        assert all(part.training for part in net.modules())
        assert net.calls == 0
