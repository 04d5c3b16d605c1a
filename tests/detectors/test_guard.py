"""Labels that a guard returns, requests that it refuses, and its counts."""

import copy
import pickle
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advkit import QueryBudgetExceeded, QueryCounter, TorchClassifier, attacks
from advkit import eval as rob
from advkit.core.norms import lp_norm
from advkit.core.results import InconclusiveWarning
from advkit.detectors.collect import collect
from advkit.detectors.forest import OutputForest
from advkit.detectors.guard import Guard
from advkit.models import REJECTED, evaluating
from tests.detectors.stub_detectors import Identity, Returns, Second, Unsure, unsure
from tests.toys import Halfspace, answers, convnet, images


@pytest.fixture
def x():
    return images(40)


@pytest.fixture
def guard():
    return Guard(convnet(), Unsure(), threshold=0.4)


def test_what_is_above_the_threshold_is_rejected_and_the_rest_answered(guard, x):
    anomaly_score = unsure(x)
    found = guard.inspect(x)
    np.testing.assert_allclose(found.anomaly_score, anomaly_score, rtol=1e-6)
    assert found.anomaly_score.dtype == np.float64
    assert found.alarm.tolist() == (anomaly_score > 0.4).tolist()
    assert 5 < found.alarm.sum() < 35
    assert torch.equal(found.labels, torch.where(found.alarm, REJECTED, answers(convnet(), x)))
    assert found.labels.dtype == torch.int64
    assert torch.equal(guard.predict(x), found.labels)
    assert guard.counts() == {"requests": 80, "alarms": 2 * int(found.alarm.sum())}
    assert (guard.requests, guard.alarms) == (80, 2 * int(found.alarm.sum()))


def test_the_detector_sees_what_outputs_names(x):
    for outputs, seen in (("logits", convnet()(x)), ("scores", convnet()(x).softmax(1))):
        guard = Guard(convnet(), Second(), threshold=0.3, outputs=outputs)
        np.testing.assert_allclose(
            guard.inspect(x).anomaly_score, seen[:, 1].detach(), rtol=1e-5, atol=1e-7
        )


def test_the_model_is_asked_once(guard, x):
    sizes = []
    guard.model.module.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    guard.predict(x)
    guard.scores(x)
    assert sizes == [40, 40]


def test_outputs_of_16_bits_are_judged_in_float32():
    found = []

    class Keeps(Second):
        def anomaly_score(self, outputs):
            found.append(outputs.dtype)
            return super().anomaly_score(outputs)

    Guard(Identity(), Keeps(), threshold=0.5).predict(torch.eye(2).bfloat16() / 2)
    assert found == [np.float32]


@pytest.mark.parametrize(
    ("found", "error", "words"),
    [
        (
            ArithmeticError("no luck"),
            RuntimeError,
            "Returns failed, so no label is returned: no luck",
        ),
        (
            np.full(40, np.nan),
            ValueError,
            r"`Returns` must return finite anomaly scores, got .* \(samples 0, 1",
        ),
        (np.r_[np.zeros(39), np.inf], ValueError, "`Returns` must return finite .*sample 39"),
        (np.r_[-np.inf, np.zeros(39)], ValueError, "sample 0"),
        (np.zeros(39), ValueError, r"shape \(40,\), one for each input, got \(39,\)"),
        (np.zeros((40, 1)), ValueError, r"got \(40, 1\)"),
        (0.0, ValueError, r"got \(\)"),
        (["high"] * 40, TypeError, "`Returns` must return anomaly scores as numbers"),
        (None, TypeError, "`Returns` must return anomaly scores as numbers"),
    ],
)
@pytest.mark.parametrize("ask", ["predict", "scores", "inspect", "calibrate"])
def test_nothing_is_answered_that_was_not_judged(x, ask, found, error, words):
    asked = []
    guard = Guard(convnet(), Returns(found), threshold=0.4, fpr=0.1, on_alarm=asked.append)
    with pytest.raises(error, match=words):
        getattr(guard, ask)(x, **({"batch_size": 40} if ask == "calibrate" else {}))
    assert asked == []
    assert guard.counts() == {"requests": 0, "alarms": 0}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_outputs_that_are_not_finite_are_not_judged(bad):
    class Broken(nn.Module):
        def forward(self, x):
            return torch.where(x > 0.5, bad, x)

    guard = Guard(Broken(), Second(), threshold=0.4, outputs="logits")
    with pytest.raises(ValueError, match=r"finite logits, got NaN or infinity \(sample 1\)"):
        guard.predict(torch.tensor([[0.1, 0.2], [0.9, 0.2]]))


