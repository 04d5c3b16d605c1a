"""Modules that a classifier runs in training mode."""

from contextlib import nullcontext

import pytest
from torch import nn

from advkit import Ensemble, Expectation, QueryCounter, StraightThrough, TorchClassifier
from advkit.models.inner_model import innermost
from advkit.models.training_mode import check_evaluation_mode, evaluating_in_one_thread, one_thread


def net():
    return nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))


def keeps(module):
    return TorchClassifier(module, mode="keep")


def partly():
    module = net().eval()
    module[1].train()
    return module


@pytest.mark.parametrize(
    ("model", "one"),
    [
        (lambda: keeps(net()), True),
        (lambda: keeps(partly()), True),
        (lambda: keeps(net().eval()), False),
        (lambda: TorchClassifier(net()), False),
        (lambda: TorchClassifier(nn.Linear(2, 2).eval(), preprocess=net(), mode="keep"), True),
        (lambda: QueryCounter(Expectation(keeps(net()), draws=2)), True),
        (lambda: Ensemble([nn.Linear(2, 2), StraightThrough(keeps(net()), lambda x: x)]), True),
        (lambda: Ensemble([nn.Linear(2, 2), net()]), False),
    ],
)
def test_the_context_is_for_one_thread_if_a_module_runs_in_training_mode(model, one):
    assert isinstance(one_thread(model()), nullcontext) != one


def test_the_context_can_be_entered_again_and_holds_the_state():
    model = TorchClassifier(net())
    with evaluating_in_one_thread(model), one_thread(keeps(net())):
        assert not model.module.training
    assert model.module.training
    kept = keeps(net())
    with evaluating_in_one_thread(kept), evaluating_in_one_thread(kept), one_thread(kept):
        assert kept.module.training


def test_the_innermost_classifiers_are_found_at_any_depth():
    one, other = TorchClassifier(net()), keeps(net())
    assert list(innermost(one)) == [one]
    model = QueryCounter(Ensemble([QueryCounter(one), Expectation(other), one]))
    assert list(innermost(model)) == [one, other, one]


def test_a_module_ends_the_search():
    module = net()
    module.model = net()
    assert list(innermost(module)) == [module]


def test_what_is_no_module_has_no_mode():
    check_evaluation_mode("model", object())
    check_evaluation_mode("model", TorchClassifier(net()))
    check_evaluation_mode("model", net().eval())
    with pytest.raises(ValueError, match="`part` must be in evaluation mode, got Sequential in"):
        check_evaluation_mode("part", partly())
