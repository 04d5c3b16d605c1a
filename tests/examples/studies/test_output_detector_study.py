"""What the study of detectors of outputs counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from advkit import TorchClassifier, attacks, detectors
from advkit.detectors import Guard, OutputTable
from tests.toys import Halfspace

PLANE = Halfspace(torch.tensor([8.0, 0.0]), b=-4.0)  # label 1 where the first feature is above 0.5


@pytest.fixture
def size(study):
    return replace(study.QUICK, folds=3, bootstrap=5)


def table(n=30, shift=4.0):
    """`n` clean rows of two logits, and `n` attacked ones, the first logit larger by `shift`."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, 2))
    rows = np.concatenate([logits, logits + np.array([shift, 0])]).astype(np.float32)
    attacked = np.arange(2 * n) >= n
    return OutputTable(
        outputs=rows,
        sample=np.tile(np.arange(n), 2),
        model=np.full(2 * n, "net"),
        attack=np.where(attacked, "FGM", "clean"),
        label=np.zeros(2 * n, np.int64),
        predicted=attacked.astype(np.int64),
        success=attacked,
        distance=attacked.astype(float),
        norm=np.where(attacked, "l2", ""),
        kind="logits",
    )


def test_accuracy_is_that_of_each_attack_and_their_mean(study):
    both = table() + replace(table()[30:], attack=np.full(30, "PGD"), predicted=np.zeros(30, int))
    found = study.accuracies(both)["net"]
    assert found == {"clean": 100, "FGM": 0, "PGD": 100, "mean": 50, "std": 50}


def test_probabilities_are_the_softmax_of_logits(study):
    seen = study.probabilities(table())
    wanted = torch.from_numpy(table().outputs).softmax(1)
    torch.testing.assert_close(torch.from_numpy(seen.outputs), wanted)
    assert seen.kind == "scores"


def test_no_image_is_on_both_sides_of_a_grouped_split(study, size):
    seen = table()
    judged = np.concatenate([judge for _, judge in study.parts(seen, size)])
    assert sorted(judged) == list(range(60))
    for learn, judge in study.parts(seen, size):
        assert not set(seen.sample[learn]) & set(seen.sample[judge])
    loose = study.folds(size, grouped=False).split(seen.outputs, seen.attack)
    assert any(set(seen.sample[learn]) & set(seen.sample[judge]) for learn, judge in loose)


@pytest.mark.parametrize("grouped", [True, False])
def test_columns_belong_to_the_names_of_the_classes(study, size, grouped):
    seen = table()
    view = study.VIEWS["logits"]
    scores, told = study.classified(view, seen, seen.attack, size=size, grouped=grouped)
    right = np.where(seen.adversarial, told[:, 0], told[:, 1])
    assert right.mean() > 0.8
    assert scores.classes == ("FGM", "clean")
    fakes = study.of_fakes(view, seen, size, grouped=grouped)
    assert fakes["caught"]["overall"]["auroc"]["value"] > 0.9


def test_what_an_attack_left_alone_is_no_fake(study):
    still = replace(table(), distance=np.where(np.arange(60) < 40, 0.0, 1.0))
    assert study.moved(still).sample.tolist() == [*range(30), *range(10, 30)]


def test_scores_learn_from_clean_rows_alone(study):
    class Spy:
        def fit(self, outputs, labels):
            self.seen = outputs, labels
            return self

    rows, labels = study.scorer(Spy())(table()).seen
    np.testing.assert_array_equal(rows, table().outputs[:30])
    np.testing.assert_array_equal(labels, np.zeros(30))


def test_clean_images_are_repeated_until_they_are_as_many(study):
    fake = torch.tensor([0, 0] + [1] * 7)
    data = study.balanced(torch.arange(9.0)[:, None], fake)
    assert torch.bincount(data.y).tolist() == [6, 7]
    assert data.x[data.y == 0].unique().tolist() == [0, 1]


def test_what_gets_past_a_guard_is_wrong_and_raises_no_alarm(study):
    """Label 0 is right; the guard alarms where the second score is above 0.9, far beyond 0.5."""

    class Sure:
        def anomaly_score(self, outputs):
            return outputs[:, 1]

    guard = Guard(PLANE, Sure(), threshold=0.9)
    x = torch.tensor([[0.45, 0.5], [0.3, 0.5], [0.1, 0.5]])
    far = attacks.FGSM(eps=0.15)
    tried = {"FGSM": attacks.Transfer(attack=far, surrogate=PLANE)}
    found = study.against(guard, x, torch.zeros(3).long(), tried)
    assert (found["false alarms"], found["clean"]) == (0, 100)
    assert found["FGSM"]["caught"] == 0
    assert found["FGSM"]["past"] == pytest.approx(100 / 3)
    wide = {"FGSM": attacks.Transfer(attack=attacks.FGSM(eps=0.45), surrogate=PLANE)}
    x = torch.cat([x, torch.tensor([[0.02, 0.5]])])  # stays right, and counts among all inputs
    found = study.against(guard, x, torch.zeros(4).long(), wide)["FGSM"]
    assert (found["caught"], found["past"]) == (pytest.approx(100 / 3), 50)


def test_who_knows_gets_past_a_guard_that_stops_who_does_not(study, size):
    rng = np.random.default_rng(0)
    clean = torch.from_numpy(rng.uniform(0.2, 0.8, (200, 2))).float()
    made = {"PGD": attacks.PGD(eps=0.4, steps=10)}
    y = TorchClassifier(PLANE).predict(clean)
    seen = detectors.collect({"plane": PLANE}, made, clean, y)
    forest = study.fitted(study.PUBLISHED, replace(size, trees=30), seen)
    guard = Guard(PLANE, forest, fpr=0.05).calibrate(clean)
    tried = study.knowing(
        guard, seen.outputs, PLANE(clean).detach(), replace(size, steps=20, queries=50)
    )
    found = study.against(guard, clean[:50], y[:50], {k: tried[k] for k in ("Evasion", "Mimicry")})
    unaware = {"PGD": attacks.Transfer(attack=made["PGD"], surrogate=PLANE)}
    stopped = study.against(guard, clean[:50], y[:50], unaware)["PGD"]["past"]
    assert (
        max(found[name]["past"] for name in ("Evasion", "Mimicry")) > stopped + 5
    )  # of those near the plane
