"""One pass through a model: its clean batch, its errors, its gradients and its formats."""

import pytest
import torch

from advkit import TorchClassifier, attacks
from advkit.attacks.engine.records import Best, Nearest
from tests.toys import Halfspace


@pytest.mark.parametrize("empty", [Best.unevaluated, Nearest.empty])
def test_misclassified_inputs_are_successes_at_distance_zero(empty):
    plane = Halfspace(torch.ones(1, dtype=torch.float64), b=-3.0)
    x, y = torch.tensor([[5.0], [1.0]], dtype=torch.float64), torch.tensor([0, 0])
    problem = attacks.FAB()._problem(TorchClassifier(plane, bounds=(0, 9)), x, y, None)
    record = empty(problem.x)
    at = problem.evaluate_clean(record)
    assert at.success.tolist() == record.success.tolist() == [True, False]
    assert record.violation[0] == at.violation[0] < 0
    assert record.violation[1] == torch.inf
    if isinstance(record, Nearest):
        assert record.distance.tolist() == [0.0, torch.inf]


def test_nan_is_named_by_its_sample_beside_a_rejection():
    class Rejecting(torch.nn.Module):
        def forward(self, x):
            return x + torch.tensor([[-torch.inf], [0.0], [torch.nan]])

    x, y = torch.zeros(3, 2), torch.tensor([0, 0, 0])
    problem = attacks.FAB()._problem(TorchClassifier(Rejecting()), x, y, None)
    with pytest.raises(ValueError, match="sample 2"):
        problem.forward(x, differentiate=False, first=True)


def test_gradients_that_are_zero_are_noted_and_others_made_finite():
    x, y = torch.zeros(4, 2), torch.tensor([0, 0, 0, 0])
    problem = attacks.FAB()._problem(TorchClassifier(Halfspace(torch.ones(2))), x, y, None)
    grad = torch.tensor([[1.0, 2.0], [0.0, 0.0], [torch.inf, 1.0], [torch.nan, 1.0]])
    assert problem.mask_invalid(grad).tolist() == [[1.0, 2.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
    assert problem.statistics.no_gradient.tolist() == [False, True, False, False]


class Roots(torch.nn.Module):
    """Two logits `(0, sum of w * sqrt(x) + b)`: the slope at a feature of 0 is infinite."""

    def __init__(self, w, b):
        super().__init__()
        self.w, self.b = w, b

    def forward(self, x):
        z = x.sqrt().flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(z), z], 1)


def test_infinite_entries_of_a_gradient_keep_their_sign():
    x = torch.tensor([[0.0, 0.25, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    model = TorchClassifier(Roots(torch.tensor([1.0, 1.0, -4.0, -1.0]), -9.0))
    problem = attacks.FAB()._problem(model, x, torch.tensor([0, 0, 0]), None)
    at = problem.forward(x, differentiate=True)
    assert problem.ascent_direction(at).tolist() == [
        [2.0, 1.0, -2.0, -2.0],
        [1.0, 1.0, -1.0, -1.0],
        [0.5, 0.5, -2.0, -0.5],
    ]
    assert not problem.statistics.no_gradient.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_fgsm_climbs_from_infinite_slopes_by_the_closed_form(dtype):
    w = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=dtype)
    x = torch.zeros(1, 4, dtype=dtype)
    gain = 3.5 * 0.25**0.5  # of all positive weights at eps, from zero
    for b, succeeds in ((-0.99 * gain, True), (-1.01 * gain, False)):
        model = TorchClassifier(Roots(w, b))
        result = attacks.FGSM(eps=0.25, loss="margin").run(model, x, torch.tensor([0]))
        assert result.x_adv.tolist() == [[0.25, 0.25, 0.0, 0.25]]
        assert result.success.tolist() == [succeeds]
        assert not result.no_gradient.any()


def test_iterates_are_stored_as_the_inputs_are():
    x = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    plane = TorchClassifier(Halfspace(torch.ones(48)))
    problem = attacks.FAB()._problem(plane, x, torch.tensor([0, 0]), None)
    moved = problem.clip(x.contiguous() + 0.1)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert not moved.is_contiguous()
