"""A clean accuracy that may be chance: wrong weights, normalization or labels."""

import re

import pytest
from scipy.stats import binomtest
from torch import nn

from advkit import TorchClassifier, attacks
from advkit import eval as rob
from advkit.core.results import InconclusiveWarning
from tests.toys import answers, convnet, images

CHANCE = "may be chance, which is 33.3 % for 3 classes: its 95 % interval is"
X = images(60)


@pytest.mark.parametrize("total", [1, 2, 7, 100, 10_000])
def test_the_interval_is_that_of_wilson(total):
    for count in {0, 1, total // 3, total // 2, total}:
        low, high = rob.Rate(count, total).interval
        known = binomtest(count, total).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((known.low, known.high), abs=1e-6)
    assert rob.Rate(0, 0).interval == (0, 1)


def half_right(share):
    """A net, and labels of which this share is right."""
    net = convnet()
    y = answers(net, X)
    wrong = int(len(y) * (1 - share))
    y[:wrong] = (y[:wrong] + 1) % 3
    return net, y


@pytest.mark.parametrize(
    "run",
    [
        lambda net, y: rob.evaluate(net, X, y, attacks=[attacks.FGSM(eps=0.1)], batch_size=16),
        lambda net, y: list(rob.evaluate_stream(net, X, y, attacks=[attacks.FGSM(eps=0.1)])),
        lambda net, y: rob.robust_accuracy(net, X, y, attacks=[attacks.FGSM(eps=0.1)]),
        lambda net, y: rob.benchmark(net, X, y, attacks=[attacks.FGSM(eps=0.1)], rounds=1),
        lambda net, y: rob.transfer_matrix({"net": net}, None, attacks.FGSM(eps=0.1), X, y),
    ],
    ids=["evaluate", "stream", "robust", "bench", "transfer"],
)
@pytest.mark.filterwarnings("error")
def test_every_evaluation_warns(run):
    with pytest.warns(InconclusiveWarning, match=CHANCE):
        run(*half_right(0.4))
    run(*half_right(0.6))


def test_the_transfer_matrix_names_the_model():
    net, y = half_right(1.0)
    upside_down = TorchClassifier(net, preprocess=lambda v: 1 - v, num_classes=3)
    assert (upside_down.predict(X) == y).float().mean() < 0.4
    models = {"right": net, "wrong": upside_down}
    with pytest.warns(InconclusiveWarning) as caught:
        rob.transfer_matrix(models, None, attacks.FGSM(eps=0.1), X, y)
    said = [str(w.message) for w in caught if "chance, which" in str(w.message)]
    assert len(said) == 1
    assert said[0].startswith("The clean accuracy of wrong, ")


def test_the_report_says_it_first():
    net, y = half_right(0.4)
    report = rob.evaluate(net, X, y, attacks=[attacks.FGSM(eps=0.1)])
    assert report.num_classes == report.to_dict()["num_classes"] == 3
    assert re.fullmatch(
        r"The clean accuracy, 40.00 % \(24 of 60\), may be chance, which is 33.3 % for 3 classes: "
        r"its 95 % interval is 28.6 to 52.6 %. Check the weights, the normalization and the order "
        r"of the labels, or evaluate more inputs.",
        report.findings[0].message,
    )
    assert report.findings[0].name == "accuracy_at_chance"
    net, y = half_right(0.6)
    report = rob.evaluate(net, X, y, attacks=[attacks.FGSM(eps=0.1)])
    assert "may be chance" not in str(report)


def test_worse_than_chance_is_chance_too():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 1000))
    y = (answers(net, X) + 1) % 1000
    with pytest.warns(InconclusiveWarning, match="may be chance, which is 0.1 % for 1000 classes"):
        rob.evaluate(net, X, y, attacks=[attacks.FGSM(eps=0.1)])
    net, y = half_right(0.0)
    said = "is below chance, which is 33.3 % for 3 classes: its 95 % interval is 0 to 6.02 %"
    with pytest.warns(InconclusiveWarning, match=said):
        rob.evaluate(net, X, y, attacks=[attacks.FGSM(eps=0.1)])


@pytest.mark.filterwarnings("error")
def test_a_few_inputs_that_are_all_correct_are_no_chance():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    for n in (1, 2, 3):
        rob.evaluate(net, X[:n], answers(net, X[:n]), attacks=[attacks.FGSM(eps=0.01)])


def test_intervals_stay_within_0_and_1():
    for n in range(1, 400):
        assert rob.Rate(0, n).interval[0] == 0 < rob.Rate(0, n).interval[1] < 1
        assert 0 < rob.Rate(n, n).interval[0] < rob.Rate(n, n).interval[1] == 1
