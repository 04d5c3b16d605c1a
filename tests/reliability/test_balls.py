"""No adversarial example leaves its ball, in any dtype."""

import warnings

import pytest
import torch

from advkit import QueryBudgetExceeded, QueryCounter, attacks
from advkit.attacks.adaptive import Adaptive
from tests.attack_cases import BUDGET, with_eps
from tests.toys import SurrogateNet

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ROUNDED = {"linf": 1, "l2": 6, "l1": 36, "l0": 0}  # norm of an error of 1 in each of 36 features
PROMISES = {
    2: "adversarial examples in 16 bits stay within eps (l1, l2: up to rounding)",
    4: "adversarial examples in 32 and 64 bits stay within eps, up to rounding",
    8: "adversarial examples in 32 and 64 bits stay within eps, up to rounding",
}


class Steep(torch.nn.Module):
    """Differences of features, in the dtype of the input, of any size."""

    def forward(self, x):
        x = x.flatten(1)
        weight = torch.linspace(-1, 1, 3 * x.shape[1], dtype=torch.float64).sin().mul(40)
        return x @ weight.view(x.shape[1], 3).to(x)


CASES = [
    *BUDGET,
    *(attacks.DeepFool(eps=0.1, norm=norm) for norm in ("l2", "linf")),
    attacks.DeepFool(eps=0.1, norm="linf", candidates=3),
    attacks.PGD(eps=0.1, steps=5, norm="l1"),
    attacks.FGM(eps=0.1, norm="l2"),
    Adaptive(attack=attacks.PGD(eps=0.1, steps=4, norm="l2"), losses=["ce"]),
    attacks.Transfer(attack=attacks.DeepFool(eps=0.1, norm="linf"), surrogate=SurrogateNet()),
]


def radii(attack, dtype):
    """Radii that 16 bits do not have, the same for all samples, or others for each."""
    if attack.norm == "l0":
        return [20]
    scale = {"linf": 1, "l2": 4, "l1": 10}[attack.norm]
    each = torch.linspace(0.003, 0.31, 6, dtype=torch.float64) * scale
    return [each, 8 / 255 * scale] if dtype.itemsize == 2 else [each]


def batch(dtype):
    """Inputs with features at a bound and next to it, where 16 bits are finest, and labels."""
    x = torch.rand(6, 1, 6, 6, dtype=torch.float64)
    x[0], x[1, ..., ::2], x[2] = 0.5, 0, x[2] / 100
    return x.to(dtype), torch.tensor([0, 1, 2, 0, 1, 2])


def assert_inside(x_adv, x, norm, eps):
    """Raise if an example is outside of its ball, by distances in float64.

    In l1 and l2, and in linf of 32 and 64 bits, each feature may be off by what it was rounded by
    when it was stored: half a unit in the last place.
    """
    order = {"linf": torch.inf, "l2": 2, "l1": 1, "l0": 0}[norm]
    delta = (x_adv.double() - x.double()).flatten(1)
    distance = torch.linalg.vector_norm(delta, ord=order, dim=1)
    unit = torch.finfo(x.dtype).eps
    exact = norm == "l0" or (norm == "linf" and x.dtype.itemsize == 2)
    slack = 0 if exact else unit / 4 * ROUNDED[norm]
    over = distance - (torch.as_tensor(eps).double() * (1 if exact else 1 + 4 * unit) + slack)
    assert (over <= 0).all(), over
    assert ((x_adv >= 0) & (x_adv <= 1)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_example_leaves_its_ball(tally, dtype):
    promise = tally(PROMISES[dtype.itemsize])
    x, y = batch(dtype)
    for attack in CASES:
        for eps in radii(attack, dtype):
            with promise.trial((attack, str(eps))), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = with_eps(attack, eps).run(Steep(), x, y)
                assert_inside(found.x_adv, x, attack.norm, eps)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_what_a_spent_budget_leaves_is_in_the_ball(tally, dtype):
    promise = tally(PROMISES[2])
    x, y = batch(dtype)
    for attack in CASES:
        for eps in radii(attack, dtype)[:1]:
            for limit in (13,):
                with promise.trial((attack, str(eps), limit)), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        found = with_eps(attack, eps).run(QueryCounter(Steep(), limit), x, y)
                    except QueryBudgetExceeded as error:
                        found = error.result
                    assert_inside(found.x_adv, x, attack.norm, eps)


class OwnBoundary(torch.nn.Module):
    """A boundary for each sample: the first feature must exceed the second."""

    def forward(self, x):
        z = 8 * (x[:, 0].float() - x[:, 1].float().detach())
        return torch.stack([0 * z, z], 1)


@pytest.mark.parametrize("eps", [0.1, 0.05])
def test_a_distance_that_16_bits_round_down_is_outside(tally, eps):
    promise = tally(PROMISES[2])
    first = torch.rand(4000) * 0.05
    x = torch.stack([first, first + eps - 0.01 * torch.rand(4000)], 1).half()
    y = torch.zeros(4000, dtype=torch.int64)
    with promise.trial(eps):
        with pytest.raises(QueryBudgetExceeded) as error:
            attacks.DeepFool(eps=eps, norm="linf").run(QueryCounter(OwnBoundary(), 8000), x, y)
        assert error.value.result.success.sum() > 3000
        assert_inside(error.value.result.x_adv, x, "linf", eps)
