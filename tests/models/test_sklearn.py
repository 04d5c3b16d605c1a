"""SklearnClassifier: every fitted estimator, with gradients where it is a plain function."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.multiclass import OneVsOneClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

import advkit
from advkit import SklearnClassifier, attacks

NAMES = np.array(["ten", "two", "one"])


def table(classes=3, n=90, dtype=np.float64):
    """Rows of four features in [0, 1] around a centre for each class, and the class."""
    rng = np.random.default_rng(classes)
    y = rng.integers(0, classes, n)
    centres = rng.uniform(0.2, 0.8, (classes, 4))
    rows = np.clip(centres[y] + 0.12 * rng.standard_normal((n, 4)), 0, 1)
    return rows.astype(dtype), y


ROWS, Y = table()
X = torch.from_numpy(ROWS[:30])

TREES = [
    DecisionTreeClassifier(max_depth=4, random_state=0),
    RandomForestClassifier(5, max_depth=4, random_state=0),
    GradientBoostingClassifier(n_estimators=3, random_state=0),
    HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=5, random_state=0),
    KNeighborsClassifier(3),
    CalibratedClassifierCV(SVC(), ensemble=False, cv=2),
    make_pipeline(PCA(2), KNeighborsClassifier(3)),
]
LINEAR = [
    LogisticRegression(C=20),
    LogisticRegression(C=20, fit_intercept=False),
    LinearSVC(random_state=0),
    LinearSVC(fit_intercept=False, random_state=0),
    RidgeClassifier(),
    SGDClassifier(random_state=0),
    SGDClassifier(loss="log_loss", random_state=0),
    LinearDiscriminantAnalysis(),
]


def mlp(activation="relu"):
    return MLPClassifier((6, 5), activation=activation, solver="lbfgs", max_iter=60, random_state=0)


def fitted(estimator, classes=3, dtype=np.float64, names=False):
    """A copy of the estimator fitted on the table."""
    rows, y = table(classes, dtype=dtype)
    with warnings.catch_warnings():  # iterations run out, which does not matter here
        warnings.simplefilter("ignore")
        return copy.deepcopy(estimator).fit(rows, NAMES[y] if names else y)


@pytest.mark.parametrize("estimator", [*TREES, *LINEAR, mlp()], ids=repr)
@pytest.mark.parametrize("names", [False, True])
def test_it_answers_like_the_estimator(estimator, names):
    known = fitted(estimator, names=names)
    model = SklearnClassifier(known)
    expected = known.predict(X.numpy())
    assert (model.classes[model.predict(X)] == expected).all()
    assert torch.equal(model.encode(expected), model.predict(X))
    assert model.predict(X).dtype == torch.int64
    y = NAMES[Y[:30]] if names else Y[:30]
    assert (model.predict(X) == model.encode(y)).float().mean() > 0.6
    assert (model.num_classes, model.bounds) == (3, (0, 1))
    found = known.predict_proba if hasattr(known, "predict_proba") else known.decision_function
    np.testing.assert_array_equal(model.scores(X), found(X.numpy()))
    assert model.scores(X).dtype == torch.float64


@pytest.mark.parametrize("estimator", TREES, ids=repr)
def test_what_has_no_gradients_offers_none(estimator):
    model = SklearnClassifier(fitted(estimator))
    assert not hasattr(model, "logits")
    with pytest.raises(AttributeError, match=r"SklearnClassifier\(.* has no logits"):
        model.logits  # noqa: B018
    with pytest.raises(
        TypeError, match=f"gradients .* for FGSM, got .*{type(model.estimator).__name__}"
    ):
        attacks.FGSM(eps=0.1)(model, X)


def check_logits(known, x=X):
    """The logits are the estimator's own, and so are their gradients, by finite differences."""
    model = SklearnClassifier(known)
    x = x.clone().requires_grad_()
    logits = model.logits(x)
    assert logits.dtype == torch.float64
    if hasattr(known, "decision_function"):
        own = known.decision_function(x.detach().numpy())
        own = np.stack([np.zeros_like(own), own], 1) if own.ndim == 1 else own
        np.testing.assert_allclose(logits.detach(), own, atol=1e-9)
    else:
        own = known.predict_proba(x.detach().numpy())
        np.testing.assert_allclose(logits.detach().softmax(1), own, atol=1e-6)
    assert torch.equal(logits.argmax(1), model.predict(x))
    assert torch.autograd.gradcheck(model.logits, (x[:3],))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("estimator", LINEAR, ids=repr)
