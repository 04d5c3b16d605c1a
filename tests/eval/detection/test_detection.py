"""Detection and classification scores against definitions written out by hand."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from advkit import attacks
from advkit.detectors.collect import collect
from advkit.detectors.forest import OutputForest
from advkit.eval.detection.binary import detection_scores
from advkit.eval.detection.bootstrap import Estimate, Ranking, bootstrap
from advkit.eval.detection.multiclass import classification_scores
from tests.toys import answers, convnet, images


def auroc(wrong, score):
    """Pairs in the right order, ties counted as one half."""
    pairs = score[wrong][:, None] - score[~wrong]
    return ((pairs > 0) + (pairs == 0) / 2).mean()


def average_precision(wrong, score):
    """Precision at the threshold of each adversarial row."""
    return np.mean([wrong[score >= s].mean() for s in score[wrong]])


def tpr_at(wrong, score, fpr):
    """The best of all thresholds, tried one by one, at most a share of the clean rows above."""
    tried = [-np.inf, *score, np.inf]
    return max((score[wrong] > t).mean() for t in tried if (score[~wrong] > t).mean() <= fpr)


def f1(wrong, alarm):
    return 2 * (wrong & alarm).sum() / (wrong.sum() + alarm.sum())


def table(n=200, seed=0, levels=12):
    """Rows with ties: which are adversarial, how suspicious, of which attack, of which image."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < 0.6
    anomaly_score = np.round(levels * (rng.random(n) + 0.4 * wrong)) / levels
    attack = np.where(wrong, rng.choice(["FGSM(eps=0.1)", "PGD"], n), "clean")
    return wrong, anomaly_score, attack, rng.integers(0, n // 4, n)


def test_figures_are_those_of_their_definitions():
    wrong, anomaly_score, attack, _ = table()
    scores = detection_scores(
        wrong, anomaly_score, attack=attack, threshold=0.75, fpr=(0.0, 0.05, 0.3), bootstrap=5
    )
    groups = {"": scores.overall, **scores.per_attack}
    assert set(groups) == {"", "FGSM(eps=0.1)", "PGD"}
    for name, found in groups.items():
        part = ~wrong | (attack == name) if name else np.ones(200, dtype=bool)
        w, s = wrong[part], anomaly_score[part]
        assert found.rows == w.sum()
        assert float(found.auroc) == pytest.approx(auroc(w, s))
        assert float(found.ap) == pytest.approx(average_precision(w, s))
        assert list(found.tpr) == [0.0, 0.05, 0.3]
        for fpr, figure in found.tpr.items():
            assert float(figure) == pytest.approx(tpr_at(w, s, fpr))
        assert float(found.recall) == pytest.approx((s[w] > 0.75).mean())
        assert float(found.f1) == pytest.approx(f1(w, s > 0.75))
    assert float(scores.false_positive_rate) == pytest.approx((anomaly_score[~wrong] > 0.75).mean())
    assert (anomaly_score == 0.75).any()  # which are no alarms


def test_without_a_threshold_there_is_no_recall():
    wrong, anomaly_score, *_ = table()
    scores = detection_scores(wrong, anomaly_score, bootstrap=3)
    assert scores.overall.recall is scores.overall.f1 is scores.false_positive_rate is None
    assert scores.per_attack == {}
    assert list(scores.overall.tpr) == [0.01, 0.05]
    assert "recall" not in str(scores)


@settings(deadline=None, max_examples=80)
@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 3)), min_size=2,
                  max_size=25),
    fpr=st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.5, 0.9]),
)  # fmt: skip
def test_weights_are_as_good_as_rows_repeated(rows, fpr):
    wrong, score, times = (np.array(column) for column in zip(*rows, strict=True))
    wrong, score = wrong.astype(bool), score / 6
    sums = Ranking(wrong, score).sums(np.stack([times, np.ones(len(rows))]).astype(float))
    figures = (sums.auroc(), sums.average_precision(), sums.recall_at(fpr))
    for i, repeat in enumerate((times, np.ones(len(rows), dtype=int))):
        w, s = np.repeat(wrong, repeat), np.repeat(score, repeat)
        if not w.any() or w.all():
            assert all(np.isnan(figure[i]) for figure in figures)
            continue
        assert figures[0][i] == pytest.approx(roc_auc_score(w, s))
        assert figures[1][i] == pytest.approx(average_precision_score(w, s))
        assert figures[2][i] == pytest.approx(tpr_at(w, s, fpr))