def test_a_model_that_answers_fewer_is_refused():
    class Fewer:
        bounds, num_classes = (0.0, 1.0), 2

        def scores(self, x):
            return x[1:]

        def predict(self, x):
            return x.argmax(1)

    with pytest.raises(
        ValueError, match=r"must return scores of shape \(2, classes\), got \(1, 2\)"
    ):
        Guard(Fewer(), Second(), threshold=0.4).predict(torch.rand(2, 2))


def test_without_a_threshold_nothing_is_asked(x):
    sizes, net = [], convnet()
    net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    guard = Guard(net, Unsure())
    for ask in (guard.predict, guard.scores, guard.inspect):
        with pytest.raises(ValueError, match="`threshold` must be set .*calibrate"):
            ask(x)
    with pytest.raises(ValueError, match="`threshold` must be set"):
        guard.threshold  # noqa: B018
    assert sizes == []
    assert guard.counts() == {"requests": 0, "alarms": 0}


def test_an_empty_request_needs_no_detector():
    guard = Guard(convnet(), Returns(ArithmeticError()), threshold=0.4)
    found = guard.inspect(images(0))
    assert found.labels.shape == found.alarm.shape == found.anomaly_score.shape == (0,)
    assert found.labels.dtype == torch.int64
    assert guard.scores(images(0)).shape == (0, 3)


@settings(deadline=None, max_examples=150)
@given(
    levels=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    fpr=st.one_of(st.floats(0.001, 0.999), st.integers(1, 99).map(lambda k: k / 100)),
)
def test_calibration_is_the_least_threshold_that_few_enough_exceed(levels, fpr):
    values = np.array(levels) / 16  # with ties
    n = len(values)
    guard = Guard(Identity(), Second(), fpr=fpr, outputs="logits")
    x = torch.from_numpy(np.stack([np.zeros(n), values], 1))
    if 1 / n > fpr:
        with pytest.raises(ValueError, match=f"inputs for fpr=.*, got {n}"):
            guard.calibrate(x)
        return
    threshold = guard.calibrate(x, batch_size=7).threshold
    assert (values > threshold).sum() / n <= fpr
    lower = values[values < threshold]
    if len(lower):  # the next lower one would let too many alarm
        assert (values > lower.max()).sum() / n > fpr
    assert threshold in values
    assert guard.counts() == {"requests": 0, "alarms": 0}


def test_too_few_inputs_say_how_many_are_wanted():
    guard = Guard(Identity(), Second(), outputs="logits")
    with pytest.raises(ValueError, match=r"at least 100 inputs for fpr=0.01, got 99"):
        guard.calibrate(torch.zeros(99, 2))
    guard.calibrate(torch.zeros(100, 2))
    assert guard.threshold == 0
    with pytest.raises(ValueError, match="at least 20 inputs for fpr=0.05, got 0"):
        Guard(Identity(), Second(), fpr=0.05).calibrate(torch.zeros(0, 2))
    with pytest.raises(ValueError, match="`x` must lie in the model's bounds"):
        guard.calibrate(torch.full((100, 2), 2.0))


