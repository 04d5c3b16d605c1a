import numpy as np
import pytest
import torch

from advkit.defenses.mrr.aggregation import Rule

SCORES = torch.rand(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LEVELS = [0.01, 0.2, 0.5, 0.8, 0.99]


def alarms(level):
    return (level < SCORES).numpy()


@pytest.mark.parametrize("level", LEVELS)
class TestARiskAboveALevelIsTheRulesAlarmAtThatLevel:
    def test_any_alarm(self, level):
        np.testing.assert_array_equal(Rule().risk(SCORES) > level, alarms(level).any(1))

    @pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
    def test_more_than_half(self, level, count):
        risk = Rule(name="vote").risk(SCORES[:, :count])
        np.testing.assert_array_equal(risk > level, alarms(level)[:, :count].mean(1) > 0.5)

    def test_noisy_or_above_a_half(self, level):
        precision = (0.1, 0.3, 0.6, 0.2, 0.45)
        risk = Rule(name="noisy_or", precision=precision).risk(SCORES)
        combined = 1 - np.prod((1 - np.array(precision)) ** alarms(level), axis=1)
        np.testing.assert_array_equal(risk > level, combined > 0.5)

    def test_noisy_or_of_precise_defenders_is_any_alarm(self, level):
        risk = Rule(name="noisy_or", precision=0.51).risk(SCORES)
        np.testing.assert_array_equal(risk > level, alarms(level).any(1))


def test_noisy_or_that_all_together_do_not_carry_is_no_risk():
    rule = Rule(name="noisy_or", precision=0.05)
    assert (rule.risk(SCORES) == 0).all()
    assert not (rule.parts(SCORES) > 0).any()


def test_half_of_the_defenders_are_not_more_than_half():
    for count in range(2, 40, 2):
        scores = torch.zeros(1, count)
        scores[0, : count // 2] = 1
        assert Rule(name="vote").risk(scores) == 0
        scores[0, count // 2] = 1
        assert Rule(name="vote").risk(scores) == 1


def test_mean():
    np.testing.assert_allclose(Rule(name="mean").risk(SCORES), SCORES.numpy().mean(1))


def test_parts_are_all_of_them_where_one_is_enough_and_else_the_one_that_decides():
    excess = torch.tensor([[-1.0, 2.0, 3.0], [-1.0, -2.0, 3.0]])
    assert torch.equal(Rule().parts(excess), excess)
    assert Rule(name="vote").parts(excess).tolist() == [[2.0], [-1.0]]


def test_gradients_go_to_the_score_that_decides():
    scores = torch.tensor([[0.1, 0.9, 0.5]], requires_grad=True)
    Rule(name="vote").risk(scores).sum().backward()
    assert scores.grad.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"name": "any"}, ValueError, "`aggregate` must be one of 'max'"),
        ({"precision": 1.0}, ValueError, "`precision` must lie in .0, 1., got 1.0"),
        ({"precision": (0.5, 0.0)}, ValueError, "`precision` must lie in .0, 1., got 0.0"),
        ({"precision": "high"}, TypeError, "`precision` must be a number"),
    ],
)
def test_errors(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        Rule(**settings)
