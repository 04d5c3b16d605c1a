"""as_classifier and as_differentiable: what fits, and what is said when nothing does."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import nn

from advkit import CallableClassifier, SklearnClassifier, as_classifier, attacks
from advkit.models import as_differentiable

ROWS = np.array([[0.1, 0.2], [0.2, 0.1], [0.8, 0.7], [0.9, 0.9]])
Y = np.array([0, 0, 1, 1])


def test_estimators_are_wrapped_wherever_a_model_is_asked_for():
    model = as_classifier(LogisticRegression(C=100).fit(ROWS, Y))
    assert isinstance(model, SklearnClassifier)
    assert as_classifier(model) is model
    assert as_differentiable(model, "PGD") is model
    result = attacks.PGD(eps=0.6, steps=5).run(model.estimator, torch.from_numpy(ROWS))
    assert result.success.all()


class Answers:
    def predict(self, x):
        return x


def test_what_is_no_model():
    with pytest.raises(TypeError, match=r"torch.nn.Module, a fitted .* estimator or a classifier"):
        as_classifier(3)
    with pytest.raises(TypeError, match="got function. Wrap a function in CallableClassifier"):
        as_classifier(test_what_is_no_model)
    with pytest.raises(TypeError, match="got Answers. Wrap a function"):
        as_classifier(Answers())
    with pytest.raises(TypeError, match="got the class LogisticRegression"):
        as_classifier(LogisticRegression)
    with pytest.raises(ValueError, match="got LogisticRegression before its fit"):
        as_classifier(LogisticRegression())
    with pytest.raises(TypeError, match="with classes_, got LinearRegression"):
        as_classifier(LinearRegression().fit(ROWS, Y))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (
            RandomForestClassifier(2, random_state=0).fit(ROWS, Y),
            r"SklearnClassifier\(RandomForestClassifier\), a ScoreClassifier",
        ),
        (
            CallableClassifier(lambda rows: [0] * len(rows), 2, output="labels"),
            "CallableClassifier, a Classifier",
        ),
    ],
)
def test_a_gradient_attack_on_what_has_none_names_the_ways_out(model, name):
    with pytest.raises(TypeError, match=f"must have gradients .* for PGD, got {name}") as caught:
        attacks.PGD(eps=0.1)(model, torch.from_numpy(ROWS))
    for way_out in ("Square (scores)", "HopSkipJump (labels)", "Transfer(", "TorchClassifier"):
        assert way_out in str(caught.value)


def test_modules_have_gradients():
    assert as_differentiable(nn.Linear(2, 3), "PGD").logits(torch.zeros(1, 2)).shape == (1, 3)
