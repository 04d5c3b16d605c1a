"""Labels of an estimator whose classes are not indices, wherever they are given."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

import advkit
from advkit import (
    Ensemble,
    Expectation,
    QueryCounter,
    SklearnClassifier,
    StraightThrough,
    attacks,
    defenses,
    detectors,
)
from advkit import eval as rob
from advkit.core import checks
from advkit.core.results import InconclusiveWarning
from advkit.models.labels import given_labels, label_indices, label_values
from tests.attack_cases import ATTACKS
from tests.toys import answers, convnet, images

X = images(40)
Y = answers(convnet(), X)
NAMES = {"one to three": [1, 2, 3], "with -1": [-1, 0, 1], "floats": [2.0, 5.0, 7.0]}


def fitted(values, estimator=None):
    estimator = LogisticRegression(C=100) if estimator is None else estimator
    return estimator.fit(X.flatten(1).numpy(), np.asarray(values)[Y.numpy()])


def both(values, estimator=None):
    """The estimator that takes its own labels, and the one that takes positions."""
    known = fitted(values, estimator)
    return [SklearnClassifier(known, labels=labels) for labels in ("class", "index")]


def labels_of(values, y=Y):
    return torch.tensor(values)[y]


def alike(first, second):
    for field in dataclasses.fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("values", [[1, 2, 3], [-1, 0, 1], [0, 1, 5], [2.0, 5.0, 7.0]])
@pytest.mark.parametrize(
    "estimator", [KNeighborsClassifier(1), make_pipeline(MinMaxScaler(), LogisticRegression())]
)
def test_integers_other_than_positions_have_to_be_explained(values, estimator):
    known = fitted(values, estimator)
    for make in (SklearnClassifier, advkit.as_classifier):
        with pytest.raises(
            ValueError, match=r"`labels` must be .*labels='class'.*labels='index'"
        ) as caught:
            make(known)
        assert str([int(v) for v in values]) in str(caught.value)
    with pytest.raises(ValueError, match="`labels` must be one of 'class', 'index'"):
        SklearnClassifier(known, labels="classes")


@pytest.mark.parametrize("values", [[0, 1, 2], [0.0, 1.0, 2.0]])
def test_positions_need_no_explanation(values):
    for labels in (None, "class", "index"):
        model = SklearnClassifier(fitted(values), labels=labels)
        assert label_values(model) is None
        assert rob.accuracy(model, X, Y).count == (model.predict(X) == Y).sum()


def test_bools_are_zero_and_one():
    known = LogisticRegression().fit(X.flatten(1).numpy(), Y.numpy() == 1)
    assert label_values(SklearnClassifier(known)) is None


def test_strings_have_positions_and_name_the_way_to_them():
    known = fitted(["a", "b", "c"], KNeighborsClassifier(1))
    model = SklearnClassifier(known)
    names = np.asarray(["a", "b", "c"])[Y.numpy()]
    assert rob.accuracy(model, X, model.encode(names)).count == 40
    with pytest.raises(ValueError, match=r"`labels` must be 'index' .*model.encode\(y\)"):
        SklearnClassifier(known, labels="class")
    for given in (names, names.tolist(), names.astype(object)):
        for call in (
            lambda given=given: rob.accuracy(model, X, given),
            lambda given=given: rob.accuracy(model, [(X, given)]),
            lambda given=given: rob.evaluate(
                model, [(X, given)], attacks=[attacks.HopSkipJump()], device="cpu"
            ),
            lambda given=given: attacks.HopSkipJump(max_queries=10).run(model, X, given),
        ):
            with pytest.raises(
                TypeError, match=r"`y` must be .* got strings .*`model.encode\(y\)`"
            ):
                call()


@pytest.mark.slow("every attack")
@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_every_attack_takes_labels_of_the_estimator(attack):
    by_class, by_index = both([1, 2, 5])
    x = X[:6]
    with checks.muted(InconclusiveWarning):
        expected = attack.run(by_index, x, Y[:6])
        alike(attack.run(by_class, x, labels_of([1, 2, 5])[:6]), expected)
        alike(attack.run(by_class, x), attack.run(by_index, x))
        alike(attack.run(by_class, x, torch.eye(3)[Y[:6]]), expected)  # columns are positions
    with pytest.raises(ValueError, match=r"`y` must be among \[1, 2, 5\].* got 3 \(samples 1, 2\)"):
        attack.run(by_class, x, torch.tensor([1, 3, 3, 2, 5, 5]))


@pytest.mark.parametrize("values", NAMES.values(), ids=NAMES)
def test_targets_are_labels_of_the_estimator(values):
    by_class, by_index = both(values)
    target = (Y + 1) % 3
    for attack in (
        attacks.PGD(eps=0.3, steps=3),
        attacks.HopSkipJump(max_queries=60, init_points=X),
    ):
        alike(
            attack.run(by_class, X[:6], target=labels_of(values, target)[:6]),
            attack.run(by_index, X[:6], target=target[:6]),
        )


@pytest.mark.parametrize("values", NAMES.values(), ids=NAMES)
def test_evaluations_take_labels_of_the_estimator(values):
    by_class, by_index = both(values)
    y, made = labels_of(values), [attacks.FGSM(eps=0.05), attacks.DeepFool()]
    assert rob.accuracy(by_class, X, y) == rob.accuracy(by_index, X, Y)
    assert rob.accuracy(by_index, X, Y).count > 36
    mine, theirs = (
        rob.evaluate(by_class, X, y, attacks=made),
        rob.evaluate(by_index, X, Y, attacks=made),
    )
    assert torch.equal(mine.clean, theirs.clean)
    for a, b in zip(mine.outcomes, theirs.outcomes, strict=True):
        assert torch.equal(a.robust, b.robust)
        assert torch.equal(a.examples.y, b.examples.y)
    found = rob.benchmark(by_class, X, y, attacks=made, rounds=1)
    assert torch.equal(found.attacks[0].outcome.robust, theirs.outcomes[0].robust)
    table = detectors.collect({"m": by_class}, made, X, y)
    other = detectors.collect({"m": by_index}, made, X, Y)
    for name in ("label", "predicted", "success", "outputs"):
        assert np.array_equal(getattr(table, name), getattr(other, name))


@pytest.mark.parametrize("of_its_own", [True, False])
def test_each_model_of_a_transfer_matrix_takes_labels_as_it_names_them(of_its_own):
    values = [0, 1, 5]
    forest = fitted(values, RandomForestClassifier(5, random_state=0))
    matrices = []
    for model, labels, y in zip(
        both(values), ("class", "index"), (labels_of(values), Y), strict=True
    ):
        targets = {"f": SklearnClassifier(forest, labels=labels)}
        if of_its_own:
            targets["m"] = model
        matrices.append(rob.transfer_matrix({"m": model}, targets, attacks.FGSM(eps=0.005), X, y))
    mine, theirs = matrices
    assert torch.equal(mine.no_attack, theirs.no_attack)
    assert torch.equal(mine.sources[0].misclassified, theirs.sources[0].misclassified)
    assert torch.equal(mine.sources[0].fooled, theirs.sources[0].fooled)
    assert not mine.sources[0].fooled.all()


def test_a_surrogate_is_attacked_by_its_own_names():
    by_class, by_index = both([1, 2, 5])
    victim = convnet()
    for attack in (attacks.FGSM(eps=0.1), attacks.DeepFool()):
        mine, theirs = (
            attacks.Transfer(attack=attack, surrogate=surrogate).run(victim, X, Y)
            for surrogate in (by_class, by_index)
        )
        alike(mine, theirs)


class Calm:
    def anomaly_score(self, outputs):
        return np.zeros(len(outputs))


AROUND = {
    "a counter": QueryCounter,
    "squeezing": lambda m: defenses.FeatureSqueezing(m, bits=6),
    "a step": lambda m: StraightThrough(m, lambda x: x),
    "an expectation": lambda m: Expectation(m, draws=2),
    "an ensemble": lambda m: Ensemble([m, m]),
    "smoothing": lambda m: defenses.RandomizedSmoothing(m, sigma=0.05, n=200),
    "a guard": lambda m: detectors.Guard(m, Calm(), threshold=0.5),
    "a validator": lambda m: defenses.InputValidator(m),
    "two of them": lambda m: QueryCounter(detectors.Guard(m, Calm(), threshold=0.5)),
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_classifiers_around_it_take_its_labels(around):
    values = [-1, 0, 1]
    by_class, by_index = map(around, both(values))
    assert rob.accuracy(by_class, X, labels_of(values)) == rob.accuracy(by_index, X, Y)
    attack = attacks.HopSkipJump(max_queries=40)
    with checks.muted(InconclusiveWarning):
        alike(
            attack.run(by_class, X[:4], labels_of(values)[:4]), attack.run(by_index, X[:4], Y[:4])
        )


def test_certificates_take_its_labels():
    values = [-1, 0, 1]
    by_class, by_index = (defenses.RandomizedSmoothing(m, sigma=0.02, n=200) for m in both(values))
    shares = [
        model.certify(X).certified_accuracy(y, radius=0.0)
        for model, y in ((by_class, labels_of(values)), (by_index, Y))
    ]
    assert shares[0] == shares[1] > 0.3


def test_members_of_an_ensemble_must_take_alike_labels():
    by_class, by_index = both([1, 2, 5])
    with pytest.raises(
        ValueError, match=r"`models` must take the same labels, got .*labels='index'"
    ):
        Ensemble([by_class, by_index])


def test_labels_there_and_back():
    by_class, by_index = both([5, 2, 9])
    y = labels_of([5, 2, 9])
    at = label_indices("y", y, X, by_class)
    assert torch.equal(torch.tensor(by_class.classes)[at], y)
    assert torch.equal(given_labels(by_class, at), y)
    assert given_labels(by_index, at) is at
    assert torch.equal(label_indices("y", y.double(), X, by_class), at)
    assert torch.equal(label_indices("y", y.to(torch.int8)[:, None][:, 0], X, by_class), at)


@pytest.mark.parametrize(
    "compare",
    [
        lambda models: rob.transfer_matrix(models, None, attacks.PGD(eps=0.01), X, Y),
        lambda models: detectors.collect(models, [], X, Y),
    ],
    ids=["transfer_matrix", "collect"],
)
def test_models_that_share_labels_must_take_alike_ones(compare):
    by_class, by_index = both([-1, 0, 1])
    with pytest.raises(ValueError, match=r"`models` must take the same labels, got"):
        compare({"class": by_class, "index": by_index})