def test_linear_models_have_exact_logits(estimator, classes):
    check_logits(fitted(estimator, classes))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
def test_perceptrons_have_exact_logits(activation, classes):
    check_logits(fitted(mlp(activation), classes))


@pytest.mark.parametrize(
    "scaler",
    [
        StandardScaler(),
        StandardScaler(with_mean=False),
        MinMaxScaler((-1, 1)),
        MaxAbsScaler(),
        RobustScaler(),
        make_pipeline(MaxAbsScaler(), "passthrough"),
        make_pipeline(StandardScaler(), MinMaxScaler()),
    ],
    ids=repr,
)
@pytest.mark.parametrize("last", [LogisticRegression(C=20), mlp("tanh")], ids=repr)
def test_scalers_in_front_keep_the_logits(scaler, last):
    check_logits(fitted(make_pipeline(scaler, last)))


@pytest.mark.parametrize(
    "step",
    [
        PCA(4),
        PCA(2),
        MinMaxScaler(clip=True),
        FunctionTransformer(np.round),
        FunctionTransformer(np.sqrt),
    ],
    ids=lambda step: type(step).__name__,
)
def test_other_steps_in_front_do_not(step):
    assert not hasattr(SklearnClassifier(fitted(make_pipeline(step, LinearSVC()))), "logits")


def test_what_saturates_does_not_hide_a_step():
    """Where all probabilities are 0 or 1 they agree whatever the step does."""
    known = fitted(make_pipeline(FunctionTransformer(np.sqrt), mlp("identity")))
    known[-1].intercepts_[-1][0] += 1e4
    assert not hasattr(SklearnClassifier(known), "logits")


def test_scalers_keep_the_logits_in_other_bounds_and_among_passing_steps():
    rows, y = table()
    x = 255 * X
    for steps in ((StandardScaler(),), (MinMaxScaler(), "passthrough"), (None, MaxAbsScaler())):
        known = make_pipeline(StandardScaler(), *steps, LogisticRegression()).fit(255 * rows, y)
        model = SklearnClassifier(known, bounds=(-10, 255))
        np.testing.assert_allclose(model.logits(x), known.decision_function(x.numpy()), atol=1e-9)


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_step_that_fails_at_the_bounds_leaves_predictions():
    step = FunctionTransformer(lambda x: np.log(x + 1e-300))
    rows, y = table()
    known = make_pipeline(step, StandardScaler(), LogisticRegression()).fit(rows + 1e-9, y)
    step.func = np.log
    model = SklearnClassifier(known)
    assert not hasattr(model, "logits")
    assert (model.predict(X + 1e-9).numpy() == known.predict(X.numpy() + 1e-9)).all()


def test_a_linear_svc_of_libsvm_has_logits_for_two_classes_only():
    check_logits(fitted(SVC(kernel="linear"), 2))
    model = SklearnClassifier(fitted(SVC(kernel="linear"), 3))
    assert model.estimator.coef_.shape == (3, 4)  # as if there were one for each class
    assert not hasattr(model, "logits")
    assert not hasattr(SklearnClassifier(fitted(SVC(), 2)), "logits")
    for classes in (3, 4):  # as many pairs as classes, and more
        pairs = fitted(SVC(kernel="linear", decision_function_shape="ovo"), classes)
        assert not hasattr(SklearnClassifier(pairs), "logits")