def test_intervals_are_percentiles_of_resamples_of_whole_samples():
    """The same draws, resample by resample, with the rows of a sample in a row."""
    wrong, anomaly_score, attack, samples = table(80)
    draws = 60
    scores = detection_scores(
        wrong, anomaly_score, attack=attack, samples=samples, threshold=0.75, fpr=(0.1,),
        bootstrap=draws, seed=3,
    )  # fmt: skip
    names, count = np.unique(samples), len(np.unique(samples))
    found = {"auroc": [], "ap": [], "tpr": [], "recall": [], "f1": [], "pgd": [], "false": []}
    drawn = np.random.default_rng(3).integers(count, size=(draws, count))
    for chosen in drawn:
        rows = np.concatenate([np.flatnonzero(samples == names[i]) for i in chosen])
        w, s, a = wrong[rows], anomaly_score[rows], attack[rows]
        found["auroc"].append(auroc(w, s))
        found["ap"].append(average_precision(w, s))
        found["tpr"].append(tpr_at(w, s, 0.1))
        found["recall"].append((s[w] > 0.75).mean())
        found["f1"].append(f1(w, s > 0.75))
        found["false"].append((s[~w] > 0.75).mean())
        part = ~w | (a == "PGD")
        found["pgd"].append(auroc(w[part], s[part]))
    whole = scores.overall
    pairs = {
        "auroc": whole.auroc, "ap": whole.ap, "tpr": whole.tpr[0.1], "recall": whole.recall,
        "f1": whole.f1, "pgd": scores.per_attack["PGD"].auroc, "false": scores.false_positive_rate,
    }  # fmt: skip
    for name, figure in pairs.items():
        low, high = np.quantile(found[name], [0.025, 0.975])
        assert (figure.low, figure.high) == pytest.approx((low, high)), name
        assert figure.low <= figure.value <= figure.high


def test_rows_of_one_image_widen_the_interval():
    """Ten copies of each row are no ten rows."""
    wrong, anomaly_score, *_ = table(40, levels=1000)
    copies = [np.repeat(v, 10) for v in (wrong, anomaly_score, np.arange(40))]

    def width(**settings):
        found = detection_scores(copies[0], copies[1], bootstrap=400, **settings).overall.auroc
        return found.high - found.low

    alone = detection_scores(wrong, anomaly_score, bootstrap=400).overall.auroc
    assert width(samples=copies[2]) == pytest.approx(alone.high - alone.low)
    assert width() < 0.5 * width(samples=copies[2])


def test_the_interval_covers_what_it_should():
    """Of many data sets of known AUROC about nineteen in twenty have it in their interval."""
    truth = 0.5 * (1 + math.erf(1 / 2))  # normals, one deviation apart
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        wrong = np.arange(120) % 2 == 0
        score = rng.normal(size=120) + wrong
        found = detection_scores(wrong, score, bootstrap=200, seed=seed).overall.auroc
        hits += found.low <= truth <= found.high
    assert 50 <= hits <= 60


def test_the_seed_and_the_parts_do_not_matter_to_what_is_drawn(monkeypatch):
    wrong, anomaly_score, attack, samples = table()

    def scores(seed):
        return detection_scores(
            wrong, anomaly_score, attack=attack, samples=samples, bootstrap=40, seed=seed
        ).to_dict()

    whole, other = scores(0), scores(1)
    assert whole != other
    assert whole["overall"]["auroc"]["value"] == other["overall"]["auroc"]["value"]
    monkeypatch.setattr("advkit.eval.detection.bootstrap._WEIGHTS_AT_ONCE", 900)
    assert scores(0) == whole


def test_each_sample_is_drawn_as_often_as_any():
    seen = bootstrap(
        lambda w: {"rows": w.sum(1), **{i: w[:, i] for i in range(3)}}, np.array([0, 0, 1]), 4000, 0
    )
    assert set(seen["rows"]) == {2, 3, 4}
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0] + seen[2], np.full(4000, 2))
    assert abs(seen[0].mean() - 1) < 0.05


