"""The evaluation of the clean batch."""

import pytest
import torch

from advkit import TorchClassifier, attacks
from advkit.attacks.engine.records import Best, Nearest
from tests.toys import Halfspace


@pytest.mark.parametrize("empty", [Best.unjudged, Nearest.empty])
def test_misclassified_inputs_are_successes_at_distance_zero(empty):
    plane = Halfspace(torch.ones(1, dtype=torch.float64), b=-3.0)
    x, y = torch.tensor([[5.0], [1.0]], dtype=torch.float64), torch.tensor([0, 0])
    problem = attacks.FAB()._problem(TorchClassifier(plane, bounds=(0, 9)), x, y, None)
    record = empty(problem.x)
    at = problem.evaluate_clean(record)
    assert at.success.tolist() == record.success.tolist() == [True, False]
    assert record.shortfall[0] == at.shortfall[0] < 0
    assert record.shortfall[1] == torch.inf
    if isinstance(record, Nearest):
        assert record.distance.tolist() == [0.0, torch.inf]