@pytest.mark.parametrize("fpr", [0, 1, 1.5, -0.1, float("nan")])
def test_a_false_positive_rate_is_a_share_between_0_and_1(fpr):
    with pytest.raises(ValueError, match="`fpr` must lie"):
        Guard(Identity(), Second(), fpr=fpr)
    with pytest.raises(TypeError, match="`fpr` must be a number"):
        Guard(Identity(), Second(), fpr="1 %")


def test_a_guard_shows_its_rate_until_it_has_a_threshold():
    guard = Guard(Identity(), Second(), fpr=0.05, outputs="logits")
    assert "fpr=0.05, on_alarm='reject')" in repr(guard)
    assert "fpr" not in repr(guard.calibrate(torch.zeros(20, 2)))
    assert "threshold=0.0, on_alarm='reject')" in repr(guard)


def test_a_failed_calibration_leaves_the_threshold_as_it_was(x):
    guard = Guard(convnet(), Returns(np.zeros(3)), threshold=0.25, fpr=0.5)
    with pytest.raises(ValueError, match="one for each input"):
        guard.calibrate(x)
    assert guard.threshold == 0.25


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))]
)
def test_a_copy_keeps_the_settings_and_counts_from_zero(tmp_path, x, copied):
    log = tmp_path / "log"
    guard = Guard(convnet(), Unsure(), fpr=0.2, on_alarm="flag", outputs="logits", log=log)
    assert repr(copied(guard)).endswith("fpr=0.2, on_alarm='flag')")
    guard.calibrate(x)
    guard.predict(x)
    other = copied(guard)
    assert other.fpr == 0.2
    assert other.threshold == guard.threshold
    assert repr(other)[:40] == repr(guard)[:40]
    assert other.counts() == {"requests": 0, "alarms": 0}
    assert torch.equal(other.inspect(x).alarm, guard.inspect(x).alarm)
    assert guard.requests == 80
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == guard.alarms + other.alarms == 3 * other.alarms


def test_a_guard_is_a_classifier(x):
    net = convnet().train()
    guard = Guard(TorchClassifier(net, bounds=(-1, 2)), Unsure(), threshold=0.4)
    assert guard.bounds == (-1, 2)
    with pytest.raises(ValueError, match="`num_classes` must be given to be known"):
        guard.num_classes  # noqa: B018
    guard.predict(x)
    assert guard.num_classes == 3
    with evaluating(guard):
        assert not net.training
    assert net.training
    assert net.calls == 0
    assert "Guard(TorchClassifier(ConvNet" in repr(guard)
    assert not hasattr(guard, "logits")