def test_resamples_without_clean_or_adversarial_rows_are_left_aside():
    scores = detection_scores([0, 1], [0.1, 0.9], threshold=0.5, bootstrap=50)
    assert scores.overall.auroc == Estimate(1.0, 1.0, 1.0)
    assert scores.overall.tpr[0.01] == Estimate(1.0, 1.0, 1.0)
    assert scores.overall.f1 == Estimate(1.0, 1.0, 1.0)
    assert scores.false_positive_rate == Estimate(0.0, 0.0, 0.0)
    nothing = Estimate.of(0.5, np.full(3, np.nan))
    assert math.isnan(nothing.low)
    assert nothing.to_dict() == {"value": 0.5, "low": None, "high": None}
    assert str(Estimate(math.nan, math.nan, math.nan)) == "-"


def test_f1_too_is_of_resamples_with_adversarial_rows():
    f1 = detection_scores([0, 1], [0.9, 0.9], threshold=0.5, bootstrap=60).overall.f1
    assert (f1.value, f1.low, f1.high) == pytest.approx((2 / 3, 2 / 3, 1))


def test_a_rate_between_points_on_a_line_takes_the_lower_one():
    """Three places of one clean and one adversarial row each: the curve is straight."""
    scores = detection_scores([0, 1] * 3, [1, 1, 2, 2, 3, 3], fpr=(0.4, 0.7), bootstrap=2)
    assert [f.value for f in scores.overall.tpr.values()] == pytest.approx([1 / 3, 2 / 3])


def test_thousands_of_rows_take_seconds():
    wrong, anomaly_score, attack, samples = table(20_000, levels=10**6)
    scores = detection_scores(wrong, anomaly_score, attack=attack, samples=samples, bootstrap=100)
    assert scores.overall.auroc.low < scores.overall.auroc.value < scores.overall.auroc.high


def test_detection_prints_as_a_table_and_converts_to_json():
    wrong, anomaly_score, attack, samples = table()
    scores = detection_scores(
        wrong, anomaly_score, attack=attack, samples=samples, threshold=0.75, bootstrap=20
    )
    text = str(scores)
    assert max(map(len, text.splitlines())) <= 100
    row = next(line for line in text.splitlines() if line.startswith("PGD"))
    found = scores.per_attack["PGD"]
    figures = [found.auroc, found.ap, found.tpr[0.01], found.tpr[0.05], found.recall, found.f1]
    assert row.split() == ["PGD", str(found.rows), *(f"{f.value:.3f}" for f in figures)]
    assert f"{found.auroc.low:.3f}-{found.auroc.high:.3f}" in text
    clean = int((~wrong).sum())
    assert f"{clean} clean rows" in text
    assert f"{clean // 100} at 1 %, {clean // 20} at 5 %" in text
    assert "rows of a sample are resampled" in text
    assert "At the threshold 0.75 the false-positive rate is" in " ".join(text.split())
    plain = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert plain["per_attack"]["PGD"]["tpr"]["0.05"] == found.tpr[0.05].to_dict()
    assert plain["overall"]["rows"] == wrong.sum()
    assert plain["clean_rows"] == clean
    alone = str(detection_scores(wrong, anomaly_score, bootstrap=2))
    assert "each row is resampled independently" in " ".join(alone.split())


