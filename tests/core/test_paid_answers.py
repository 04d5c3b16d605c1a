"""Answers that were paid: asked for once, and kept by the error that ends the work."""

import pytest
import torch

from advkit import CallableClassifier, Ensemble, QueryCounter, attacks, defenses
from advkit.core.paid_answers import PaidAnswers
from advkit.core.results import Answers, ServiceError

X = torch.arange(12.0).view(6, 2)


class Model:
    """Gives the sum of each row; fails where a row holds a number."""

    def __init__(self, fails_at=None, error=ServiceError):
        self.asked, self.fails_at, self.error = [], fails_at, error

    def __call__(self, x):
        if self.fails_at is not None and (x == self.fails_at).any():
            raise self.error("down")
        self.asked.append(x.clone())
        return x.sum(1)


def ended(x, model, at_once, known=None):
    def run():
        paid = PaidAnswers(known, axes=1)
        with paid.kept():
            paid.ask(x, model, at_once)

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - interrupts are among them
        run()
    return caught.value


@pytest.mark.parametrize("error", [ServiceError, KeyboardInterrupt, ValueError, SystemExit])
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_an_error_keeps_what_was_answered_and_only_the_rest_is_asked_for(error, at_once):
    found = ended(X, Model(fails_at=6.0, error=error), at_once)
    assert type(found) is error
    kept = {1: 3, 2: 2, 3: 3}[at_once]
    assert torch.equal(found.answers.inputs, X[:kept])
    assert torch.equal(found.answers.outputs, X[:kept].sum(1))
    assert "Call fit again with answers=error.answers" in found.__notes__[0]
    again = Model()
    shuffled = torch.tensor([5, 0, 3, 1, 4, 2])
    answers = PaidAnswers(found.answers, axes=1).ask(X[shuffled], again, 6)
    assert torch.equal(answers, X[shuffled].sum(1))
    assert torch.equal(torch.cat(again.asked), X[shuffled[shuffled >= kept]])


def test_a_second_error_has_the_answers_of_both_runs():
    first = ended(X, Model(fails_at=4.0), 2).answers
    second = ended(X, Model(fails_at=10.0), 2, first)
    assert torch.equal(second.answers.inputs, X[:4])
    assert len(second.__notes__) == 1


def test_an_error_before_any_answer_has_none():
    found = ended(X, Model(fails_at=0.0), 2)
    assert found.answers is None
    assert not hasattr(found, "__notes__")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_nothing_is_asked_twice_whatever_the_dtype(dtype):
    x = X.to(dtype)
    model = Model()
    known = Answers(x, x.sum(1))
    assert torch.equal(PaidAnswers(known, axes=1).ask(x, model, 4), x.sum(1))
    assert not model.asked


def test_inputs_that_come_twice_in_one_run_are_asked_for_twice():
    model = Model()
    PaidAnswers(None, axes=1).ask(torch.cat([X, X]), model, 12)
    assert len(model.asked[0]) == 12


def test_what_are_no_answers():
    with pytest.raises(TypeError, match="`answers` must be the .answers of an error .* Tensor"):
        PaidAnswers(X, axes=1)
    with pytest.raises(ValueError, match="`answers` must have outputs with 2 axes, got 1"):
        PaidAnswers(Answers(X, X.sum(1)), axes=2)
    with pytest.raises(ValueError, match=r"inputs of shape \(2,\), got \(3,\)"):
        PaidAnswers(Answers(torch.rand(4, 3), torch.rand(4)), axes=1).ask(X, Model(), 3)


def service():
    """A classifier that is interrupted after 20 rows, 5 rows to a call."""
    asked = []

    def answer(rows):
        if len(asked) + len(rows) > 20:
            raise KeyboardInterrupt
        asked.extend(rows)
        return torch.full((len(rows), 3), 1 / 3).numpy()

    return CallableClassifier(answer, 3, max_batch=5)


WRAPPED = {
    "none": service,
    "FeatureSqueezing": lambda: defenses.FeatureSqueezing(service(), bits=8),
    "QueryCounter": lambda: QueryCounter(service()),
    "Ensemble": lambda: Ensemble([service()], "probabilities"),
    "InputValidator": lambda: defenses.InputValidator(service(), grid=None),
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("fits", ["Distillation", "Substitute"])
def test_answers_are_kept_behind_classifiers_around_classifiers(wrapped, fits):
    model, net, x = wrapped(), torch.nn.Linear(4, 3), torch.rand(40, 4)
    if not hasattr(model, "scores") and fits == "Distillation":
        pytest.skip("gives labels alone")
    taught = defenses.Distillation(temperature=1.0, epochs=1), [x]
    fit, data = taught if fits == "Distillation" else (attacks.Substitute(max_queries=60), x)
    with pytest.raises(KeyboardInterrupt) as error:
        fit.fit(model, net, data)
    assert torch.equal(error.value.answers.inputs, x[:20])


def test_smoothing_asks_for_whole_inputs():
    smoothed = defenses.RandomizedSmoothing(service(), sigma=0.1, n0=20, n=20, alpha=0.05, draws=2)
    assert smoothed.max_batch == 1
    assert defenses.RandomizedSmoothing(torch.nn.Linear(4, 3), sigma=0.1).max_batch is None
