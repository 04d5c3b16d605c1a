"""What the study of distillation trains, attacks, counts and writes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from advkit import CallableClassifier
from advkit.data import Dataset
from tests.examples.studies.toys import images


@pytest.fixture
def tiny(study):
    return replace(study.QUICK, epochs=1, student_epochs=1, steps=4, attacked=20, few=2)


class Recorder:
    """A black box that answers 3 with a probability of 0.91, and keeps what it was asked."""

    def __init__(self):
        self.asked = []
        self.model = CallableClassifier(self.answer, num_classes=10)
        self.name = "box"

    def answer(self, rows):
        self.asked.append(rows)
        return np.full((len(rows), 10), 0.01) + 0.9 * np.eye(10)[3]


def test_the_protocol_is_that_of_papernot(study, tiny, monkeypatch):
    learnt, distilled = [], []
    train, fit = study.train_net, study.Distillation.fit

    def training(net, loader, loss, epochs):
        learnt.append((net, loss.temperature))
        train(net, loader, loss, epochs)

    def distilling(self, teacher, student, loader):
        distilled.append((teacher, student, self.temperature))
        return fit(self, teacher, student, loader)

    monkeypatch.setattr(study, "train_net", training)
    monkeypatch.setattr(study.Distillation, "fit", distilling)
    nets = study.defended(images(40), tiny)
    (plain, one), (teacher, hot) = learnt
    assert (one, hot) == (1.0, 100.0)
    assert [found[0] for found in distilled] == [teacher]
    assert [found[2] for found in distilled] == [100.0]
    assert nets == {"plain": plain, "distilled": distilled[0][1]}
    start = study.new(study.mnist_cnn_certified)
    for net in (plain, teacher, nets["distilled"]):
        assert not torch.equal(net[0].weight, start[0].weight)


def test_the_usual_loss_is_blind_where_the_undone_one_sees(study):
    logits = torch.tensor([[500.0, 0.0, 100.0]], requires_grad=True)
    y = torch.tensor([0])
    (blind,) = torch.autograd.grad(study.usual(logits, y).sum(), logits)
    assert not blind.any()
    (seen,) = torch.autograd.grad(study.undone(logits, y).sum(), logits)
    p = np.exp([5.0, 0.0, 1.0]) / np.exp([5.0, 0.0, 1.0]).sum()
    np.testing.assert_allclose(seen[0].numpy(), (p - [1, 0, 0]) / 100, rtol=1e-4)


def test_attacks_on_a_net_with_large_logits(study, tiny):
    """Nearest class mean, its logits so large that the usual gradient is zero everywhere."""
    data = images(200)
    means = torch.stack([data.x[data.y == k].flatten(1).mean(0) for k in range(10)])
    linear = nn.Linear(784, 10)
    with torch.no_grad():
        linear.weight.copy_(40 * means)
        linear.bias.copy_(-20 * means.square().sum(1))
    net = nn.Sequential(nn.Flatten(), linear).eval()
    top = net(data.x).topk(2, dim=1)
    sure = (top.indices[:, 0] == data.y) & (top.values[:, 0] - top.values[:, 1] > 300)
    few = Dataset(data.x[sure], data.y[sure], "").head(20)
    assert len(few) == 20
    found = study.attacked(net, net, few, tiny)
    assert found["no attack"] == {"accuracy": 100.0, "no gradient": 0.0}
    for name in ("FGSM, usual cross-entropy", "PGD, usual cross-entropy"):
        assert found[name] == {"accuracy": 100.0, "no gradient": 100.0}
    for name in ("PGD, logits / T", "PGD, advkit's default", "PGD, margin", "PGD on the plain net"):
        assert found[name]["accuracy"] < 10
    white = study.in_white(net, few)
    assert white["PGD, usual cross-entropy, eps 0.3"] == {"accuracy": 100.0, "no gradient": 100.0}
    assert white["PGD, advkit's default, eps 0.3"]["accuracy"] < 10
    assert len(white) == 6
    assert study.nearest(net, few.head(2), study.FULL.nearest)["accuracy"] == 0
    assert study.margins(net, few.x) > 100


def test_eighty_percent_teach(study):
    rows = study.taught_rows(50)
    assert rows.sum() == 40
    assert torch.equal(study.taught_rows(50), rows)
    assert not rows[:40].all()


def test_students_ask_once_about_what_they_are_taught(study, tiny):
    data, box = images(30), Recorder()
    size = replace(tiny, temperatures=(1.0, 10.0))
    nets = study.students([box], data.x, data.y, size)
    assert list(nets) == [
        "box, T = 1",
        "box, T = 10",
        "box, scores as they are, T = 100",
        "true labels",
    ]
    assert len(box.asked) == 3
    assert all(np.array_equal(rows, data.x.numpy()) for rows in box.asked)
    weights = [net.fc2.weight for net in nets.values()]
    assert not any(torch.equal(weights[0], other) for other in weights[1:])


def test_scores_as_they_are_at_the_temperature(study):
    box = Recorder()
    sharp = study.Sharpened(box.model, 100.0)
    x = torch.rand(2, 1, 2, 2)
    torch.testing.assert_close((sharp.logits(x) / 100).softmax(1), box.model.scores(x))
    assert sharp.predict(x).tolist() == [3, 3]


def test_three_conventions(study):
    """Five images: one that the LeNet never knew, two that it loses, two that it keeps.

    The first three are held out. The box is right on all until it is attacked, then on 0 and 2.
    """
    y = torch.arange(5)
    said = {
        "box": {0.0: y, 0.1: torch.tensor([0, 9, 2, 9, 9])},
        "LeNet": {0.0: torch.tensor([9, 1, 2, 3, 4]), 0.1: torch.tensor([9, 9, 2, 9, 4])},
    }
    found = study.conventions(said, y, torch.tensor([True, True, True, False, False]))
    assert found["images"] == {
        "as published": {0.0: 2, 0.1: 2},
        "held out": {0.0: 2, 0.1: 1},
        "over all": {0.0: 3, 0.1: 3},
    }
    accuracy = {key: by_name["box"] for key, by_name in found["accuracy"].items()}
    assert accuracy == {
        "as published": {0.0: 100.0, 0.1: 0.0},
        "held out": {0.0: 100.0, 0.1: 0.0},
        "over all": {0.0: 100.0, 0.1: pytest.approx(200 / 3)},
    }
    assert found["accuracy"]["over all"]["LeNet"][0.1] == pytest.approx(100 / 3)


def test_the_table_is_judged_on_fgsm_of_the_lenet(study, tiny):
    data, box = images(25), Recorder()
    lenet = study.new(study.mnist_lenet)
    found = study.table_5([box], lenet, data, replace(tiny, eps=(0.2,)))
    assert {name: set(by) for name, by in found["accuracy"]["over all"].items()} == {
        name: {0.0, 0.2}
        for name in (
            "box",
            "box, T = 100",
            "box, scores as they are, T = 100",
            "true labels",
            "LeNet",
        )
    }
    clean, attacked = box.asked[-2:]
    assert np.array_equal(clean, data.x.numpy())
    moved = np.abs(attacked - clean).max((1, 2, 3))
    assert moved == pytest.approx([0.2] * 25)
    rest = data.y[~study.taught_rows(25)]
    assert found["accuracy"]["over all"]["box"][0.0] == 100 * (rest == 3).double().mean().item()
    assert (
        set(found["white_box"])
        == set(found["margins"])
        == set(found["accuracy"]["held out"])
        - {
            "box",
            "LeNet",
        }
    )


def test_googles_figures_are_shares_of_the_whole_sets(study):
    """What the page says of them: whole numbers of all images that fool it, digits cut off."""
    google = study.TABLE_5["Google"]
    for eps, right, images_there in (
        (0.15, 2242, 2984),
        (0.20, 2883, 5509),
        (0.25, 2052, 7728),
        (0.30, 1622, 8941),
    ):
        assert 100_000 * right // images_there / 1000 == google[eps]
    assert round(100 * 984 / 1300, 2) == google[0.10]
    assert round(100 * 1942 / 1962, 3) == study.TABLE_5["IBM"][0.0]


def test_what_is_written(study, tmp_path):
    """The tables and files of a study that nobody ran."""
    y = torch.tensor([0, 1])
    said = {
        "box": {0.0: y, 0.1: torch.tensor([0, 8])},
        "box, T = 10": {0.0: y, 0.1: y},
        "LeNet": {0.0: y, 0.1: torch.tensor([5, 1])},
    }
    one = {"accuracy": 90.0, "no gradient": 45.0}
    results = {
        "size": {"eps": (0.1,)},
        "defense": {
            "under": {
                "plain": {"no attack": {"accuracy": 98.0, "no gradient": 0.0}},
                "distilled": {"no attack": {"accuracy": 97.0, "no gradient": 30.0}},
            },
            "C&W": {net: {"accuracy": 1.0, "median l2": 0.5} for net in ("plain", "distilled")},
            "margins": {"plain": 10.0, "distilled": 700.0},
        },
        "table_5": {
            **study.conventions(said, y, torch.tensor([True, False])),
            "white_box": {"box, T = 10": {"PGD": one, "FGSM": {**one, "no gradient": 0.0}}},
            "margins": {"box, T = 10": 12.0},
        },
        "seconds": 1,
    }
    text = study.report(results)
    for line in (
        "| attack | plain | plain, no gradient | distilled | distilled, no gradient |",
        "| no attack | 98.00 | 0.00 | 97.00 | 30.00 |",
        "| Carlini and Wagner in l2 | 1.00 |  | 1.00 |  |",
        "| its median length | 0.50 |  | 0.50 |  |",
        "| median margin of the logits | 10.00 |  | 700.00 |  |",
        "| IBM's model, published | 99.64 | 11.00 |",
        "| its student, published | 98.98 | 74.19 |",
        "| box, as published | 100.00 | 100.00 |",
        "| box, T = 10, over all | 100.00 | 100.00 |",
        "| LeNet, held out | 100.00 | 0.00 |",
        "| images, over all | 1 | 1 |",
        "| student | median margin | PGD | FGSM |",
        "| box, T = 10 | 12.00 | 90.0 (45.0) | 90.0 |",
    ):
        assert line in text.splitlines()
    study.save(tmp_path, results)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["table_5"]["accuracy"]["over all"]["box"] == {"0.0": 100.0, "0.1": 100.0}
    assert (tmp_path / "distillation.png").read_bytes().startswith(b"\x89PNG")
