"""Budgets that are no budget: balls that hold every input within the bounds."""

import dataclasses
import math
import re

import pytest
import torch

from advkit import TorchClassifier, attacks, defenses, detectors
from advkit import eval as rob
from advkit.core.boxes import diameter
from advkit.core.norms import ORDER, lp_norm
from tests.toys import answers, convnet, images

WHOLE = "The ball of linf 8 holds every input within the bounds [0, 1], so any change is allowed."
X = images(12)


@pytest.mark.parametrize("norm", ORDER)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-2.0, 3.0)])
def test_the_diameter_is_the_distance_of_opposite_corners(norm, bounds):
    corners = torch.tensor(bounds, dtype=torch.float64)[:, None].expand(2, 7)
    farthest = lp_norm((corners[1] - corners[0])[None], norm)
    assert diameter(norm, 7, bounds) == pytest.approx(float(farthest))
    assert diameter("l3", 7, bounds) == math.inf


@pytest.mark.parametrize(
    ("norm", "largest"), [("linf", 255.0), ("l2", 255 * 6.0), ("l1", 255 * 36.0)]
)
def test_a_ball_is_the_whole_box_from_its_diameter_on(norm, largest):
    net = TorchClassifier(convnet(), (0, 255), preprocess=lambda v: v / 255)
    x, y = 255 * X, answers(convnet(), X)
    attacks.FGM(norm=norm, eps=0.999 * largest)(net, x, y)
    said = re.escape(f"The ball of {norm} {largest:g} holds every input within the bounds [0, 255]")
    with pytest.warns(UserWarning, match=said):
        attacks.FGM(norm=norm, eps=largest)(net, x, y)
    each = torch.full((12,), 1.0)
    attacks.FGM(norm=norm, eps=each)(net, x, y)
    each[7] = largest
    said = re.escape(f"The ball of {norm} {largest:g} (sample 7) holds every input")
    with pytest.warns(UserWarning, match=said):
        attacks.FGM(norm=norm, eps=each)(net, x, y)


@pytest.mark.parametrize(
    "run",
    [
        lambda net, y, a: a(net, X, y),
        lambda net, y, a: a.craft(net, X, y),
        lambda net, y, a: rob.evaluate(net, X, y, attacks=[a]),
        lambda net, y, a: rob.robust_accuracy(net, X, y, attacks=[a]),
        lambda net, y, a: rob.benchmark(net, X, y, attacks=[a], rounds=1),
        lambda net, y, a: rob.transfer_matrix({"net": net}, None, a, X, y),
        lambda net, y, a: detectors.collect([net], [a], X, y),
        lambda net, y, a: defenses.AdversarialTraining(attack=a)(net, X, y),
        lambda net, y, a: defenses.TRADES(attack=attacks.PGD(eps=8, steps=1))(net, X, y),
        lambda net, y, a: defenses.FreeAdversarialTraining(eps=8)(net, X, y),
    ],
    ids=[
        "call",
        "craft",
        "evaluate",
        "robust",
        "bench",
        "transfer",
        "collect",
        "training",
        "trades",
        "free",
    ],
)
def test_every_use_of_an_eps_warns(run):
    net = convnet()
    with pytest.warns(UserWarning, match=re.escape(WHOLE)):
        run(net, answers(net, X), attacks.FGSM(eps=8))


def test_the_report_says_so():
    net = convnet()
    made = [attacks.FGSM(eps=8), attacks.FGSM(eps=0.1), attacks.FGM(eps=6)]
    with pytest.warns(UserWarning, match="holds every input"):
        report = rob.evaluate(net, X, answers(net, X), attacks=made)
    assert report.features == report.to_dict()["features"] == 36
    found = [f.message for f in report.findings if f.name == "budget_holds_every_input"]
    assert len(found) == 2
    assert found[0].startswith(WHOLE)
    assert found[1].startswith("The ball of l2 6 holds every input")


def test_the_advice_for_l0_is_on_features():
    noise = attacks.RandomNoise(norm="l0", kind="salt_and_pepper", eps=36)
    said = (
        r"within the bounds \[0, 1\], so any change is allowed. In l0, eps is a number of features."
    )
    with pytest.warns(UserWarning, match=f"The ball of l0 36 holds every input {said}"):
        noise(convnet(), X)
    dataclasses.replace(noise, eps=35)(convnet(), X)


def test_a_batch_without_samples_is_not_judged():
    assert len(attacks.FGSM(eps=8)(convnet(), X[:0], torch.zeros(0).long())) == 0
