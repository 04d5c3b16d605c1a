"""How many samples are sent at once: never more than an evaluation was told."""

import dataclasses

import pytest
import torch

from advkit import TorchClassifier, defenses, detectors
from advkit import eval as rob
from advkit.attacks import FGM, HopSkipJump, Transfer
from advkit.core import checks
from advkit.core.results import InconclusiveWarning
from tests.attack_cases import ATTACKS
from tests.toys import SurrogateNet, answers, convnet, images

SIZE = 5
X = images(7)


def watched(net):
    """`net`, and the sizes of the batches that it is sent."""
    sizes = []
    net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return net, sizes


def net_and_labels():
    net = convnet()
    return *watched(net), answers(net, X)


INNER = HopSkipJump(max_queries=60, init_gradient_queries=30)
AROUND = Transfer(attack=INNER, surrogate=SurrogateNet())


@pytest.mark.slow("every attack in an evaluation")
@pytest.mark.parametrize("attack", [*ATTACKS, AROUND], ids=repr)
def test_no_batch_is_larger_than_that_of_the_evaluation(attack):
    net, sizes, y = net_and_labels()
    if hasattr(attack, "surrogate"):
        surrogate, inside = watched(SurrogateNet())
        attack = dataclasses.replace(attack, surrogate=surrogate)
    else:
        inside = [1]
    sizes.clear()
    with checks.muted(InconclusiveWarning):
        report = rob.evaluate(net, X, y, attacks=[attack], batch_size=SIZE)
    assert max(sizes) <= SIZE
    assert max(inside) <= SIZE
    assert f"batch_size={SIZE}" not in str(report)
    plain = attack.run(net, X, y)
    assert torch.equal(report.outcomes[0].robust, ~plain.success)


@pytest.mark.parametrize(
    "run",
    [
        lambda net, y: rob.robust_accuracy(
            net, X, y, attacks=[INNER, FGM(eps=0.1)], batch_size=SIZE
        ),
        lambda net, y: rob.benchmark(net, X, y, attacks=[INNER], batch_size=SIZE, rounds=1),
        lambda net, y: rob.transfer_matrix([net], None, INNER, X, y, batch_size=SIZE),
        lambda net, y: detectors.collect([net], [INNER], X, y, batch_size=SIZE),
        lambda net, y: rob.evaluate(net, [(X[:4], y[:4])], attacks=[INNER], batch_size=SIZE),
        lambda net, y: list(rob.evaluate_stream(net, X, y, attacks=[INNER], batch_size=SIZE)),
    ],
    ids=["robust_accuracy", "benchmark", "transfer", "collect", "batches", "stream"],
)
def test_every_evaluation_holds_attacks_to_its_batches(run):
    net, sizes, y = net_and_labels()
    sizes.clear()
    run(net, y)
    assert 0 < max(sizes) <= SIZE


@pytest.mark.parametrize("batch_size", [3, 30, 100, 130, 500])
def test_smoothing_sends_no_more_copies_than_it_was_told(batch_size):
    net, sizes, _ = net_and_labels()
    sizes.clear()
    model = defenses.RandomizedSmoothing(TorchClassifier(net), 0.1, n=150, batch_size=batch_size)
    plain = defenses.RandomizedSmoothing(TorchClassifier(convnet()), 0.1, n=150)
    assert torch.equal(model.predict(X), plain.predict(X))
    assert torch.equal(model.certify(X[:2]).counts, plain.certify(X[:2]).counts)
    assert max(sizes) <= batch_size
    sizes.clear()
    torch.testing.assert_close(model.logits(X), plain.logits(X))
    assert max(sizes) <= batch_size
