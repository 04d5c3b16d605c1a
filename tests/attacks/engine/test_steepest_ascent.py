"""Steps that the dtype of the inputs rounds away, and starts outside the ball."""

import dataclasses

import pytest
import torch

from advkit import InconclusiveWarning, QueryBudgetExceeded, attacks
from advkit.core.norms import lp_norm
from advkit.models import QueryCounter, TorchClassifier
from tests.toys import Halfspace

LOST = {torch.float16: 1e-4, torch.bfloat16: 1e-3, torch.float32: 1e-8, torch.float64: 1e-17}


@pytest.mark.parametrize("dtype", LOST)
@pytest.mark.parametrize("attack", [attacks.PGD(eps=0.1, random_start=False), attacks.BIM(eps=0.1)])
def test_steps_that_are_rounded_away_are_reported(attack, dtype):
    plane = Halfspace(torch.ones(4, dtype=dtype), b=-3.1)
    x, y = torch.full((2, 4), 0.75, dtype=dtype), torch.tensor([0, 0])
    x[1] = 0  # where every step counts
    lost = dataclasses.replace(attack, step_size=LOST[dtype], stop="never")
    message = r"`step_size` must be large enough .* 1 of 2 samples \(sample 0\)"
    with pytest.warns(InconclusiveWarning, match=message):
        x_adv = lost(plane, x, y)
    assert torch.equal(x_adv[0], x[0])
    dataclasses.replace(attack, step_size=0.01).run(plane, x, y)  # without a warning


def test_a_ball_that_holds_no_other_input_is_no_fault_of_the_steps():
    plane = Halfspace(torch.ones(4), b=-3.1)
    x = torch.full((2, 4), 0.75)
    for attack in (attacks.FGSM(eps=1e-9), attacks.BIM(eps=1e-9), attacks.PGD(eps=1e-9)):
        with pytest.warns(InconclusiveWarning, match="`eps` must be large enough") as said:
            assert torch.equal(attack(plane, x, torch.tensor([0, 0])), x)
        assert len(said) == 1


@pytest.mark.filterwarnings("ignore:The ball of .* holds every input")
def test_steps_beyond_all_numbers_leave_a_flat_feature_where_it_is():
    plane = Halfspace(torch.tensor([1.0, 0.0]), b=-0.9)
    attack = attacks.FGSM(eps=1e60, random_start=True, stop="never")
    x_adv = attack(plane, torch.full((2, 2), 0.5), torch.tensor([0, 0]))
    assert x_adv.isfinite().all()
    assert (x_adv[:, 0] == 1).all()


class Far(torch.nn.Module):
    """A plane at 0.06 from 0.5, which notes the distances and labels of its inputs."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.seen, self.labels = norm, [], []
        self.plane = Halfspace(torch.tensor([1.0, 0.0, 0.0, 0.0]), b=-0.56)

    def forward(self, x):
        self.seen.append(lp_norm(x.detach() - 0.5, self.norm))
        logits = self.plane(x)
        self.labels.append(logits.argmax(1))
        return logits


HALVES, ZEROS = torch.full((6, 4), 0.5), torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize("stop", ["first", "never"])
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_successes_of_a_wide_start_are_not_kept(norm, stop):
    module = Far(norm)
    result = attacks.PGD(eps=0.05, norm=norm, steps=10, stop=stop).run(module, HALVES, ZEROS)
    assert any(labels.all() for labels in module.labels)  # steps do lead across the plane
    assert not result.success.any()
    assert (result.distance <= 0.05 + 1e-6).all()
    assert [len(seen) for seen in module.seen[:11]] == [6] * 11  # and do not end the search


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_query_budget_that_ends_a_wide_start_leaves_results_in_the_ball(norm):
    attack = attacks.PGD(eps=0.05, norm=norm, steps=10, stop="never")
    for budget in range(6, 72, 6):
        counter = QueryCounter(TorchClassifier(Far(norm)), max_queries=budget)
        with pytest.raises(QueryBudgetExceeded) as error:
            attack.run(counter, HALVES, ZEROS)
        result = error.value.result
        assert not result.success.any()
        assert (result.distance <= 0.05 + 1e-6).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"norm": "linf"},
        {"norm": "l2", "step_size": 0.01},
        {"norm": "l1", "random_start": False},
        {"norm": "l2", "steps": 3},
    ],
)
def test_other_searches_do_not_leave_the_ball(settings):
    module = Far(settings["norm"])
    attacks.PGD(**{"eps": 0.05, "steps": 10, **settings}, stop="never").run(module, HALVES, ZEROS)
    assert all((seen <= 0.05 + 1e-6).all() for seen in module.seen)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.filterwarnings("ignore:The ball of .* holds every input")
def test_a_wide_start_of_the_largest_number_is_finite(norm):
    largest = torch.finfo(torch.float32).max
    result = attacks.PGD(eps=largest, norm=norm, steps=10).run(Far(norm), HALVES, ZEROS)
    assert result.success.all()
    assert result.x_adv.isfinite().all()
