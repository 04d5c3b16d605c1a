"""What the attacks within a budget craft for training."""

import dataclasses

import pytest
import torch

from advkit import QueryCounter
from advkit.attacks import PGD
from advkit.attacks.engine.budget import BudgetAttack
from tests.attack_cases import BUDGET
from tests.toys import answers, convnet, images

every_attack = pytest.mark.parametrize(
    "attack", [attack for attack in BUDGET if isinstance(attack, BudgetAttack)], ids=repr
)


@every_attack
@pytest.mark.parametrize("stop", ["first", "never"])
def test_crafting_finds_what_calling_finds_in_one_pass_less(attack, stop):
    attack = dataclasses.replace(attack, stop=stop)
    net, x = convnet(), images()
    model, y = QueryCounter(net), answers(net, x)
    x_adv = attack(model, x, y)
    called = model.forward
    model.reset()
    assert torch.equal(attack.craft(model, x, y), x_adv)
    assert model.forward == called - len(x)
    assert torch.equal(attack.craft(model, x), attack(model, x))


def test_crafting_leaves_no_trace_and_wants_no_grad_mode():
    net, x = convnet().train(), images()
    net.norm.eval()
    before = torch.get_rng_state()
    with torch.inference_mode():
        x_adv = PGD(eps=0.1, steps=2).craft(net, x, torch.arange(8) % 3)
    assert not x_adv.is_inference()
    assert not x_adv.requires_grad
    assert net.calls == 0
    assert net.training
    assert not net.norm.training
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_crafting_nothing_and_refusals():
    net, x, y = convnet(), images(), torch.arange(8) % 3
    assert PGD(eps=0.1).craft(net, x[:0], y[:0]).shape == (0, 1, 6, 6)
    with pytest.raises(ValueError, match=r"bounds \[0, 1\]"):
        PGD(eps=0.1).craft(net, 2 * x, y)
    with pytest.raises(ValueError, match="`y` must be below 3"):
        PGD(eps=0.1).craft(net, x, y + 1)
    with pytest.raises(TypeError, match="`model` must be"):
        PGD(eps=0.1).craft(lambda x: x, x, y)
