"""The parts of the study that could be wrong without anybody noticing."""

import json

import numpy as np
import pytest
import torch

from advkit.data import digits


class Recorder:
    """An estimator that keeps its rows, and answers 0 to all of them."""

    def fit(self, rows, labels):
        self.learnt = rows

    def predict_proba(self, rows):
        self.rows = rows
        return np.eye(10)[[0] * len(rows)]


def test_text_carries_every_float32(study):
    draw = np.random.default_rng(0)
    levels = (draw.integers(0, 256, (3, 1, 4, 4)) / 255).astype(np.float32)
    images = np.concatenate([levels, levels + np.float32(0.1), draw.random((2, 1, 4, 4))])
    images = images.astype(np.float32)
    estimator = Recorder()
    scores = study.over_text(study.service(estimator))(images)
    assert np.array_equal(estimator.rows, images.reshape(8, 16))
    assert scores == [[1.0] + [0.0] * 9] * 8


def images(study, n):
    """`n` digits of scikit-learn's, as large as those of MNIST."""
    few = digits("train").head(n)
    return study.Dataset(torch.nn.functional.interpolate(few.x, (28, 28)), few.y, few.name)


def test_a_tenth_is_held_out(study):
    x = torch.rand(20, 1, 2, 2)
    estimator = Recorder()
    box = study.boosted("box", estimator, study.Dataset(x, torch.tensor([0] * 19 + [1]), ""))
    assert np.array_equal(estimator.learnt, x[:18].flatten(1).numpy())
    assert np.array_equal(estimator.rows, x[18:].flatten(1).numpy())
    assert box.validation == 50.0


@pytest.mark.parametrize("installed", ["lightgbm", "xgboost", None])
def test_black_boxes_by_what_is_installed(study, monkeypatch, capsys, installed):
    if installed:
        pytest.importorskip(installed)
    monkeypatch.setattr(study, "find_spec", lambda name: name == installed or None)
    data = images(study, 60)
    boxes = study.black_boxes(data, data, torch.arange(60) >= 10, 1)
    other = {"lightgbm": ["LightGBM"], "xgboost": ["XGBoost"], None: []}[installed]
    assert [box.name for box in boxes] == ["scikit-learn", *other, "trained on test"]
    assert ("scikit-learn's trees alone" in capsys.readouterr().out) is not bool(installed)
    assert [box.model.queries for box in boxes] == [6] * (len(boxes) - 1) + [5]


def test_the_substitute_starts_from_what_was_held_out(study):
    data, asked = images(study, 80), []

    def victim(rows):
        asked.append(rows)
        return np.eye(10)[[0] * len(rows)]

    model = study.CallableClassifier(victim, num_classes=10)
    size = study.Size(80, 80, 5, 1, (0.1,), 64, 1)
    box = study.BlackBox("box", model, 0.0)
    found = study.substituted(box, study.mnist_lenet(), data, data.head(5), size)
    assert any(np.array_equal(rows, data.x[-8:].numpy()) for rows in asked)
    assert [count for count, _ in found["agreement"]] == [8, 16, 32, 64]
    assert model.queries == 64 + 5 + 4 * 5  # to learn, to compare, and for the accuracies
    for rows in asked[-2:]:  # FGSM on either net moves every image, fooled or not
        step = np.abs(rows - data.x[:5].numpy()).max((1, 2, 3))
        assert step == pytest.approx([0.2] * 5)
    assert set(found["accuracy"].values()) == {20.0}  # the first five digits are 0 to 4


def test_both_conventions(study):
    """Four images: one that the LeNet never knew, one that it loses, two that it keeps."""
    y = torch.tensor([0, 1, 2, 3])
    said = {
        "box": {0.0: torch.tensor([0, 1, 2, 9]), 0.1: torch.tensor([0, 1, 9, 9])},
        "LeNet": {0.0: torch.tensor([9, 1, 2, 3]), 0.1: torch.tensor([9, 9, 2, 3])},
    }
    found = study.conventions(said, y)
    assert found["fooled"] == {0.0: 3, 0.1: 1}
    assert found["over_all"]["box"] == {0.0: 75.0, 0.1: 50.0}
    assert found["given_fooled"]["box"] == {0.0: pytest.approx(200 / 3), 0.1: 100.0}
    assert found["given_fooled"]["LeNet"] == {0.0: 100.0, 0.1: 0.0}


