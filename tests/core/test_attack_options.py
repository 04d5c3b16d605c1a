"""Copies of attacks with other options."""

import pytest
import torch

from advkit import attacks
from advkit.core.attack_options import check_length, for_samples, sending_at_most, with_stop


@pytest.mark.parametrize("stop", ["first", "never"])
def test_an_attack_that_leaves_it_open_gets_the_callers_stop(stop):
    attack = attacks.PGD(eps=0.1, steps=3, norm="l2")
    assert attack.stop is None
    assert with_stop(attack, stop) == attacks.PGD(eps=0.1, steps=3, norm="l2", stop=stop)
    assert attack.stop is None  # a value, which nobody changes


@pytest.mark.parametrize("stop", ["first", "never"])
@pytest.mark.parametrize("own", ["first", "never"])
def test_an_attack_that_says_so_keeps_its_own_stop(own, stop):
    attack = attacks.RandomNoise(eps=0.1, stop=own)
    assert with_stop(attack, stop) is attack


def test_an_attack_that_has_no_stop_stays_as_it_is():
    attack = attacks.DeepFool()
    assert with_stop(attack, "never") is attack


def test_an_attack_of_ones_own_need_be_no_dataclass():
    class Mine:
        pass

    mine = Mine()
    assert with_stop(mine, "never") is mine


def test_radii_of_each_sample_go_along_with_a_part_of_the_samples():
    rows = torch.tensor([0, 2])
    attack = attacks.FGSM(eps=torch.tensor([0.1, 0.2, 0.3]))
    assert for_samples(attack, rows).eps.tolist() == pytest.approx([0.1, 0.3])
    inner = for_samples(attacks.Transfer(attack=attack, surrogate=torch.nn.Linear(2, 2)), rows)
    assert inner.attack.eps.tolist() == pytest.approx([0.1, 0.3])
    same = attacks.FGSM(eps=0.1)
    assert for_samples(same, rows) is same
    with pytest.raises(ValueError, match="`eps` must .* got 3 values for 4 samples or more"):
        for_samples(attack, torch.tensor([1, 3]))
    with pytest.raises(ValueError, match=r"`eps` must .* shape \(2,\), got shape \(3,\)"):
        check_length(attack, 2)
    check_length(attack, None)


def test_an_attack_is_held_to_a_size_of_batches_also_inside_of_others():
    attack = attacks.HopSkipJump(max_queries=50)
    assert sending_at_most(attack, 7) == attacks.HopSkipJump(max_queries=50, batch_size=7)
    assert sending_at_most(attack, 5000) is attack
    inner = attacks.Transfer(attack=attack, surrogate=torch.nn.Linear(2, 2))
    outer = attacks.Transfer(attack=inner, surrogate=inner.surrogate)
    assert sending_at_most(outer, 7).attack.attack.batch_size == 7
    assert outer.attack.attack.batch_size == 1024
    for same in (attacks.FGSM(eps=0.1), object()):
        assert sending_at_most(same, 1) is same
