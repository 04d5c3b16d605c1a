"""Adversarial examples rounded to bytes."""

import pytest
import torch
from torch import nn

import advkit
from advkit import attacks
from advkit import eval as rob
from advkit.core.results import AttackResult, Queries
from advkit.eval.accuracy import ClassifiedBatch
from advkit.eval.units.byte_rounding import ROUNDED_EVERY, check_rounding, to_bytes
from advkit.models import as_classifier

LEVEL = 1 / 255


class Threshold(nn.Module):
    """Label 1 where the first feature is above a threshold; counts its inputs."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold, self.sent = threshold, 0

    def forward(self, x):
        self.sent += len(x)
        z = x.flatten(1)[:, 0] - self.threshold
        return torch.stack([-z, z], dim=1)


def check(move, *, threshold=100.3 * LEVEL, success=None, x=None, first=0, n=3 * ROUNDED_EVERY,
          model=None):  # fmt: skip
    """The check of examples that moved all inputs, of gray level 100, by `move` levels."""
    x = torch.full((n, 2), 100 * LEVEL) if x is None else x
    y, correct = torch.zeros(len(x)).long(), torch.ones(len(x)).bool()
    part = ClassifiedBatch(x, y, y, first)
    ones = torch.ones(len(x)).long()
    result = AttackResult(
        x_adv=x + move * LEVEL, success=correct if success is None else success,
        distance=ones.float(), norm="linf", queries=Queries(ones, ones), no_gradient=~correct,
    )  # fmt: skip
    return check_rounding(as_classifier(model or Threshold(threshold)), part, result)


def counts(found):
    return int(found["rounded"].sum()), int(found["undone"].sum())


@pytest.mark.parametrize(("move", "undone"), [(0.4, 3), (0.6, 0), (1.0, 0), (1.4, 0)])
def test_successes_that_the_rounding_undoes(move, undone):
    """The threshold is 0.3 levels away; a move of 0.4 is rounded to none, and of 0.6 to one."""
    found = check(move)
    assert counts(found) == (3, undone)
    assert found["rounded"].nonzero().flatten().tolist() == [0, 20, 40]
    assert not (found["undone"] & ~found["rounded"]).any()


def test_failures_are_not_rounded():
    success = torch.arange(60) != 20
    assert check(0.4, success=success)["undone"].nonzero().flatten().tolist() == [0, 40]
    assert counts(check(0.4, success=torch.zeros(60).bool())) == (0, 0)


def test_inputs_that_are_not_bytes_are_not_rounded():
    x = torch.full((60, 2), 100 * LEVEL)
    x[20, 1] += 0.01 * LEVEL
    assert check(0.4, x=x)["rounded"].nonzero().flatten().tolist() == [0, 40]
    x = torch.full((60, 2), 100 * LEVEL) + 0.0005 * LEVEL  # within the tolerance
    assert counts(check(0.4, x=x)) == (3, 3)


def test_the_inputs_are_those_of_certain_numbers():
    assert check(0.4, first=5)["rounded"].nonzero().flatten().tolist() == [15, 35, 55]
    assert counts(check(0.4, first=1, n=19)) == (0, 0)
    assert ROUNDED_EVERY == 20


def test_numbers_are_those_of_all_inputs_and_not_of_the_attacked():
    """The misclassified inputs, which are not attacked, have numbers too."""
    x = torch.full((60, 2), 100 * LEVEL)
    x[:10, 0] = 120 * LEVEL  # which the threshold labels 1
    model, y = Threshold(100.3 * LEVEL), torch.zeros(60).long()
    report = rob.evaluate(model, x, y, attacks=[attacks.FGSM(eps=0.4 * LEVEL)], batch_size=7)
    (outcome,) = report.outcomes
    assert outcome.success.sum() == 50
    assert outcome.rounded.nonzero().flatten().tolist() == [20, 40]
    assert torch.equal(outcome.undone, outcome.rounded)
    (plain,) = report.to_dict()["attacks"]
    assert plain["successes_undone_by_rounding"]["count"] == 2
    assert plain["successes_undone_by_rounding"]["total"] == 2


def test_it_takes_one_pass_of_each():
    model = Threshold(100.3 * LEVEL)
    check(0.4, model=model)
    assert model.sent == 3
    check(0.4, model=model, success=torch.zeros(60).bool())
    assert model.sent == 3


def test_a_model_with_a_query_budget_is_not_checked():
    model = advkit.QueryCounter(Threshold(100.3 * LEVEL), max_queries=100)
    assert counts(check(0.4, model=model)) == (0, 0)
    assert model.forward == 0


def test_minimum_norm_attacks_are_not_rounded():
    x, y = torch.full((40, 2), 100 * LEVEL), torch.zeros(40).long()
    model = Threshold(100.3 * LEVEL)
    report = rob.evaluate(model, x, y, attacks=[attacks.DeepFool()])
    assert report.outcomes[0].success.all()
    assert not report.outcomes[0].rounded.any()


def test_many_that_are_undone_are_a_finding():
    x, y = torch.full((200, 2), 100 * LEVEL), torch.zeros(200).long()
    report = rob.evaluate(
        Threshold(100.3 * LEVEL), x, y, attacks=[attacks.FGSM(eps=0.4 * LEVEL)]
    )  # fmt: skip
    (found,) = report.findings
    assert (found.name, found.evidence) == (
        "rounding_undoes_attack", {"undone": 10, "rounded": 10},
    )  # fmt: skip
    whole = rob.evaluate(Threshold(100.3 * LEVEL), x, y, attacks=[attacks.FGSM(eps=LEVEL)])
    assert whole.findings == ()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_bytes_between_the_bounds(bounds):
    lower, upper = bounds
    step = (upper - lower) / 255
    x = lower + step * torch.tensor([-0.4, 0.0, 0.4, 0.6, 254.4, 255.2])
    expected = lower + step * torch.tensor([0.0, 0.0, 0.0, 1.0, 254.0, 255.0])
    assert torch.allclose(to_bytes(x, bounds), expected, atol=1e-6 * (upper - lower))
