"""Suspicion: numbers of any kind, computed without a graph."""

import numpy as np
import pytest
import torch

from advkit.detectors.suspicion import suspicion_of


class Answers:
    """A detector of outputs with given answers."""

    def __init__(self, found):
        self.found = found

    def suspicion(self, outputs):
        return self.found


class WithoutGraph:
    """A detector of inputs that fails where gradients are on."""

    def risk(self, x, labels):
        assert not torch.is_grad_enabled()
        return x.sum(1) + labels


OUTPUTS, X = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.5, 1.0], [2.0, 0.25]])


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float16])
def test_numbers_of_any_kind_become_float64(kind):
    found = suspicion_of(Answers(np.array([3, 0], dtype=kind)), OUTPUTS, X)
    assert found.dtype == np.float64
    assert found.tolist() == [3.0, 0.0]


def test_booleans_are_refused():
    with pytest.raises(TypeError, match="Answers must give suspicion as numbers, gave bool"):
        suspicion_of(Answers(np.array([True, False])), OUTPUTS, X)


def test_a_detector_of_inputs_gets_labels_and_builds_no_graph():
    assert suspicion_of(WithoutGraph(), OUTPUTS, X).tolist() == [2.5, 2.25]