@pytest.mark.parametrize("log_x", [False, True])
def test_the_plot_has_a_curve_for_each_attack(log_x):
    wrong, anomaly_score, attack, _ = table()
    scores = detection_scores(wrong, anomaly_score, attack=attack, bootstrap=2)
    (axes,) = scores.plot(log_x=log_x).axes
    curves = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert list(curves) == ["all attacks", *scores.per_attack, "chance"]
    clean = (~wrong).sum()
    for name in scores.per_attack:
        x, y = curves[name].T
        own, threshold = anomaly_score[attack == name], np.unique(anomaly_score)[11]
        rate = (anomaly_score[~wrong] >= threshold).mean()
        assert (own >= threshold).mean() == pytest.approx(np.interp(rate, x, y))
        assert x.min() == (0.5 / clean if log_x else 0)
    assert axes.get_xscale() == ("log" if log_x else "linear")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"adversarial": [0.0, 1.0, 1.0]}, TypeError, "`adversarial` must be bools, or 0 and 1"),
        ({"adversarial": [0, 1, 2]}, ValueError, "`adversarial` must be 0 or 1"),
        ({"adversarial": [[0], [1], [1]]}, ValueError, r"got shape \(3, 1\)"),
        ({"adversarial": [1, 1, 1]}, ValueError, "both clean and adversarial rows, got 0 and 3"),
        ({"adversarial": [0, 0, 0]}, ValueError, "got 3 and 0"),
        (
            {"anomaly_score": [0.1, 0.2]},
            ValueError,
            r"`anomaly_score` must have shape \(3,\), got \(2,\)",
        ),
        (
            {"anomaly_score": [0.1, np.nan, np.inf]},
            ValueError,
            "finite, got NaN or infinity .rows 1, 2",
        ),
        ({"anomaly_score": ["a", "b", "c"]}, TypeError, "`anomaly_score` must be numbers"),
        ({"attack": ["a", "b"]}, ValueError, r"`attack` must have shape \(3,\)"),
        ({"samples": [0, 1]}, ValueError, r"`samples` must have shape \(3,\)"),
        ({"threshold": np.nan}, ValueError, "`threshold` must be finite"),
        ({"threshold": "high"}, TypeError, "`threshold` must be a number"),
        ({"fpr": (0.1, 1.0)}, ValueError, "`fpr` must lie in .0, 1., got 1"),
        ({"fpr": (np.nan,)}, ValueError, "`fpr` must lie in"),
        ({"bootstrap": 0}, ValueError, "`bootstrap` must be at least 1"),
        ({"seed": 0.5}, TypeError, "`seed` must be an int"),
    ],
)
def test_wrong_columns_are_refused(change, error, words):
    given = {"adversarial": [0, 1, 1], "anomaly_score": [0.1, 0.2, 0.3], **change}
    with pytest.raises(error, match=words):
        detection_scores(**given)


def test_columns_may_be_tensors():
    scores = detection_scores(
        torch.tensor([False, True]), torch.tensor([0.1, 0.3]), samples=torch.tensor([4, 4]),
        bootstrap=2,
    )  # fmt: skip
    assert float(scores.overall.auroc) == 1


def test_a_forest_and_a_table_fit_in():
    x = images(60)
    made = {"FGSM": attacks.FGSM(eps=0.2), "PGD": attacks.PGD(eps=0.2, steps=5)}
    learnt, tried = (
        collect({"net": convnet()}, made, part, answers(convnet(), part), outputs="logits")
        for part in (x[:30], x[30:])
    )
    forest = OutputForest(outputs="logits", random_state=0)
    forest.fit(learnt.outputs, learnt.adversarial)
    scores = detection_scores(
        tried.adversarial, forest.anomaly_score(tried.outputs), attack=tried.attack,
        samples=tried.groups, bootstrap=20,
    )  # fmt: skip
    assert list(scores.per_attack) == ["FGSM", "PGD"]
    assert scores.overall.rows == 60
    forest.fit(learnt.outputs, learnt.attack)
    kinds = classification_scores(
        tried.attack, forest.predict_proba(tried.outputs), forest.classes_, bootstrap=20
    )
    assert kinds.classes == ("FGSM", "PGD", "clean")
    assert kinds.confusion.sum() == 90


CLASSES = ["clean", "FGSM", "PGD"]


