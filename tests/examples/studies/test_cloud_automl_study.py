"""The parts of the study that could be wrong without anybody noticing."""

import json

import numpy as np
import pytest
import torch

from advkit import CallableClassifier
from advkit.data import Dataset
from tests.examples.studies.toys import images


def test_the_substitute_starts_from_what_was_held_out(study):
    data, asked = images(80), []

    def victim(rows):
        asked.append(rows)
        return np.eye(10)[[0] * len(rows)]

    model = CallableClassifier(victim, num_classes=10)
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


@pytest.mark.parametrize("boxes", [1, 2])
def test_the_last_box_learns_what_the_lenet_gets_right(study, monkeypatch, capsys, boxes):
    data = images(60)
    both = [study.BlackBox(name, None, 0.0) for name in ("scikit-learn", "other")]
    monkeypatch.setattr(study, "black_boxes", lambda train, trees: both[:boxes])
    *others, last = study.three_boxes(data, data, torch.arange(60) >= 10, 1)
    assert others == both[:boxes]
    assert last.name == "trained on test"
    assert last.model.queries == 5
    assert ("scikit-learn's trees alone" in capsys.readouterr().out) is (boxes == 1)


def test_both_conventions(study):
    """Four images: one that the LeNet never knew, one that it loses, two that it keeps."""
    y = torch.tensor([0, 1, 2, 3])
    said = {
        "box": {0.0: torch.tensor([0, 1, 2, 9]), 0.1: torch.tensor([0, 1, 9, 9])},
        "LeNet": {0.0: torch.tensor([9, 1, 2, 3]), 0.1: torch.tensor([9, 9, 2, 3])},
    }
    found = study.conventions(said, y)
    assert found["fooled"] == {0.0: 3, 0.1: 1}
    assert found["error_rate"]["box"] == {0.0: 75.0, 0.1: 50.0}
    assert found["transfer_rate"]["box"] == {0.0: pytest.approx(200 / 3), 0.1: 100.0}
    assert found["transfer_rate"]["LeNet"] == {0.0: 100.0, 0.1: 0.0}


def test_checks_change_what_they_say(study):
    """A black box that knows ink from background, and FGSM's place taken by 0.5 everywhere."""
    seen = []

    class Box:
        def predict(self, x):
            seen.append(x)
            return torch.zeros(len(x), dtype=torch.int64)

    x = torch.tensor([0.0, 0.2, 1.0, 0.0]).view(1, 1, 1, 4)
    data = Dataset(x, torch.tensor([0]), "")
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

    data = Dataset(torch.eye(4).view(4, 1, 2, 2), torch.arange(4), "")
    found = study.without_fgsm(Box(), data, (0.25,))
    assert found["no digit"] == {0.25: [100.0] + [0.0] * 9}
    assert set(seen[1].flatten().tolist()) == {0.0, 0.25}
    assert found["random signs"][0.25][1] == pytest.approx(100 * (seen[0] == 1).sum().item() / 4)


def test_shares(study):
    found = study.shares({0.1: torch.tensor([8, 8, 8, 0])})[0.1]
    assert found == [25.0, 0, 0, 0, 0, 0, 0, 0, 75.0, 0]


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
    assert found["transfer_rate"]["box"] == {"0.0": 50.0, "0.1": 100.0}
    for name in ("accuracy.png", "digits.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
