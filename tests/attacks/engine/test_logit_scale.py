"""Factors of logits of extreme size: powers of two, one of each sample, none where it matters."""

import pytest
import torch

from advkit import TorchClassifier, attacks
from advkit.attacks.adaptive.joint_problem import TwoObjectives
from advkit.attacks.engine.logit_scale import HUGE, TINY, LogitScale, logit_scale
from tests.toys import Halfspace


@pytest.mark.parametrize("size", [0.0, TINY, 1e-3, 1.0, 500.0, HUGE, torch.inf, torch.nan])
def test_ordinary_logits_are_left_as_they_are(size):
    logits, labels = torch.tensor([[size, -size / 2, 0.0]]), torch.tensor([0])
    assert logit_scale(logits, labels).tolist() == [1]
    scaled = LogitScale(1).applied(logits, labels, torch.tensor([0]))
    assert scaled is logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-40, 1e-38, 1e-25, 1e-6, 1e12, 1e38])
def test_factors_are_powers_of_two_to_a_fixed_size(dtype, size):
    logits = torch.tensor([[size, -size / 2, 0.0]], dtype=torch.float64).to(dtype)
    (factor,) = logit_scale(logits, torch.tensor([0])).tolist()
    assert float(torch.frexp(torch.tensor(factor, dtype=torch.float64)).mantissa) == 0.5
    wanted = HUGE if size > 1 else 1
    least = 1e-3 if size < 1e-38 else 0.5  # the dtype has no larger factor
    assert least * wanted <= factor * logits[0, 0].double() < wanted


def test_a_factor_stays_within_the_dtype_that_the_backward_pass_begins_in():
    logits = torch.tensor([[6e-8, 0.0]], dtype=torch.float16)
    factor = logit_scale(logits, torch.tensor([0]))
    assert factor.dtype == torch.float32
    assert factor.half().isfinite().all()
    assert factor > 1000


def test_a_masked_class_is_not_the_size_of_a_sample():
    logits = torch.tensor([[1.0, 2.0, -1e38], [1.0, 2.0, -torch.inf]])
    assert logit_scale(logits, torch.tensor([0, 1])).tolist() == [1, 1]


def test_each_sample_has_its_own_factor_from_its_first_logits():
    scale, labels = LogitScale(4), torch.tensor([0, 0, 0])
    rows = torch.tensor([1, 2, 3])
    first = torch.tensor([[1e-20, 0.0], [3.0, 0.0], [0.0, 1e20]])
    found = scale.applied(first, labels, rows)
    assert found[1].tolist() == [3.0, 0.0]
    assert 0.5 <= found[0, 0] < 1
    assert HUGE / 2 <= found[2, 1] < HUGE
    again = scale.applied(2 * first[[2, 0]], labels[:2], rows[[2, 0]])
    assert torch.equal(again, 2 * found[[2, 0]])


def test_a_loss_of_the_users_own_and_a_confidence_see_the_logits_as_they_are():
    seen = []

    def loss(logits, y):
        seen.append(logits.detach())
        return logits.sum(1)

    plane = Halfspace(torch.full((2,), 1e20))
    x, y = torch.ones(1, 2), torch.tensor([1])
    attacks.PGD(eps=0.1, steps=1, loss=loss, random_start=False).run(plane, x, y)
    assert torch.equal(seen[0], plane(x))
    for confidence, size in ((0.0, HUGE), (1.0, 2e20)):
        attack = attacks.CarliniWagnerL2(confidence=confidence)
        problem = attack._problem(TorchClassifier(plane), x, y, None)
        assert size / 2 <= float(problem.logits(x).detach().amax()) <= 1.001 * size


def test_the_labels_that_judge_a_black_box_attack_are_not_scaled():
    plane = Halfspace(torch.full((2,), 1e-300, dtype=torch.float64), b=-1e-300)
    x, y = torch.ones(1, 2, dtype=torch.float64), torch.tensor([1])
    for attack in (attacks.Square(eps=0.9, max_queries=20), attacks.SelectivePGD(eps=0.9, steps=3)):
        result = attack.run(plane, x, y)
        assert result.success.all()
        assert not result.not_finite.any()


def test_another_model_has_a_scale_of_its_own():
    x, y = torch.ones(1, 2), torch.tensor([1])
    tiny, ordinary = (TorchClassifier(Halfspace(torch.full((2,), w))) for w in (1e-20, 1.0))
    problem = attacks.FAB()._problem(tiny, x, y, None)
    assert problem.logits(x).amax() > 0.4
    assert torch.equal(problem.with_model(ordinary).logits(x), ordinary.logits(x))


def test_a_model_behind_a_guard_has_a_scale_of_its_own():
    x, y = torch.ones(1, 2), torch.tensor([1])
    attack = attacks.SelectivePGD(eps=0.1)
    view = attack._adapt_model(Halfspace(torch.full((2,), 1e-20)))
    problem = attack._problem(view, x, y, None)
    assert problem.logits(x).amax() == 1  # labels
    assert attack._joint(TwoObjectives, problem).logits(x).amax() > 0.4
