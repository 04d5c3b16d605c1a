"""Steps that the dtype of the inputs rounds away."""

import dataclasses

import pytest
import torch

from advkit import InconclusiveWarning, attacks
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