def test_layers_that_say_something_else_are_not_offered():
    class Contrary(LogisticRegression):
        def predict(self, X):  # noqa: N803
            return 1 - super().predict(X)

    class Louder(LogisticRegression):
        def decision_function(self, X):  # noqa: N803
            return 2 * super().decision_function(X)

    class InPairs(LogisticRegression):
        def get_params(self, deep=True):
            return {"decision_function_shape": "ovo"}

    class Flat(MLPClassifier):
        def predict_proba(self, X):  # noqa: N803
            return 0.5 * super().predict_proba(X) + 0.25

    assert hasattr(SklearnClassifier(fitted(LogisticRegression(), 2)), "logits")
    for known in (fitted(Contrary(), 2), fitted(Louder(), 2), fitted(Flat(solver="lbfgs"), 2)):
        assert not hasattr(SklearnClassifier(known), "logits")
    known = fitted(LogisticRegression(), 3)
    known.__class__ = InPairs
    assert not hasattr(SklearnClassifier(known), "logits")


def test_coefficients_of_something_else_are_not_taken_for_logits():
    known = fitted(KNeighborsClassifier())
    for coef in (np.ones((3, 5)), np.ones((3, 4)), np.ones((2, 4)), np.ones((3, 4, 1)), [[1.0]]):
        for intercept in (0.0, np.zeros(3), np.zeros(7), np.zeros((3, 3)), None):
            known.coef_, known.intercept_ = coef, intercept
            assert not hasattr(SklearnClassifier(known), "logits")
    known.coefs_, known.activation = [np.ones((4, 3))], "sine"
    assert not hasattr(SklearnClassifier(known), "logits")


def test_warnings_of_an_estimator_are_left_to_the_filters_of_the_user():
    class Wordy(KNeighborsClassifier):
        def predict(self, X):  # noqa: N803
            warnings.warn("these are no whole numbers", stacklevel=2)
            return super().predict(X)

    known, filters = fitted(Wordy()), list(warnings.filters)
    with pytest.warns(UserWarning, match="no whole numbers"):
        model = SklearnClassifier(known)
    with pytest.warns(UserWarning, match="no whole numbers"):
        model.predict(X)
    assert list(warnings.filters) == filters


def test_a_decision_value_for_each_pair_is_no_score():
    for estimator in (
        SVC(decision_function_shape="ovo"),
        make_pipeline(StandardScaler(), SVC(decision_function_shape="ovo")),
    ):
        three = SklearnClassifier(fitted(estimator, 3))
        assert not hasattr(three, "scores")
        with pytest.raises(TypeError, match="got SklearnClassifier.*, a Classifier"):
            attacks.FGSM(eps=0.1)(three, X)
        assert SklearnClassifier(fitted(estimator, 2)).scores(X).shape == (30, 2)
    assert SklearnClassifier(fitted(SVC(), 3)).scores(X).shape == (30, 3)
    assert SklearnClassifier(fitted(OneVsOneClassifier(LinearSVC()), 3)).scores(X).shape == (30, 3)


def test_a_decision_function_of_pairs_under_another_name_is_no_score():
    class Pairs(SVC):
        def decision_function(self, X):  # noqa: N803
            return np.zeros((len(X), 6))

    assert not hasattr(SklearnClassifier(fitted(Pairs(), 4)), "scores")


@pytest.mark.filterwarnings("ignore:The `probability` parameter")
def test_an_svc_with_probabilities_has_them_as_scores():
    try:
        svc = SVC(probability=True, random_state=0)
    except TypeError:
        pytest.skip("this scikit-learn has none")
    known = fitted(svc)
    model = SklearnClassifier(known)
    np.testing.assert_array_equal(model.scores(X), known.predict_proba(X.numpy()))
    assert (model.predict(X).numpy() == known.predict(X.numpy())).all()


def test_labels_alone():
    known = fitted(VotingClassifier([("a", LinearSVC()), ("b", KNeighborsClassifier(3))]))
    model = SklearnClassifier(known)
    assert not hasattr(model, "scores")
    with pytest.raises(AttributeError, match="returns labels only"):
        model.scores  # noqa: B018
    assert (model.predict(X).numpy() == known.predict(X.numpy())).all()


