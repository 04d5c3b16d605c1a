"""Anomaly scores: numbers of any kind, computed without a graph."""

import numpy as np
import pytest
import torch

from advkit.detectors.anomaly_score import anomaly_score_of, checked_anomaly_score


class Returns:
    """A detector of outputs with given scores."""

    def __init__(self, found):
        self.found = found

    def anomaly_score(self, outputs):
        return self.found


class WithoutGraph:
    """A detector of inputs that fails where gradients are on."""

    reads_inputs = True

    def anomaly_score(self, x, labels):
        assert not torch.is_grad_enabled()
        return x.sum(1) + labels


OUTPUTS, X = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.5, 1.0], [2.0, 0.25]])
LABELS = torch.tensor([1, 0])


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float16])
def test_numbers_of_any_kind_become_float64(kind):
    found = anomaly_score_of(Returns(np.array([3, 0], dtype=kind)), OUTPUTS, LABELS, X)
    assert found.dtype == np.float64
    assert found.tolist() == [3.0, 0.0]


def test_booleans_are_refused():
    with pytest.raises(
        TypeError, match="`Returns` must return anomaly scores as numbers, got bool"
    ):
        anomaly_score_of(Returns(np.array([True, False])), OUTPUTS, LABELS, X)


def test_a_detector_of_inputs_gets_labels_and_builds_no_graph():
    assert anomaly_score_of(WithoutGraph(), OUTPUTS, LABELS, X).tolist() == [2.5, 2.25]


@pytest.mark.parametrize(
    ("found", "error", "words"),
    [
        (np.ma.array([0.1, 0.2], mask=[False, True]), ValueError, "must not hold masked values"),
        (np.array([0.1, None]), TypeError, "got object"),
        (np.array([1j, 0]), TypeError, "got complex128"),
        (np.array(["1", "0"]), TypeError, "got <U1"),
        (np.array(0.5), ValueError, r"got \(\)"),
        (np.zeros((2, 1)), ValueError, r"got \(2, 1\)"),
        (-np.array([1, np.finfo(np.longdouble).max]), ValueError, "sample 1"),
    ],
)
def test_what_is_not_one_finite_number_for_each_input_is_refused(found, error, words):
    with pytest.raises(error, match=words):
        checked_anomaly_score("Returns", found, 2)


def test_a_masked_array_that_hides_nothing_is_taken():
    found = np.ma.array([0.5, 1.5], mask=[False, False])
    assert checked_anomaly_score("Returns", found, 2).tolist() == [0.5, 1.5]


def test_the_anomaly_score_is_a_copy():
    found = np.array([0.5, 1.5])
    anomaly_score = checked_anomaly_score("Returns", found, 2)
    found[:] = 9
    assert anomaly_score.tolist() == [0.5, 1.5]


class Writes:
    """A detector that overwrites what it is given."""

    def anomaly_score(self, outputs):
        outputs[:] = 7
        return outputs[:, 0]


class WritesInputs:
    """A detector of inputs that overwrites what it is given."""

    reads_inputs = True

    def anomaly_score(self, x, labels):
        x.fill_(7)
        labels.fill_(1)
        return x[:, 0]


@pytest.mark.parametrize("detector", [Writes(), WritesInputs()])
def test_a_detector_may_write_to_what_it_gets(detector):
    given = OUTPUTS.clone(), LABELS.clone(), X.clone()
    assert anomaly_score_of(detector, *given).tolist() == [7, 7]
    assert all(map(torch.equal, given, (OUTPUTS, LABELS, X)))
