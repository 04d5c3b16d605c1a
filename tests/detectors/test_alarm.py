"""Inputs that raise an alarm, and the labels that are returned for them."""

import numpy as np
import pytest
import torch

from advkit.detectors.alarm import raise_alarm
from advkit.detectors.guard import Guard
from advkit.models import REJECTED
from tests.detectors.stub_detectors import Identity, Second, Unsure
from tests.toys import answers, convnet, images


@pytest.fixture
def x():
    return images(40)


def test_a_score_at_the_threshold_raises_no_alarm():
    rows = torch.tensor([[0.0, 0.5], [0.0, 0.5001], [0.0, 0.4999]])
    guard = Guard(Identity(), Second(), threshold=0.5, outputs="logits")
    assert guard.inspect(rows).alarm.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("anomaly_score", "threshold"), [([0.1, 0.9], np.nan), ([np.nan, np.nan], 0.5)]
)
def test_what_cannot_be_compared_is_an_alarm(anomaly_score, threshold):
    rows = torch.eye(2)
    raised, alarm = raise_alarm(
        rows, rows, rows.argmax(1), np.array(anomaly_score), threshold, "id"
    )
    assert raised.tolist() == [True, True]
    assert alarm.rows.tolist() == [0, 1]


def test_a_flag_changes_no_answer(x):
    guard = Guard(convnet(), Unsure(), threshold=0.4, on_alarm="flag")
    found = guard.inspect(x)
    assert torch.equal(found.labels, answers(convnet(), x))
    assert found.alarm.any()
    assert guard.alarms == int(found.alarm.sum())
    torch.testing.assert_close(guard.scores(x), convnet()(x).softmax(1).detach())


def test_a_function_answers_to_alarms_by_another_model(x):
    given = []

    def route(alarm):
        given.append(alarm)
        return 2 - alarm.labels

    guard = Guard(convnet(), Unsure(), threshold=0.4, on_alarm=route)
    found = guard.inspect(x)
    (alarm,) = given
    rows, y = found.alarm.nonzero().flatten(), answers(convnet(), x)
    assert torch.equal(alarm.rows, rows)
    assert torch.equal(alarm.x, x[rows])
    assert torch.equal(alarm.labels, y[rows])
    torch.testing.assert_close(alarm.outputs, convnet()(x[rows]).softmax(1).detach())
    np.testing.assert_array_equal(alarm.anomaly_score, found.anomaly_score[found.alarm.numpy()])
    assert torch.equal(found.labels, torch.where(found.alarm, 2 - y, y))
    quiet = x[~found.alarm]
    guard.predict(quiet)
    assert len(given) == 1


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (lambda a: a.labels.tolist(), TypeError, "int64 tensor, got list"),
        (lambda a: a.labels.float(), TypeError, "got torch.float32"),
        (lambda a: a.labels[1:], ValueError, "`on_alarm` must return labels"),
        (lambda a: a.labels[:, None], ValueError, "`on_alarm` must return labels"),
        (lambda a: a.labels + 3, ValueError, "labels from 0 to 2 or -1, got"),
        (lambda a: torch.full_like(a.labels, -2), ValueError, "0 to 2 or -1, got -2 .sample"),
        (lambda a: torch.full_like(a.labels, 3), ValueError, "0 to 2 or -1, got 3 .sample"),
    ],
)
def test_what_on_alarm_gives_is_checked(x, answer, error, words):
    guard = Guard(convnet(), Unsure(), threshold=0.4, on_alarm=answer)
    with pytest.raises(error, match=words):
        guard.predict(x)


def test_an_error_names_the_sample_of_the_request():
    rows = torch.tensor([[0.0, 0.1], [0.0, 0.2], [0.0, 0.9]])
    guard = Guard(
        Identity(), Second(), threshold=0.5, on_alarm=lambda a: a.labels + 9, outputs="logits"
    )
    with pytest.raises(ValueError, match=r"got 10 \(sample 2\)\.$"):
        guard.predict(rows)


def test_on_alarm_may_reject(x):
    route = Guard(
        convnet(), Unsure(), threshold=0.4, on_alarm=lambda a: torch.full_like(a.labels, REJECTED)
    )
    assert torch.equal(route.predict(x), Guard(convnet(), Unsure(), threshold=0.4).predict(x))
