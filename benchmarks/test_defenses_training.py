"""Cost of steps of adversarial training in training passes.

    python -m pytest benchmarks/test_defenses_training.py -s

One pass is a forward pass of the batch and a backward pass to all parameters. The limit of a loss
with k attack steps and one training pass is 1.1 * (k + 1). The limit of TRADES and MART is
1.1 * (k + 3), because they learn from clean inputs and adversarial examples, and compare the two
during the attack.

In the smallest net a backward pass to the input takes as long as one to all parameters. The passes
of torch alone are therefore near the limit, and its own limits are wider. Its figures rise by half
if other processes share the caches of the processor.
"""

from __future__ import annotations

from dataclasses import dataclass

import examples.studies.nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advkit import attacks
from advkit.defenses.adversarial_training import AdversarialTraining
from advkit.defenses.mart import MART
from advkit.defenses.trades import TRADES
from advkit.eval.benchmarking.cost import peak_memory
from benchmarks.table import Entry, Figures, check, record
from benchmarks.timing import in_passes, one_thread


@dataclass(frozen=True)
class Net:
    """An untrained net with a random batch."""

    factory: str
    shape: tuple[int, ...]
    eps: float
    factor: float  # limit of the cost of each counted pass

    def load(self) -> tuple[nn.Module, Tensor, Tensor]:
        torch.manual_seed(0)
        net: nn.Module = getattr(examples.studies.nets, self.factory)()
        return net.train(), torch.rand(self.shape), torch.randint(10, self.shape[:1])


NETS = [
    Net("mnist_cnn_certified", (128, 1, 28, 28), 0.3, 1.7),
    Net("mnist_lenet5", (64, 1, 28, 28), 0.3, 1.1),
    Net("cifar10_resnet20", (32, 3, 32, 32), 8 / 255, 1.1),
]


def training(eps):
    """Return each loss by name, with the number of passes that its limit counts."""
    ten = attacks.PGD(eps=eps, steps=10)
    return {
        "fgsm": (AdversarialTraining(attack=attacks.FGSM(eps=eps)), 2),
        "fgsm-random": (AdversarialTraining(attack=attacks.FGSM(eps=eps, random_start=True)), 2),
        "pgd-7": (AdversarialTraining(attack=attacks.PGD(eps=eps, steps=7)), 8),
        "pgd-10": (AdversarialTraining(attack=ten), 11),
        "trades-10": (TRADES(attack=ten), 13),
        "mart-10": (MART(attack=ten), 13),
    }


def learn(net: nn.Module, value: Tensor) -> None:
    net.zero_grad()
    torch.autograd.backward(value)


@pytest.mark.parametrize("name", training(0.1))
@pytest.mark.parametrize("case", NETS, ids=lambda net: net.factory)
def test_a_step(benchmark, case, name):
    net, x, y = case.load()
    if benchmark.disabled:
        x, y = x[:2], y[:2]  # untimed, the step only has to run
    loss, passes = training(case.eps)[name]
    step = lambda: learn(net, loss(net, x, y))  # noqa: E731
    with one_thread():
        mib = None if benchmark.disabled else peak_memory(step)[1] / 2**20
        _, times = in_passes(
            benchmark,
            step,
            (net, x, y),
            rounds=5,
            warmup_rounds=1,
            bare=lambda net, x, y: learn(net, F.cross_entropy(net(x), y)),
        )
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    if times.passes is None:
        return
    entry = Entry(
        suite="defenses",
        job=f"a training step, {case.factory}, batch {len(x)}",
        name=f"advkit {name}",
        ours=True,
        figures=Figures(passes=times.passes, seconds=times.seconds, mib=mib),
        limits={"passes": case.factor * passes},
    )
    record(benchmark, entry)
    check(entry)
