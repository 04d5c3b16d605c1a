"""Findings about published nets: none, except about one whose gradients mislead."""

import pytest
import torch

from advkit import attacks
from advkit import eval as rob

pytestmark = pytest.mark.slow("published nets of full size")

SILENT = [
    ("mnist_lenet", "mnist_lenet.pt", "mnist_test", 0.1, 100),
    ("mnist_cnn_certified", "mnist_cnn_certified.pt", "mnist_test", 0.1, 100),
    ("cifar10_resnet4b", "cifar10_resnet4b_robust.pt", "cifar10_test", 8 / 255, 60),
    ("cifar10_resnet20", "cifar10_resnet20.pt", "cifar10_test", 1 / 255, 20),
]


def probes(eps, norm, queries):
    """The probes, the black boxes among them with a number of queries that takes seconds."""
    made = attacks.probes(eps, norm)
    made["scores"] = attacks.Square(eps=eps, norm=norm, max_queries=queries)
    made["labels"] = attacks.HopSkipJump(norm=norm, max_queries=queries)
    return made


@pytest.mark.parametrize(("factory", "weights", "images", "eps", "n"), SILENT)
def test_a_net_without_a_fault_has_no_finding(
    request, real_net, factory, weights, images, eps, n
):  # fmt: skip
    net, data = real_net(factory, weights), request.getfixturevalue(images).head(n)
    found = rob.diagnose(net, data.x, data.y, probes=probes(eps, "linf", 200))
    assert found.findings == ()
    assert found.verdict == "Verdict: no check speaks against these figures."


def test_gradients_that_mislead_are_found(real_net, mnist_test):
    """Trained against linf, and attacked in l2: its first layer is nearly a threshold."""
    net, data = real_net("mnist_lenet5", "mnist_lenet5_robust.pt"), mnist_test.head(60)
    made = attacks.probes(1.5, "l2")
    made = {role: made[role] for role in ("many_steps", "restarts")}
    found = rob.diagnose(net, data.x, data.y, probes=made)
    assert [(f.name, f.severity) for f in found.findings] == [("restarts_help", "high")]


@pytest.mark.parametrize("n", [200, 1000])
def test_checks_take_two_percent_of_the_passes_at_most(real_net, mnist_test, monkeypatch, n):
    """Of the cheapest evaluation there is: one step, and a budget at which it mostly succeeds."""
    from advkit import QueryCounter
    from advkit.eval.units.model_checks import COLUMNS

    data = mnist_test.head(n)
    sent = []
    for checked in (True, False):
        if not checked:
            monkeypatch.setattr(
                "advkit.eval.units.worker.check_batch",
                lambda _, batch: {c: torch.zeros(len(batch.x)).bool() for c in COLUMNS},
            )
            monkeypatch.setattr("advkit.eval.units.attack_run.check_rounding", lambda *_: {})
        counter = QueryCounter(real_net("mnist_lenet", "mnist_lenet.pt"))
        rob.evaluate(counter, data.x, data.y, attacks=[attacks.FGSM(eps=0.3)], batch_size=10)
        sent.append(counter.forward + counter.backward)
    assert 0 < sent[0] - sent[1] <= 0.02 * sent[0]