def test_encode_takes_what_holds_labels_and_names_the_unknown():
    model = SklearnClassifier(fitted(KNeighborsClassifier(), names=True))
    assert list(model.classes) == ["one", "ten", "two"]
    for labels in (["two", "one"], np.array(["two", "one"]), ("two", np.str_("one"))):
        assert model.encode(labels).tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"among \['one', 'ten', 'two'\], got \['six', 'four'\]"):
        model.encode(["six", "one", "four", "six"])
    with pytest.raises(ValueError, match=r"`labels` must have shape \(n,\), got \(1, 2\)"):
        model.encode([["one", "two"]])
    sevens = KNeighborsClassifier(1).fit([[0.0], [1.0]], [7, 3])
    ints = SklearnClassifier(sevens, labels="index")
    assert ints.encode(torch.tensor([7, 3, 3])).tolist() == [1, 0, 0]
    assert ints.predict(torch.tensor([[0.1], [0.9]])).tolist() == [1, 0]


@pytest.fixture(scope="module")
def digits():
    images, y = load_digits(return_X_y=True)
    return images[:300] / 16, y[:300]


def test_images_are_flattened_and_attacked_as_images(digits):
    rows, y = digits
    known = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(rows, y)
    model = SklearnClassifier(known)
    x = torch.from_numpy(rows[:20]).float().view(-1, 1, 8, 8)
    assert (model.predict(x).numpy() == known.predict(rows[:20])).all()
    for attack in (attacks.FGSM(eps=0.2), attacks.PGD(eps=0.2, steps=5), attacks.DeepFool()):
        result = attack.run(model, x, torch.from_numpy(y[:20]))
        assert result.x_adv.shape == x.shape
        assert result.x_adv.dtype == torch.float32
        assert result.success.float().mean() > 0.8
        assert torch.equal(result.success, model.predict(result.x_adv) != torch.from_numpy(y[:20]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_floating_dtype_is_taken(dtype):
    x = X.to(dtype)
    for estimator in (LogisticRegression(C=20), RandomForestClassifier(3, random_state=0)):
        known = fitted(estimator)
        model = SklearnClassifier(known)
        assert (model.predict(x).numpy() == known.predict(x.double().numpy())).all()
        assert model.scores(x).dtype == torch.float64


def test_the_estimator_sees_the_dtype_of_x_and_never_x_itself():
    class Nosy(DecisionTreeClassifier):
        def predict(self, X):  # noqa: N803
            self.saw = X.dtype
            X[:] = 0
            return super().predict(X)

    model = SklearnClassifier(fitted(Nosy()))
    x = X.float().half().float()
    before = x.clone()
    model.predict(x)
    assert model.estimator.saw == np.float32
    model.predict(x.half())
    assert model.estimator.saw == np.float32
    assert torch.equal(x, before)


def test_float32_near_the_boundary_is_predicted_as_the_logits_say():
    known = fitted(make_pipeline(StandardScaler(), LogisticRegression(C=20)), 2)
    model = SklearnClassifier(known)
    x_adv = attacks.FAB(steps=10)(model, torch.from_numpy(table(2)[0]).float())
    assert torch.equal(model.predict(x_adv), model.logits(x_adv).argmax(1))


def test_input_shape_is_what_the_estimator_sees():
    def flat(images):
        assert images.shape[1:] == (2, 2)
        return images.reshape(len(images), -1)

    known = fitted(make_pipeline(FunctionTransformer(), KNeighborsClassifier(3)))
    known.steps[0] = ("flat", FunctionTransformer(flat))
    model = SklearnClassifier(known, input_shape=(2, 2))
    expected = known.predict(ROWS[:30].reshape(-1, 2, 2))
    assert (model.predict(X).numpy() == expected).all()
    assert (model.predict(X.view(-1, 1, 2, 2)).numpy() == expected).all()
    with pytest.raises(ValueError, match=r"4 features \(input_shape\), got 3 in shape \(2, 3\)"):
        model.predict(torch.zeros(2, 3))
    assert hasattr(SklearnClassifier(fitted(LinearSVC()), input_shape=(4,)), "logits")
    with pytest.raises(ValueError, match=r"`input_shape` must be \(4,\), .*, got \(5,\)"):
        SklearnClassifier(fitted(LinearSVC()), input_shape=(5,))
    for wrong, error in (((0, 4), ValueError), ((), ValueError), (4, TypeError), ("4", TypeError)):
        with pytest.raises(error, match="input_shape"):
            SklearnClassifier(known, input_shape=wrong)


@pytest.mark.parametrize("ask", ["predict", "scores", "logits"])
def test_the_wrong_number_of_features(ask):
    model = SklearnClassifier(fitted(LogisticRegression()))
    said = (
        r"`x` must have 4 features \(the estimator's n_features_in_\), got 6 in shape \(2, 3, 2\)"
    )
    with pytest.raises(ValueError, match=said):
        getattr(model, ask)(torch.zeros(2, 3, 2))


def test_an_empty_batch():
    model = SklearnClassifier(fitted(LogisticRegression()))
    x = X[:0]
    assert (model.predict(x).shape, model.predict(x).dtype) == ((0,), torch.int64)
    assert model.scores(x).shape == model.logits(x).shape == (0, 3)


def test_what_is_refused():
    several = np.stack([Y, Y], 1)
    for wrong, error, said in (
        (LogisticRegression, TypeError, "must be fitted, got the class LogisticRegression"),
        (LogisticRegression(), ValueError, "must be fitted, got LogisticRegression before its fit"),
        (make_pipeline(StandardScaler(), SVC()), ValueError, "got Pipeline before its fit"),
        (3, TypeError, "`estimator` must have a method predict, got int"),
        (StandardScaler().fit(ROWS), TypeError, "must have a method predict, got StandardScaler"),
        (LinearRegression().fit(ROWS, Y), TypeError, "classifier with classes_, got LinearRegr"),
        (
            IsolationForest(n_estimators=2).fit(ROWS),
            TypeError,
            "classifier with classes_, got IsolationForest",
        ),
        (
            DecisionTreeClassifier().fit(ROWS, several),
            TypeError,
            "got DecisionTreeClassifier, which returns several",
        ),
        (
            MLPClassifier(3, max_iter=1),
            TypeError,
            r"got shape \(8, 3\) for 8 samples from MLPClassifier",
        ),
        (
            DummyClassifier().fit(ROWS, 0 * Y),
            ValueError,
            r"at least two classes, got DummyClassifier with the classes \[.*0",
        ),
    ):
        if isinstance(wrong, MLPClassifier):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wrong.fit(ROWS, np.eye(3, dtype=int)[Y])
        with pytest.raises(error, match=said):
            SklearnClassifier(wrong)
    with pytest.raises(ValueError, match="`bounds` must be two finite numbers"):
        SklearnClassifier(fitted(LinearSVC()), bounds=(1, 0))


def test_scores_that_are_not_finite_or_of_the_wrong_shape():
    class Odd(KNeighborsClassifier):
        def predict_proba(self, X):  # noqa: N803
            p = np.full((len(X), self.wide), 1 / self.wide)
            p[X[:, 0] < 0] = np.nan
            return p

    known = fitted(Odd(3))
    known.wide = 3
    model = SklearnClassifier(known, bounds=(-1, 1))
    x = X.clone()
    model.scores(x)
    x[4, 0] = -0.5
    with pytest.raises(ValueError, match="NaN or infinity .sample 4"):
        model.scores(x)
    known.wide = 2
    with pytest.raises(ValueError, match=r"must return scores of shape \(30, 3\).*\(30, 2\)"):
        model.scores(X)


def test_an_estimator_that_takes_no_made_up_points_is_taken():
    rows = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    known = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(rows, [0, 1, 1, 0])
    model = SklearnClassifier(known)
    assert model.predict(torch.from_numpy(rows)).tolist() == [0, 1, 1, 0]
    assert model.scores(torch.from_numpy(rows)).shape == (4, 2)
    assert not hasattr(model, "logits")


def test_an_estimator_of_another_kind_needs_predict_and_classes_only():
    class Own:
        classes_ = ("low", "high")

        def predict(self, rows):
            return np.where(rows[:, :1] > 0.5, "high", "low")  # (n, 1), as some do

    model = SklearnClassifier(Own())
    assert model.predict(torch.tensor([[0.2], [0.8]])).tolist() == [0, 1]
    assert model.num_classes == 2


def test_feature_names_are_no_reason_to_warn():
    known = fitted(DecisionTreeClassifier(random_state=0))
    known.feature_names_in_ = np.array(["a", "b", "c", "d"], dtype=object)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        expected = known.predict(X.numpy())
    model = SklearnClassifier(known)
    assert (model.predict(X).numpy() == expected).all()
    model.scores(X)


def test_the_random_state_of_numpy_is_left_alone():
    before = np.random.get_state()[1].copy()
    SklearnClassifier(fitted(LogisticRegression())).predict(X)
    assert (np.random.get_state()[1] == before).all()


def test_attacks_on_linear_models_match_the_closed_form():
    known = fitted(LogisticRegression(C=20), 2)
    model = SklearnClassifier(known, bounds=(-9, 9))
    x = torch.from_numpy(table(2)[0][:20])
    z, w = known.decision_function(x.numpy()), known.coef_[0]
    for norm, dual in (("l2", 2), ("linf", 1)):
        distance = torch.from_numpy(np.abs(z) / np.linalg.norm(w, dual))
        found = attacks.DeepFool(norm=norm, overshoot=1e-6).run(model, x)
        assert found.success.all()
        assert (found.distance >= distance * (1 - 1e-9)).all()
        assert (found.distance <= distance * 1.001).all()
        for ratio in (0.999, 1.001):
            result = attacks.FGM(eps=ratio * distance, norm=norm).run(model, x)
            assert (result.success == (ratio > 1)).all()


def test_it_is_copied_and_pickled():
    model = SklearnClassifier(fitted(make_pipeline(StandardScaler(), mlp())))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.logits(X), model.logits(X))
        assert torch.equal(twin.predict(X), model.predict(X))
    assert repr(model) == "SklearnClassifier(Pipeline, bounds=(0, 1))"


def check_boosted(estimator):
    known = fitted(estimator)
    model = advkit.as_classifier(known)
    assert (model.predict(X).numpy() == known.predict(X.numpy())).all()
    np.testing.assert_allclose(model.scores(X), known.predict_proba(X.numpy()), rtol=1e-6)
    assert (model.predict(X).numpy() == Y[:30]).mean() > 0.8
    assert not hasattr(model, "logits")
    with pytest.raises(ValueError, match="got 2 in shape"):
        model.predict(X[:, :2])
    with pytest.raises(ValueError, match="before its fit"):
        SklearnClassifier(estimator)


def test_xgboost():
    xgboost = pytest.importorskip("xgboost")
    check_boosted(xgboost.XGBClassifier(n_estimators=5, max_depth=3, n_jobs=1))


def test_lightgbm():
    lightgbm = pytest.importorskip("lightgbm")
    check_boosted(
        lightgbm.LGBMClassifier(n_estimators=5, min_child_samples=5, n_jobs=1, verbose=-1)
    )


def test_masked_answers_are_refused():
    class Hides(LogisticRegression):
        def predict(self, X):  # noqa: N803 - scikit-learn's name
            return np.ma.masked_equal(super().predict(X), 1)

    X = np.array([[0.1, 0.2], [0.8, 0.9], [0.2, 0.1], [0.9, 0.8]])
    model = SklearnClassifier(Hides().fit(X, [0, 1, 0, 1]))
    with pytest.raises(ValueError, match="estimator's `predict` must not hold masked values"):
        model.predict(torch.from_numpy(X))