def guesses(n=150, seed=0):
    """True classes and probabilities that know something of them."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    raw = rng.random((n, 3)) + 0.5 * np.eye(3)[y]
    return np.array(CLASSES)[y], raw / raw.sum(1, keepdims=True), y


def test_classes_are_scored_one_against_the_rest():
    names, p, y = guesses()
    scores = classification_scores(names, p, CLASSES, bootstrap=3)
    given = p.argmax(1)
    expected = np.zeros((3, 3))
    for true, said in zip(y, given, strict=True):
        expected[true, said] += 1
    np.testing.assert_array_equal(scores.confusion, expected)
    precision = []
    for i, name in enumerate(CLASSES):
        found = scores.per_class[name]
        precision.append(average_precision(y == i, p[:, i]))
        assert found.rows == (y == i).sum()
        assert float(found.ap) == pytest.approx(precision[-1])
        assert float(found.recall) == pytest.approx((given[y == i] == i).mean())
        assert float(found.f1) == pytest.approx(f1(y == i, given == i))
    assert float(scores.mean_ap) == pytest.approx(np.mean(precision))


def test_intervals_of_classes_are_percentiles_of_resamples_too():
    names, p, y = guesses(60)
    samples = np.arange(60) // 3
    scores = classification_scores(names, p, CLASSES, samples=samples, bootstrap=50, seed=2)
    found = {"ap": [], "mean": [], "recall": [], "f1": []}
    for chosen in np.random.default_rng(2).integers(20, size=(50, 20)):
        rows = (3 * chosen[:, None] + np.arange(3)).ravel()
        t, given = y[rows], p[rows].argmax(1)
        ap = [average_precision(t == i, p[rows, i]) for i in range(3)]
        found["ap"].append(ap[1])
        found["mean"].append(np.mean(ap))
        found["recall"].append((given[t == 1] == 1).mean())
        found["f1"].append(f1(t == 1, given == 1))
    one = scores.per_class["FGSM"]
    pairs = {"ap": one.ap, "mean": scores.mean_ap, "recall": one.recall, "f1": one.f1}
    for name, figure in pairs.items():
        low, high = np.quantile(found[name], [0.025, 0.975])
        assert (figure.low, figure.high) == pytest.approx((low, high)), name


def test_a_class_without_rows_has_no_figures_and_no_part_in_the_mean():
    names, p, y = guesses()
    rows = y != 1
    p[:, 1] = 0
    scores = classification_scores(names[rows], p[rows], CLASSES, bootstrap=10)
    absent = scores.per_class["FGSM"]
    assert absent.rows == 0
    assert math.isnan(absent.ap.value)
    assert math.isnan(absent.recall.value)
    assert math.isnan(absent.f1.value)
    mean = np.mean([scores.per_class[name].ap.value for name in ("clean", "PGD")])
    assert float(scores.mean_ap) == pytest.approx(mean)
    assert scores.mean_ap.low <= scores.mean_ap.value <= scores.mean_ap.high
    plain = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert plain["per_class"]["FGSM"]["ap"]["value"] is None
    row = next(line for line in str(scores).splitlines() if line.startswith("FGSM"))
    assert row.split() == ["FGSM", "0", "-", "-", "-"]
    drawn = [text.get_text() for text in scores.plot().axes[0].texts]
    assert drawn[3:6] == ["-", "-", "-"]


def test_classification_prints_converts_and_plots():
    names, p, _ = guesses()
    scores = classification_scores(names, p, CLASSES, bootstrap=5)
    text = str(scores)
    assert "each class against all others" in text
    assert f"{float(scores.mean_ap):.3f}" in text
    plain = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert plain["confusion"] == scores.confusion.tolist()
    assert plain["per_class"]["PGD"]["f1"] == scores.per_class["PGD"].f1.to_dict()
    axes = scores.plot().axes[0]
    assert axes.get_xlabel() == "assigned class"
    assert [label.get_text() for label in axes.get_yticklabels()] == CLASSES
    share = 100 * scores.confusion / scores.confusion.sum(1, keepdims=True)
    assert [t.get_text() for t in axes.texts] == [f"{v:.1f}" for v in share.ravel()]


def test_classes_may_be_numbers():
    _, p, y = guesses()
    scores = classification_scores(y, p, [0, 1, 2], bootstrap=2)
    assert scores.classes == ("0", "1", "2")
    as_names = classification_scores(np.array(CLASSES)[y], p, CLASSES, bootstrap=2)
    assert scores.mean_ap == as_names.mean_ap
    np.testing.assert_array_equal(scores.confusion, as_names.confusion)


@pytest.mark.parametrize(
    ("y", "p", "classes", "words"),
    [
        (["a", "b"], np.eye(2), ["a"], "`classes` must be at least 2"),
        (["a", "b"], np.eye(2), ["a", "a"], "`classes` must be at least 2 different"),
        (["a", "c"], np.eye(2), ["a", "b"], r"among the classes \['a', 'b'\], got 'c'"),
        (["a", "a"], np.eye(2), ["a", "b"], "`y` must hold at least 2 classes"),
        ([["a"], ["b"]], np.eye(2), ["a", "b"], r"`y` must have shape \(n,\)"),
        (["a", "b"], np.eye(3), ["a", "b"], r"`probabilities` must have shape \(2, 2\)"),
        (["a", "b"], 2 * np.eye(2), ["a", "b"], r"in \[0, 1\], got values in \[0, 2\]"),
        (["a", "b"], -np.eye(2), ["a", "b"], r"got values in \[-1, -?0\]"),
        (["a", "b"], np.eye(2) * np.nan, ["a", "b"], "`probabilities` must be finite"),
    ],
)
def test_wrong_classes_are_refused(y, p, classes, words):
    with pytest.raises(ValueError, match=words):
        classification_scores(y, p, classes)
