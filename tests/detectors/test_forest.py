"""Forests of outputs: scikit-learn's answers to the last bit, labels, files, and bad input."""

import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from advkit.detectors.features import Features
from advkit.detectors.flat_forest import FlatForest
from advkit.detectors.forest import OutputForest


@parametrize_with_checks(
    [
        OutputForest(n_estimators=5),
        OutputForest(n_estimators=5, features=("sorted", "margin", "entropy"), outputs="logits"),
        OutputForest(ExtraTreesClassifier(5), features=("margin", "raw")),
        OutputForest(LogisticRegression()),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the checks do, not of ours
        check(estimator)


def data(n=300, width=4, classes=2, seed=0):
    """Probabilities and labels that have to do with them, in part."""
    rng = np.random.default_rng(seed)
    x = rng.dirichlet(np.ones(width), n)
    y = (classes * (0.7 * x.max(1) + 0.3 * rng.uniform(size=n))).astype(int) % classes
    return x.astype(np.float32), y


def same_bits(forest, x):
    """Whether a compiled forest says what scikit-learn says, one by one and all together."""
    expected = forest.estimator_.predict_proba(forest.features_(x))
    np.testing.assert_array_equal(forest.predict_proba(x), expected)
    alone = np.concatenate([forest.predict_proba(x[i : i + 1]) for i in range(len(x))])
    np.testing.assert_array_equal(alone, expected)
    np.testing.assert_array_equal(forest.predict(x), forest.estimator_.predict(forest.features_(x)))


@pytest.mark.parametrize(
    "estimator",
    [
        RandomForestClassifier(40),
        RandomForestClassifier(13, max_depth=1),
        RandomForestClassifier(1, min_samples_leaf=20),
        RandomForestClassifier(120, max_depth=3, class_weight="balanced"),
        RandomForestClassifier(7, max_leaf_nodes=6, bootstrap=False, max_features=None),
        ExtraTreesClassifier(20),
        DecisionTreeClassifier(),
        DecisionTreeClassifier(min_impurity_decrease=1.0),  # a root that is a leaf
        ExtraTreeClassifier(max_depth=4),
    ],
    ids=repr,
)
@pytest.mark.parametrize(("width", "classes"), [(4, 2), (30, 12)])
def test_answers_are_scikit_learns_to_the_last_bit(estimator, width, classes):
    x, y = data(width=width, classes=classes)
    forest = OutputForest(estimator, random_state=0).fit(x[:200], y[:200])
    same_bits(forest, x[150:])


@pytest.mark.parametrize("features", [("sorted",), ("margin", "entropy"), ("raw", "margin")])
def test_answers_on_other_features(features):
    x, y = data()
    same_bits(OutputForest(n_estimators=10, features=features, random_state=0).fit(x, y), x[:60])


def test_thresholds_that_a_float32_cannot_hold():
    """Between neighbours among the floats the threshold is no float32, and rounds to either."""
    values = np.float32(1e6) + np.arange(40, dtype=np.float32) / 16
    x = values[:, None]
    y = np.arange(40) % 2
    tree = OutputForest(DecisionTreeClassifier()).fit(x, y)
    thresholds = tree.estimator_.tree_.threshold
    assert (thresholds != thresholds.astype(np.float32)).sum() > 20
    assert tree.predict(x).tolist() == y.tolist()
    same_bits(tree, x)
    same_bits(tree, -x)


def test_values_that_equal_a_threshold_go_left():
    x = np.repeat(np.arange(8.0), 3)[:, None]
    forest = OutputForest(n_estimators=20, random_state=1).fit(x, np.arange(24) // 3 % 2)
    same_bits(forest, np.arange(-1, 9, 0.5, dtype=np.float32)[:, None])


def test_rows_in_float64_are_rounded_as_scikit_learn_rounds_them():
    x, y = data()
    fine = x.astype(np.float64) * (1 + 3e-8)
    same_bits(OutputForest(n_estimators=10, random_state=0).fit(fine, y), fine[:50])


def test_more_rows_than_are_walked_at_a_time():
    x, y = data(n=9000)
    forest = OutputForest(n_estimators=3, random_state=0).fit(x[:200], y[:200])
    np.testing.assert_array_equal(forest.predict_proba(x), forest.estimator_.predict_proba(x))


@pytest.mark.parametrize("order", ["F", "strided", "list"])
def test_rows_in_any_form(order):
    x, y = data()
    forest = OutputForest(n_estimators=10, random_state=0).fit(x, y)
    expected = forest.predict_proba(x[:20])
    forms = {"F": np.asfortranarray(x[:20]), "strided": np.repeat(x[:20], 2, axis=1)[:, ::2],
             "list": x[:20].tolist()}  # fmt: skip
    np.testing.assert_array_equal(forest.predict_proba(forms[order]), expected)
    np.testing.assert_array_equal(forest.predict_proba(forms[order][:1]), expected[:1])


def test_several_threads_ask_one_forest():
    x, y = data(n=400)
    forest = OutputForest(n_estimators=30, random_state=0).fit(x, y)
    expected = forest.predict_proba(x)
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda i: forest.predict_proba(x[i : i + 1]), range(400)))
        cut = list(pool.map(lambda i: forest.predict_proba(x[i : i + 50]), range(0, 400, 50)))
    np.testing.assert_array_equal(np.concatenate(alone), expected)
    np.testing.assert_array_equal(np.concatenate(cut), expected)


def test_the_same_class_for_each_of_the_three_questions():
    x, _ = data()
    names = np.array(["clean", "fgsm", "pgd"])[x[:, :3].argmax(1)]
    for y in (names != "clean", names, names.astype(object), (names != "clean").astype(int)):
        forest = OutputForest(n_estimators=20, random_state=0).fit(x, y)
        assert (forest.predict(x) == y).mean() > 0.95
        clean = forest.predict_proba(x)[:, 0]
        np.testing.assert_array_equal(forest.anomaly_score(x), 1 - clean)
        assert forest.anomaly_score(x)[names == "clean"].max() < 0.7


def test_which_label_is_clean_can_be_said():
    x, y = data(classes=3)
    names = np.array(["a", "b", "c"])[y]
    forest = OutputForest(n_estimators=10, clean_label="b", random_state=0).fit(x, names)
    np.testing.assert_array_equal(forest.anomaly_score(x), 1 - forest.predict_proba(x)[:, 1])
    with pytest.raises(
        ValueError, match=r"`clean_label` must be one of \['a', 'b', 'c'\], got 'd'"
    ):
        OutputForest(clean_label="d").fit(x, names)
    with pytest.raises(ValueError, match=r"must have a label of clean rows .*\['a', 'b'"):
        OutputForest(n_estimators=1).fit(x, names).anomaly_score(x)
    with pytest.raises(ValueError, match="must have a label of clean rows"):
        OutputForest(n_estimators=1).fit(x, y + 1).anomaly_score(x)
    reverse = OutputForest(n_estimators=5, clean_label=True, random_state=0).fit(x, y == 0)
    np.testing.assert_allclose(reverse.anomaly_score(x), reverse.predict_proba(x)[:, 0], atol=1e-12)


def test_an_estimator_of_ones_own():
    x, y = data()
    own = make_pipeline(StandardScaler(), LogisticRegression())
    forest = OutputForest(own).fit(x, y)
    expected = clone(own).fit(x, y)
    np.testing.assert_allclose(forest.predict_proba(x), expected.predict_proba(x))
    assert not hasattr(own, "classes_")
    for kind in (RandomForestClassifier(5), ExtraTreesClassifier(5, max_depth=3)):
        expected = clone(kind).set_params(random_state=3).fit(x, y).predict_proba(x)
        found = OutputForest(kind, random_state=3).fit(x, y).predict_proba(x)
        np.testing.assert_array_equal(found, expected)
    seeded = RandomForestClassifier(5, random_state=4)
    expected = clone(seeded).fit(x, y).predict_proba(x)
    np.testing.assert_array_equal(OutputForest(seeded).fit(x, y).predict_proba(x), expected)
    with pytest.raises(TypeError, match="`estimator` must have predict_proba, got LinearSVC"):
        OutputForest(LinearSVC()).fit(x, y)
    with pytest.raises(ValueError, match="`n_estimators` must be 100 with an `estimator`, got 7"):
        OutputForest(ExtraTreesClassifier(), n_estimators=7).fit(x, y)


def test_it_takes_part_in_cross_validation_and_is_repeatable():
    x, y = data()
    forest = OutputForest(n_estimators=10, random_state=0)
    groups = np.arange(len(x)) // 5
    scores = cross_val_score(forest, x, y, groups=groups, cv=GroupKFold(3))
    assert scores.min() > 0.6
    one, other = forest.fit(x, y).predict_proba(x), clone(forest).fit(x, y).predict_proba(x)
    np.testing.assert_array_equal(one, other)


def test_bad_rows_and_labels():
    x, y = data()
    forest = OutputForest(n_estimators=5, random_state=0)
    for ask in (forest.predict, forest.predict_proba, forest.anomaly_score):
        with pytest.raises(NotFittedError):
            ask(x)
    with pytest.raises(NotFittedError):
        forest.save("nowhere.npz")
    with pytest.raises(ValueError, match=r"at least 2 classes, got one class: \[1\]"):
        forest.fit(x, np.ones(len(x), dtype=int))
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        forest.fit(x, np.linspace(0, 1, len(x)))
    forest.fit(x, y)
    for rows in (x[:1, :3], x[:5, :3], x[:5, :3].tolist()):
        with pytest.raises(ValueError, match="X has 3 features, but OutputForest is expecting 4"):
            forest.predict_proba(rows)
    for value in (np.nan, np.inf):
        broken = x.copy()
        broken[[3, 7], 1] = value
        for ask in (forest.predict_proba, forest.anomaly_score, lambda rows: forest.fit(rows, y)):
            with pytest.raises(ValueError, match="must be finite, got NaN or infinity .rows 3, 7"):
                ask(broken)
        with pytest.raises(ValueError, match="NaN or infinity .row 0"):
            forest.predict_proba(broken[3:4])
    with pytest.raises(ValueError, match="NaN or infinity .row 0"):
        forest.predict_proba(np.full((1, 4), 1e300))  # no float32
    with pytest.raises(ValueError, match="minimum of 1 is required"):
        forest.predict_proba(x[:0])
    with pytest.raises(ValueError, match="Expected 2D array"):
        forest.predict_proba(x[0])


def test_bad_options():
    x, y = data()
    with pytest.raises(ValueError, match="`n_estimators` must be at least 1, got 0"):
        OutputForest(n_estimators=0).fit(x, y)
    with pytest.raises(ValueError, match="`features` must be one of"):
        OutputForest(features=("top",)).fit(x, y)
    with pytest.raises(ValueError, match="`outputs` must be one of"):
        OutputForest(outputs="probabilities").fit(x, y)
    with pytest.raises(ValueError, match="`outputs` must be probabilities"):
        OutputForest(features=("entropy",)).fit(x + 1, y)
    with pytest.raises(ValueError, match="`outputs` must be logits"):
        OutputForest(features=("entropy",), outputs="logits").fit(x, y)


@pytest.mark.parametrize(
    "estimator",
    [None, ExtraTreesClassifier(5), DecisionTreeClassifier(), ExtraTreeClassifier()],
    ids=repr,
)
@pytest.mark.parametrize("labels", [bool, int, str, object])
def test_a_forest_survives_its_file(tmp_path, estimator, labels):
    x, y = data()
    y = (
        np.array(["clean", "pgd"])[y].astype(labels)
        if labels in (str, object)
        else y.astype(labels)
    )
    forest = OutputForest(estimator, features=("sorted", "margin"), random_state=0).fit(x, y)
    path = tmp_path / "new" / "forest.npz"
    forest.save(path)
    again = OutputForest.load(str(path))
    for rows in (x, x[:1]):
        np.testing.assert_array_equal(again.predict_proba(rows), forest.predict_proba(rows))
        np.testing.assert_array_equal(again.predict(rows), forest.predict(rows))
        np.testing.assert_array_equal(again.anomaly_score(rows), forest.anomaly_score(rows))
    assert again.get_params()["features"] == ("sorted", "margin")
    with pytest.raises(ValueError, match="X has 3 features"):
        again.predict(x[:, :3])
    again.save(path)
    third = pickle.loads(pickle.dumps(OutputForest.load(path)))
    np.testing.assert_array_equal(third.predict_proba(x), forest.predict_proba(x))


def test_a_forest_without_a_clean_label_survives_its_file(tmp_path):
    x, y = data(classes=3)
    OutputForest(n_estimators=3, outputs="logits").fit(x, y + 1).save(tmp_path / "f.npz")
    again = OutputForest.load(tmp_path / "f.npz")
    assert again.outputs == "logits"
    with pytest.raises(ValueError, match=r"must have a label of clean rows .* got \[1, 2, 3\]"):
        again.anomaly_score(x)


def test_what_is_no_forest_of_trees_is_not_saved(tmp_path):
    x, y = data()
    with pytest.raises(TypeError, match="a single tree to be saved, got LogisticRegression"):
        OutputForest(LogisticRegression()).fit(x, y).save(tmp_path / "f.npz")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The arrays of a saved forest, and rows to ask it about."""
    x, y = data()
    path = tmp_path_factory.mktemp("forest") / "f.npz"
    OutputForest(n_estimators=5, random_state=0).fit(x, y).save(path)
    with np.load(path) as arrays:
        return dict(arrays), x


def loaded(path, arrays):
    np.savez(path, **arrays)
    return OutputForest.load(path)


def at(array, index, value):
    """A copy of `array` with another value at an index."""
    array = array.copy()
    array[index] = value
    return array


def damages(arrays):
    """What may be wrong with each array of a forest, by name."""
    nodes = len(arrays["left"])
    inner = np.flatnonzero(arrays["leaf"] < 0)
    leaf = np.flatnonzero(arrays["leaf"] >= 0)
    return [
        ("left", at(arrays["left"], inner[3], inner[3])),  # would walk for ever
        ("left", at(arrays["left"], inner[3], 0)),
        ("left", at(arrays["left"], inner[3], nodes - 1)),  # the right child is beyond
        ("left", at(arrays["left"], inner[3], -1)),
        ("left", at(arrays["left"], leaf[0], leaf[0] - 1)),
        ("left", arrays["left"].astype(np.int32)),
        ("feature", at(arrays["feature"], inner[0], 4)),
        ("feature", at(arrays["feature"], inner[0], -1)),
        ("feature", arrays["feature"][:-1]),
        ("threshold", at(arrays["threshold"], inner[0], np.nan)),
        ("threshold", at(arrays["threshold"], inner[0], np.inf)),
        ("threshold", at(arrays["threshold"], leaf[-1], 0)),
        ("leaf", at(arrays["leaf"], leaf[0], len(leaf))),
        ("leaf", at(arrays["leaf"], leaf[0], -2)),
        ("leaf", at(arrays["leaf"], leaf[0], -1)),
        ("roots", at(arrays["roots"], 0, nodes)),
        ("roots", at(arrays["roots"], 0, -1)),
        ("roots", arrays["roots"][:0]),
        ("roots", arrays["roots"][:, None]),
        ("values", at(arrays["values"], (0, 0), np.nan)),
        ("values", at(arrays["values"], (0, 0), 1.5)),
        ("values", at(arrays["values"], (0, 0), -0.5)),
        ("values", arrays["values"][:, 0]),
        ("values", arrays["values"][:, :1]),
        ("values", arrays["values"].astype(np.float32)),
        ("classes", np.array([1, 1])),
        ("classes", np.array([0, 1, 2])),
        ("clean", np.array(2)),
        ("clean", np.array(-2)),
        ("width", np.array(0)),
        ("width", np.array(3)),
        ("width", np.array([4, 4])),
        ("names", np.array(["raw", "top"])),
        ("names", np.array([], dtype=str)),
        ("outputs", np.array("labels")),
        ("format", np.array("advkit output forest 0")),
        ("classes", np.array([print, len], dtype=object)),
    ]


@pytest.mark.parametrize("number", range(37))
def test_damaged_files_are_refused(archive, tmp_path, number):
    arrays, _ = archive
    name, changed = damages(arrays)[number]
    assert len(damages(arrays)) == 37
    with pytest.raises(
        ValueError,
        match=r"f\.npz (does not hold|is not)|must be a file of .*f\.npz",
    ):
        loaded(tmp_path / "f.npz", arrays | {name: changed})


def test_files_that_are_cut_or_no_archives(archive, tmp_path):
    arrays, _ = archive
    path = tmp_path / "f.npz"
    loaded(path, arrays)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no archive"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not an .npz archive"):
            OutputForest.load(path)
    with pytest.raises(ValueError, match="must hold the arrays"):
        loaded(path, {name: array for name, array in arrays.items() if name != "leaf"})
    with pytest.raises(FileNotFoundError):
        OutputForest.load(tmp_path / "absent.npz")


def test_whatever_a_file_holds_an_answer_ends_within_its_arrays(archive):
    """Random damage is either seen, or does no harm."""
    arrays, x = archive
    rng = np.random.default_rng(0)
    numbers = ["roots", "left", "feature", "threshold", "leaf", "values"]
    seen = 0
    for _ in range(300):
        name = rng.choice(numbers)
        damaged = arrays[name].copy()
        entry = tuple(rng.integers(damaged.shape))
        damaged[entry] = rng.choice(
            [damaged.flat[rng.integers(damaged.size)], rng.integers(-9, 99)]
        )
        flat = FlatForest(**{key: arrays[key] for key in numbers} | {name: damaged})
        try:
            flat.check(Features(("raw",), "scores").columns(4))
        except ValueError:
            seen += 1
            continue
        for rows in (x[:1], x):
            p = flat.probabilities(rows)
            assert np.isfinite(p).all()
            assert (p >= 0).all()
    assert 50 < seen < 300
