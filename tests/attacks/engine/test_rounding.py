"""Budgets and steps that the dtype of the inputs rounds away are named."""

import warnings

import pytest
import torch

from advkit import InconclusiveWarning, TorchClassifier, attacks

X = 0.5 + torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) / 2.1
ALONE = [  # budgets below half a unit in the last place of bfloat16 above 0.5
    attacks.FGSM(eps=0.0018),
    attacks.PGD(eps=0.0018),
    attacks.PGD(norm="l2", eps=0.0018),
    attacks.BIM(eps=0.0018),
    attacks.Square(eps=0.0018, max_queries=10),
    attacks.Square(norm="l2", eps=0.0018, max_queries=10),
    attacks.RandomNoise(eps=0.0018),
]


class Halves(torch.nn.Module):
    def forward(self, x):
        return torch.stack([x.flatten(1).sum(1), -x.flatten(1).sum(1)], 1)


def run(attack, dtype, x=X):
    return attack.run(Halves(), x.to(dtype), torch.zeros(len(x)))


@pytest.mark.parametrize("attack", ALONE, ids=repr)
def test_a_ball_that_holds_no_other_input(attack):
    with pytest.warns(InconclusiveWarning, match="`eps` must be large enough .* 4 of 4 samples"):
        result = run(attack, torch.bfloat16)
    assert torch.equal(result.x_adv, X.to(torch.bfloat16))
    run(attack, torch.float32)  # warns of nothing


def test_a_ball_that_nothing_is_rounded_out_of_holds_less():
    attack = attacks.PGD(eps=0.003)  # above half a unit in the last place, below one
    with pytest.warns(InconclusiveWarning, match="`eps` must be large enough"):
        result = run(attack, torch.bfloat16)
    assert torch.equal(result.x_adv, X.to(torch.bfloat16))


def test_only_the_samples_that_are_alone_are_named():
    x = torch.cat([X, X / 100])
    with pytest.warns(InconclusiveWarning, match=r"4 of 8 samples \(samples 0, 1, 2, 3\)"):
        run(attacks.FGSM(eps=0.0018), torch.bfloat16, x)


def test_no_budget_at_all_is_not_lost():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(attacks.FGSM(eps=0.0), torch.bfloat16)


@pytest.mark.parametrize("theta", [1e-3, -1e-3])
def test_a_change_of_features_that_is_rounded_away(theta):
    attack = attacks.JSMA(theta=theta, gamma=1.0)
    with pytest.warns(InconclusiveWarning, match="`theta` must be large enough .* 4 of 4"):
        result = run(attack, torch.bfloat16)
    assert not result.success.any()
    assert result.queries.forward.max() <= 4  # it does not go on for a thousand steps


def test_features_that_a_change_does_not_move_are_not_chosen():
    x = torch.cat([X[:, :3], torch.zeros(4, 3)], 1).to(torch.bfloat16)
    net = torch.nn.Linear(6, 2, bias=False, dtype=torch.bfloat16)
    net.weight.data[:] = torch.tensor([[0.0] * 6, [3.0] * 3 + [1.0] * 3])
    net.weight.data[0, :3] = 3.03125
    attack = attacks.JSMA(theta=1e-3, gamma=1.0, candidates=1)
    result = attack.run(net, x, torch.zeros(4, dtype=torch.long))
    assert torch.equal(result.x_adv[:, :3], x[:, :3])
    assert result.success.any()


def test_an_input_that_can_move_one_way_is_not_alone():
    x = torch.full((2, 6), 0.5)  # below it bfloat16 is twice as fine as above
    result = run(attacks.PGD(eps=0.003, stop="never"), torch.bfloat16, x)
    assert (result.x_adv < 0.5).any()


def test_numbers_of_features_are_no_distances():
    model = TorchClassifier(Halves(), bounds=(0, 1000))
    x = torch.full((2, 6), 900.0, dtype=torch.bfloat16)  # a distance of 1 would not move them
    noise = attacks.RandomNoise(eps=1, kind="salt_and_pepper", norm="l0", stop="never")
    assert (noise(model, x, torch.zeros(2)) != x).flatten(1).sum(1).tolist() == [1, 1]