def test_checks_change_what_they_say(study):
    """A black box that knows ink from background, and FGSM's place taken by 0.5 everywhere."""
    seen = []

    class Box:
        def predict(self, x):
            seen.append(x)
            return torch.zeros(len(x), dtype=torch.int64)

    x = torch.tensor([0.0, 0.2, 1.0, 0.0]).view(1, 1, 1, 4)
    data = study.Dataset(x, torch.tensor([0]), "")
    found = study.checked(Box(), data, {0.0: x, 0.3: torch.full_like(x, 0.5)})
    assert all(by_eps == {0.3: 100.0} for by_eps in found.values())
    asked = {name: row.flatten().tolist() for name, row in zip(found, seen, strict=True)}
    assert asked["FGSM on ink only"] == [0.0, 0.5, 0.5, 0.0]
    assert asked["FGSM on background only"] == pytest.approx([0.5, 0.2, 1.0, 0.5])
    for name in ("random signs", "uniform noise"):
        change = torch.tensor(asked[name]) - x.flatten()
        assert change.any()
        assert change.abs().max() <= 0.3 + 1e-6
    for old, new in zip(x.flatten().tolist(), asked["random signs"], strict=True):
        assert new in (pytest.approx(max(0.0, old - 0.3)), pytest.approx(min(1.0, old + 0.3)))


def test_what_is_no_fgsm(study):
    """A black box that answers 1 where there is a white pixel, which digits have and specks not."""
    seen = []

    class Box:
        def predict(self, x):
            seen.append(x)
            return (x.flatten(1).amax(1) == 1).long()

    data = study.Dataset(torch.eye(4).view(4, 1, 2, 2), torch.arange(4), "")
    found = study.without_fgsm(Box(), data, (0.25,))
    assert found["no digit"] == {0.25: [100.0] + [0.0] * 9}
    assert set(seen[1].flatten().tolist()) == {0.0, 0.25}
    assert found["random signs"][0.25][1] == pytest.approx(100 * (seen[0] == 1).sum().item() / 4)


def test_shares_and_table(study):
    found = study.shares({0.1: torch.tensor([8, 8, 8, 0])})[0.1]
    assert found == [25.0, 0, 0, 0, 0, 0, 0, 0, 75.0, 0]
    assert study.table(["a", 0.1], [["b", 1.234], ["c", 7]]) == (
        "| a | 0.1 |\n| --- | --- |\n| b | 1.23 |\n| c | 7 |"
    )


def test_published_figures_are_shares_of_the_images_that_fool_the_lenet(study):
    """What the page says of IBM's figures: whole numbers of the LeNet's own, to three digits."""
    ibm = study.PUBLISHED["IBM"]
    assert round(100 * 9775 / 9810, 3) == ibm[0.0]
    assert round(100 * 947 / 981, 3) == ibm["validation"]
    assert round(100 * 313 / (9810 - 6826), 3) == ibm[0.15]
    assert round(100 * 796 / (9810 - 869), 3) == ibm[0.30]


def test_without_data_it_says_so(study, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["study", "--data", str(tmp_path)])
    study.main()
    assert "skipped" in capsys.readouterr().err


def test_what_is_written(study, tmp_path):
    """The tables and files of a study that nobody ran."""
    y = torch.tensor([0, 1])
    answers = {eps: torch.tensor([0, 8]) for eps in (0.0, 0.1)}
    said = {"box": answers, "LeNet": {0.0: y, 0.1: torch.tensor([5, 1])}}
    results = {
        "size": {"eps": (0.1,)},
        "validation": {"box": 90.0},
        **study.conventions(said, y),
        "classes": {"box": study.shares(answers)},
        "checks": {"box": {"random signs": {0.1: 70.0}}},
        "without_fgsm": {"box": {"no digit": study.shares(answers)}},
        "substitute": {"victim": "box", "agreement": [(64, 80.0)], "accuracy": {"FGSM": 12.0}},
        "queries": {"box": 4},
        "seconds": 1,
    }
    text = study.report(results)
    for line in (
        "| model | held out | no attack | 0.1 |",
        "| IBM, published | 96.53 | 99.64 | 11.00 |",
        "| box, given fooled | 90.00 | 50.00 | 100.00 |",
        "| box, over all | 90.00 | 50.00 | 50.00 |",
        "| LeNet, over all |  | 100.00 | 50.00 |",
        "| images given fooled |  | 2 | 1 |",
        "| box, random signs | 70.00 |",
        "| box, no digit 0.1 |" + " 50.00 |" + " 0.00 |" * 7 + " 50.00 | 0.00 |",
        "| box, FGSM 0.1 |" + " 50.00 |" + " 0.00 |" * 7 + " 50.00 | 0.00 |",
        "| 64 | 80.00 |",
        "| FGSM | 12.00 |",
    ):
        assert line in text.splitlines()
    x = torch.rand(2, 1, 28, 28)
    study.save(tmp_path, results, {0.0: x, 0.1: x}, said, y)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["given_fooled"]["box"] == {"0.0": 50.0, "0.1": 100.0}
    for name in ("accuracy.png", "digits.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
