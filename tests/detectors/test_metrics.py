"""Metrics of a guard as text, read by a parser of the exposition format 0.0.4."""

import math

import pytest
import torch

from advkit.detectors.guard import Guard
from tests.detectors.exposition import parse
from tests.detectors.stub_detectors import Identity, Returns, Second

X = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.6]])


def values(guard):
    return {name: value for name, (_, _, value) in parse(guard.metrics()).items()}


@pytest.fixture
def guard():
    return Guard(Identity(), Second(), threshold=0.5, outputs="logits")


def test_counters_count_inputs_alarms_and_calls_that_raised(guard):
    assert parse(guard.metrics()) == {
        "advkit_guard_requests_total": ("counter", {}, 0),
        "advkit_guard_alarms_total": ("counter", {}, 0),
        "advkit_guard_failures_total": ("counter", {}, 0),
        "advkit_guard_threshold": ("gauge", {}, 0.5),
    }
    guard.predict(X)
    guard.scores(X[:2])
    for bad in (1000 * X, X.long()):
        with pytest.raises((ValueError, TypeError)):
            guard.inspect(bad)
    assert values(guard) == {
        "advkit_guard_requests_total": 5,
        "advkit_guard_alarms_total": 3,
        "advkit_guard_failures_total": 2,
        "advkit_guard_threshold": 0.5,
    }


@pytest.mark.parametrize(
    ("settings", "counted"),
    [
        ({"detector": Returns(ArithmeticError("no luck"))}, 0),
        ({"on_alarm": lambda alarm: None}, 3),
        ({"log": Returns}, 3),
    ],
)
@pytest.mark.parametrize("ask", ["predict", "scores", "inspect"])
def test_every_call_without_an_answer_is_a_failure(settings, counted, ask):
    class Full:
        def write(self, text):
            raise OSError("full")

    settings = {"detector": Second(), "outputs": "logits", **settings}
    if "log" in settings:
        settings["log"] = Full()
    guard = Guard(Identity(), threshold=0.5, **settings)
    with pytest.raises((RuntimeError, TypeError, OSError)):
        getattr(guard, ask)(X)
    assert values(guard)["advkit_guard_failures_total"] == 1
    assert values(guard)["advkit_guard_requests_total"] == counted


def test_an_interrupt_is_a_failure_too():
    class Stops:
        def anomaly_score(self, outputs):
            raise KeyboardInterrupt

    guard = Guard(Identity(), Stops(), threshold=0.5)
    with pytest.raises(KeyboardInterrupt):
        guard.predict(X)
    assert values(guard)["advkit_guard_failures_total"] == 1


def test_the_threshold_is_nan_until_it_is_set():
    guard = Guard(Identity(), Second(), outputs="logits", fpr=0.5)
    assert math.isnan(values(guard)["advkit_guard_threshold"])
    with pytest.raises(ValueError, match="must be set"):
        guard.predict(X)
    assert values(guard)["advkit_guard_failures_total"] == 1
    guard.calibrate(X)
    assert values(guard)["advkit_guard_threshold"] == guard.threshold


@pytest.mark.parametrize("threshold", [0.1, -1e-12, 1e300, 3, 0.1 + 0.2])
def test_a_threshold_of_any_size_can_be_read_back(threshold):
    found = values(Guard(Identity(), Second(), threshold=threshold))
    assert found["advkit_guard_threshold"] == threshold


def test_labels_stand_at_each_number(guard):
    labels = {"model": 'a "net" \\ of\nlines, {x}', "_2": ""}
    found = parse(guard.metrics(labels))
    assert [pairs for _, pairs, _ in found.values()] == 4 * [labels]
    assert parse(guard.metrics({})) == parse(guard.metrics())


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        ({"2": "a"}, ValueError, "must have names of letters, digits and underscores, got '2'"),
        ({"a-b": "a"}, ValueError, "got 'a-b'"),
        ({"": "a"}, ValueError, "got ''"),
        ({"a\n": "a"}, ValueError, "got 'a.n'"),
        ({"__a": "a"}, ValueError, "got '__a'"),
        ({"ä": "a"}, ValueError, "got 'ä'"),
        ({"a": 1}, TypeError, "`labels` must be a dict of strings, got 'a': 1"),
        ({1: "a"}, TypeError, "`labels` must be a dict of strings"),
        ("a", TypeError, "`labels` must be a dict of strings, got str"),
    ],
)
def test_labels_that_prometheus_refuses(guard, labels, error, words):
    with pytest.raises(error, match=words):
        guard.metrics(labels)


def test_the_client_of_prometheus_reads_it(guard):
    parser = pytest.importorskip("prometheus_client.parser", reason="needs prometheus_client")
    guard.predict(X)
    labels = {"model": 'a "net" \\ of\nlines'}
    families = list(parser.text_string_to_metric_families(guard.metrics(labels)))
    found = {
        sample.name: (family.type, sample.labels, sample.value)
        for family in families
        for sample in family.samples
    }
    assert found == parse(guard.metrics(labels))