def test_it_needs_no_torch_module(x):
    class Table:
        bounds, num_classes = (0.0, 1.0), 2

        def scores(self, x):
            return x.double()

        def predict(self, x):
            raise AssertionError

    rows = torch.tensor([[0.2, 0.8], [0.9, 0.3]])
    assert Guard(Table(), Second(), threshold=0.5).predict(rows).tolist() == [REJECTED, 0]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda net: Guard(net, 3, threshold=0.4),
            TypeError,
            "`detector` must have a method anomaly_score",
        ),
        (
            lambda net: Guard(net, Unsure, threshold=0.4),
            TypeError,
            "`detector` must have a method anomaly_score",
        ),
        (lambda net: Guard(3, Unsure(), threshold=0.4), TypeError, "`model` must be"),
        (
            lambda net: Guard(net, Unsure(), threshold="high"),
            TypeError,
            "`threshold` must be a number",
        ),
        (lambda net: Guard(net, Unsure(), threshold=float("nan")), ValueError, "finite, got nan"),
        (
            lambda net: Guard(net, Unsure(), threshold=float("inf")),
            ValueError,
            "`threshold` must be finite",
        ),
        (
            lambda net: Guard(net, Unsure(), on_alarm="ignore"),
            ValueError,
            "`on_alarm` must be one of",
        ),
        (
            lambda net: Guard(net, Unsure(), threshold=0.4, outputs="both"),
            ValueError,
            "`outputs` must be one",
        ),
        (
            lambda net: Guard(net, Unsure(), threshold=0.4, log=3),
            TypeError,
            "`log` must be a path or have",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make(convnet())


class TestDetectorsThatAreRefused:
    def test_one_of_inputs_that_does_not_say_so(self):
        class Forgot:
            def anomaly_score(self, x, labels):
                raise AssertionError

        class Optional:
            def anomaly_score(self, x, labels=None):
                raise AssertionError

        for detector in (Forgot(), Optional()):
            words = r"must have anomaly_score\(outputs\), got .*Set `reads_inputs = True`"
            with pytest.raises(TypeError, match=words):
                Guard(convnet(), detector, threshold=0.4)

    def test_one_of_outputs_that_claims_to_read_inputs(self):
        class Claims(Unsure):
            reads_inputs = True

        words = r"must have anomaly_score\(x, labels\), got .*Set `reads_inputs = False`"
        with pytest.raises(TypeError, match=words):
            Guard(convnet(), Claims(), threshold=0.4)

    def test_a_method_without_a_signature_is_accepted(self):
        class Compiled:
            anomaly_score = staticmethod(max)  # inspect.signature raises ValueError

        Guard(convnet(), Compiled(), threshold=0.4)


def test_a_model_without_the_outputs_is_refused(x, guard):
    class Labels:
        bounds, num_classes = (0.0, 1.0), 3

        def predict(self, x):
            raise AssertionError

    for outputs in ("logits", "scores"):
        with pytest.raises(TypeError, match=rf"`model` must have {outputs}\(x\)"):
            Guard(Labels(), Unsure(), threshold=0.4, outputs=outputs)
    with pytest.raises(TypeError, match="`x` must be a torch.Tensor"):
        guard.predict(x.numpy())


def test_scores_say_what_predict_says(x, guard):
    labels, scores = guard.predict(x), guard.scores(x)
    rejected = labels == REJECTED
    assert 0 < rejected.sum() < 40
    assert (scores[rejected] == -torch.inf).all()
    torch.testing.assert_close(scores[~rejected], convnet()(x[~rejected]).softmax(1).detach())
    assert torch.equal(scores[~rejected].argmax(1), labels[~rejected])

    def route(alarm):
        return torch.where(alarm.rows % 2 == 0, (alarm.labels + 1) % 3, REJECTED)

    routed = Guard(convnet(), Unsure(), threshold=0.4, on_alarm=route)
    labels, seen = routed.predict(x), routed.scores(x)
    again = rejected & (labels != REJECTED)
    assert again.any()
    assert torch.equal(seen[again], nn.functional.one_hot(labels[again], 3).float())
    assert (seen[labels == REJECTED] == -torch.inf).all()
    torch.testing.assert_close(seen[~rejected], scores[~rejected])


# Two classes on either side of x_0 = 1/2; the guard rejects a strip beyond it and sees no further
# than the logits, whose second one is x_0 - 1/2.


def strip(low=0.0, high=0.2, **settings):
    """A half-space whose guard rejects logits between `low` and `high`."""

    class Strip:
        def anomaly_score(self, outputs):
            return ((outputs[:, 1] > low) & (outputs[:, 1] < high)).astype(float)

    w = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    return Guard(Halfspace(w, b=-0.5), Strip(), threshold=0.5, outputs="logits", **settings)


def near(n=20):
    """Points at distances up to 0.1 from the plane, on the side of class 0."""
    x = torch.rand(n, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x[:, 0] = 0.5 - 0.1 * torch.linspace(0.01, 1, n, dtype=torch.float64)
    return x


@pytest.mark.parametrize("eps", [0.15, 0.35])
def test_square_succeeds_only_where_the_guard_answers_wrongly(eps):
    guard, x, y = strip(), near(), torch.zeros(20, dtype=torch.int64)
    result = attacks.Square(eps=eps, max_queries=60).run(guard, x, y)
    x_adv = result.x_adv
    assert torch.equal(result.success, strip().predict(x_adv) == 1)
    within = x[:, 0] + eps >= 0.7  # beyond the strip
    assert torch.equal(result.success, within)
    assert guard.alarms > 0 or eps == 0.35  # which jumps over the strip
    assert guard.requests == int(result.queries.forward.sum())
    alone = attacks.Square(eps=eps, max_queries=60).run(guard.model, x, y)
    assert alone.success.all()


def test_square_says_nothing_of_a_rejection_that_it_ends_at():
    """Everything on the other side is rejected: there is nothing to find, whatever the budget."""
    result = attacks.Square(eps=0.9, max_queries=60).run(strip(high=9), near(), torch.zeros(20))
    assert not result.success.any()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_hopskipjump_walks_along_the_far_side_of_what_is_rejected(norm):
    guard, x, y = strip(), near(), torch.zeros(20, dtype=torch.int64)
    result = attacks.HopSkipJump(norm=norm, max_queries=400, init_gradient_queries=30).run(
        guard, x, y
    )
    assert result.success.all()
    assert (strip().predict(result.x_adv) == 1).all()
    least = 0.7 - x[:, 0]  # to the far side of the strip
    assert (result.distance >= least - 1e-9).all()
    assert (result.distance <= 1.3 * least + 0.02).all()
    torch.testing.assert_close(result.distance, lp_norm(result.x_adv - x, norm))
    assert guard.requests == int(result.queries.forward.sum())


def test_hopskipjump_finds_nothing_behind_a_guard_that_rejects_all_of_it():
    with pytest.warns(InconclusiveWarning, match="could not begin for 20 of 20 samples"):
        result = attacks.HopSkipJump(max_queries=150).run(strip(high=9), near(), torch.zeros(20))
    assert result.no_start.all()
    assert not result.success.any()
    assert torch.equal(result.x_adv, near())


def test_rejected_inputs_need_labels_and_are_attacked_all_the_same():
    x = near(4)
    x[:, 0] = torch.tensor([0.6, 0.9, 0.3, 0.61], dtype=torch.float64)  # 0 and 3 are rejected
    y = torch.tensor([1, 1, 0, 1])
    for attack in (attacks.Square(eps=0.3, max_queries=60), attacks.HopSkipJump(max_queries=200)):
        with pytest.raises(ValueError, match=r"that the model rejects, got None \(samples 0, 3\)"):
            attack.run(strip(), x)
        result = attack.run(strip(), x, y)
        assert result.success.tolist()[0] is True
        assert torch.equal(result.success, strip().predict(result.x_adv) == 1 - y)


def test_an_evaluation_counts_rejected_clean_inputs_as_errors(x):
    y = answers(convnet(), x)
    guard = Guard(convnet(), Unsure(), threshold=0.4)
    report = rob.evaluate(guard, x, y, attacks=[attacks.Square(eps=0.05, max_queries=20)])
    assert torch.equal(report.clean, torch.from_numpy(unsure(x) <= 0.4))
    robust = report.outcomes[0].robust_accuracy
    assert robust.count <= int(report.clean.sum())


def test_a_forest_guards(tmp_path, x):
    table = collect({"net": convnet()}, [attacks.PGD(eps=0.2, steps=5)], x, answers(convnet(), x))
    forest = OutputForest(n_estimators=20, random_state=0)
    with pytest.raises(RuntimeError, match="OutputForest failed.*not fitted"):
        Guard(convnet(), forest, threshold=0.5).predict(x)
    forest.fit(table.outputs, table.attack)
    guard = Guard(convnet(), forest, fpr=0.1, log=tmp_path / "log")
    guard.calibrate(images(60, seed=4))
    anomaly_score = forest.anomaly_score(table.outputs)
    clean = ~table.adversarial
    found = pickle.loads(pickle.dumps(guard)).inspect(x)
    np.testing.assert_array_equal(found.anomaly_score, anomaly_score[clean])
    np.testing.assert_array_equal(found.alarm, anomaly_score[clean] > guard.threshold)
    with pytest.raises(RuntimeError, match="OutputForest failed"):
        Guard(convnet(classes=5), forest, threshold=0.5).predict(x)


def test_a_gradient_attack_is_told_what_to_do(guard, x):
    with pytest.raises(TypeError, match="Guard, a ScoreClassifier.*Square"):
        attacks.PGD(eps=0.1).run(guard, x)


def test_the_model_is_held_once_while_the_guard_is_calibrated():
    class Held:
        bounds, num_classes = (0.0, 1.0), 2
        times = 0

        @contextmanager
        def evaluating(self):
            self.times += 1
            yield

        def scores(self, x):
            return x

        def predict(self, x):
            raise AssertionError

    model = Held()
    Guard(model, Second(), fpr=0.1).calibrate(torch.rand(40, 2), batch_size=8)
    assert model.times == 1


def test_a_counted_model_is_asked_once_for_each_input(x):
    counter = QueryCounter(convnet())
    Guard(counter, Unsure(), fpr=0.1).calibrate(x, batch_size=16).predict(x)
    assert counter.forward == 80


def test_what_square_found_when_the_models_budget_ends_is_not_lost(x):
    counter = QueryCounter(convnet(), max_queries=len(x) + 4)
    guard = Guard(counter, Unsure(), threshold=1.0)
    y = TorchClassifier(convnet()).predict(x)
    assert guard.max_queries == len(x) + 4
    assert Guard(convnet(), Unsure(), threshold=1.0).max_queries is None
    with pytest.raises(QueryBudgetExceeded) as ended:
        attacks.Square(eps=0.1, max_queries=50).run(guard, x, y)
    assert int(ended.value.result.queries.forward.sum()) == counter.forward


class Bright:
    """A detector of inputs: the share of the range that the mean takes, and what it was shown."""

    threshold = 0.5

    def __init__(self):
        self.shown = []

    reads_inputs = True

    def anomaly_score(self, x, labels=None):
        self.shown.append((x, labels))
        return x.flatten(1).mean(1)


class TestDetectorOfInputs:
    def test_it_sees_the_inputs_and_the_labels_of_the_same_pass(self, x):
        net, detector = convnet(), Bright()
        counter = QueryCounter(net)
        x = torch.cat([0 * x[:2] + 0.4, 0 * x[:2] + 0.6])
        verdict = Guard(counter, detector).inspect(x)
        assert verdict.alarm.tolist() == [False, False, True, True]
        assert verdict.labels.tolist()[2:] == [-1, -1]
        np.testing.assert_allclose(verdict.anomaly_score, [0.4, 0.4, 0.6, 0.6], rtol=1e-6)
        ((seen, labels),) = detector.shown
        assert torch.equal(seen, x)
        assert torch.equal(labels, answers(net, x))
        assert counter.forward == len(x)

    def test_its_own_threshold_stands_unless_another_is_given(self, x):
        assert Guard(convnet(), Bright()).threshold == 0.5
        assert Guard(convnet(), Bright(), threshold=0.9).threshold == 0.9

    def test_it_can_be_calibrated(self, x):
        x = torch.linspace(0, 1, 100)[:, None, None, None].expand(-1, *x.shape[1:])
        guard = Guard(convnet(), Bright(), fpr=0.1).calibrate(x)
        assert guard.inspect(x).alarm.sum() == 10

    def test_a_score_that_is_not_finite_is_refused(self, x):
        class Lost(Bright):
            reads_inputs = True

            def anomaly_score(self, x, labels=None):
                return torch.full((len(x),), torch.nan)

        with pytest.raises(ValueError, match="`Lost` must return finite anomaly scores.*samples 0"):
            Guard(convnet(), Lost()).predict(x)
