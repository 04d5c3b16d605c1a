"""Memory over repeated calls of every attack: nothing is kept from call to call.

    python -m pytest benchmarks/test_growth.py -s

What counts is the tensors that torch's operations have made and that are still alive, also those
that only a graph holds, and what Python and NumPy have allocated.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from advkit import attacks
from advkit.attacks import Evasion, Mimicry
from advkit.data import digits
from advkit.detectors import Guard
from advkit.eval.benchmarking.cost import Storages
from benchmarks.timing import one_thread

TOLERANCE = 2**20
CALLS, FEW_CALLS, WARM_UP = 200, 5, 3

pytestmark = pytest.mark.slow  # minutes: 200 calls of every attack


def growth(job: Callable[[], object], calls: int) -> tuple[int, int]:
    """By how many bytes tensors, and Python with NumPy, grow over `calls` of a warm `job`."""
    with Storages() as storages:
        tensors = difference(job, calls, lambda: storages.now)
    tracemalloc.start()
    try:
        return tensors, difference(job, calls, lambda: tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()


def difference(job: Callable[[], object], calls: int, nbytes: Callable[[], int]) -> int:
    """By how much `nbytes` grows over `calls` of `job`, after some that warm it up."""
    before = 0
    for call in range(WARM_UP + calls):
        if call == WARM_UP:
            gc.collect()
            before = nbytes()
        job()
    gc.collect()
    return nbytes() - before


class Far:
    """A detector of inputs, which are anomalous far from the mean image."""

    reads_inputs = True

    def __init__(self, x: Tensor) -> None:
        self.mean = x.mean(0)

    def anomaly_score(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the distance to the mean `(n,)`."""
        return torch.linalg.vector_norm((x - self.mean).flatten(1), dim=1)

    def margin_over_threshold(self, x: Tensor, labels: Tensor, threshold: float) -> Tensor:
        """Return the anomaly score minus the threshold, `(n, 1)`."""
        return self.anomaly_score(x, labels)[:, None] - threshold

    def features(self, x: Tensor) -> Tensor:
        """The image `(n, d)`."""
        return x.flatten(1)


class Sure:
    """A detector of outputs, which are anomalous if the largest score is high."""

    def anomaly_score(self, outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The highest score `(n,)`."""
        return outputs.max(1)


def surest(outputs: Tensor) -> Tensor:
    """The highest score `(n,)`."""
    return outputs.amax(1)


def small_net() -> nn.Module:
    """The same random net at every call: digits to ten logits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)
        ).eval()


X = digits("test").x[:2]
NATURAL = digits("train").x[:32]
PGD = attacks.PGD(eps=0.1, steps=4)

# Every attack with few steps: what one of them kept, a whole run would keep more of.
ATTACKS = [
    attacks.FGSM(eps=0.1),
    attacks.FGM(eps=0.5),
    attacks.BIM(eps=0.1, steps=4),
    PGD,
    attacks.PGD(eps=0.1, steps=4, stop="never", momentum=1.0, restarts=2),
    attacks.PGD(norm="l1", eps=2.0, steps=4, stop="never"),
    attacks.DeepFool(steps=4),
    attacks.CarliniWagnerL2(search_steps=2, steps=3, candidates=1),
    attacks.JSMA(gamma=0.1, candidates=2),
    attacks.LBFGS(search_steps=2, steps=3, candidates=1),
    attacks.FAB(steps=10, candidates=1),
    attacks.Square(eps=0.1, max_queries=20),
    attacks.HopSkipJump(max_queries=40, init_gradient_queries=5),
    attacks.RandomNoise(eps=0.1, restarts=3),
    attacks.Transfer(attack=PGD, surrogate=small_net()),
    attacks.Adaptive(
        attack=PGD,
        losses=[
            "ce",
            Evasion(detector_score=surest, threshold=0.9),
            Mimicry(logits=4 * torch.eye(10)),
        ],
    ),
    attacks.SelectivePGD(eps=0.1, steps=4, start_images=NATURAL),
    attacks.JointCarliniWagner(search_steps=1, steps=3, start_images=NATURAL),
    attacks.FeatureMatching(eps=0.1, steps=4, start_images=NATURAL),
    attacks.Substitute(max_queries=16, rounds=2, epochs=1),
]


def job(attack: Any) -> Callable[[], object]:
    """One call of `attack`: on a guard, where it knows of guards."""
    net = small_net()
    with torch.no_grad():
        y = net(X).argmax(1)
    if isinstance(attack, attacks.Substitute):
        return lambda: attack.fit(net, small_net(), X)
    if isinstance(attack, attacks.Adaptive):
        return lambda: attack.run(Guard(net, Sure(), threshold=0.9), X, y)
    if hasattr(attack, "start_images"):
        return lambda: attack.run(Guard(net, Far(NATURAL), threshold=5.0), X, y)
    return lambda: attack.run(net, X, y)


def test_every_attack_is_here():
    losses = {"Evasion", "Mimicry"}
    assert {type(attack).__name__ for attack in ATTACKS} == set(attacks.__all__) - losses


@pytest.mark.filterwarnings("ignore::advkit.InconclusiveWarning")
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_memory_does_not_grow(benchmark, attack):
    calls = FEW_CALLS if benchmark.disabled else CALLS
    with one_thread():
        tensors, python = benchmark.pedantic(growth, args=(job(attack), calls), rounds=1)
    benchmark.extra_info |= {"calls": calls, "tensors": tensors, "python": python}
    print(f"\n{type(attack).__name__}: {calls} calls, tensors {tensors:+d} B, Python {python:+d} B")
    assert tensors < TOLERANCE
    assert python < TOLERANCE


@pytest.mark.parametrize(
    ("keeps", "what"),
    [
        (lambda: torch.ones(2048), 0),
        (lambda: torch.ones(2048, requires_grad=True).exp().sum().grad_fn, 0),
        (lambda: bytes(8192), 1),
    ],
    ids=["tensors", "graphs", "bytes"],
)
def test_what_is_kept_would_be_seen(keeps, what):
    kept: list[object] = []
    grown = growth(lambda: kept.append(keeps()), CALLS)
    assert grown[what] >= 8192 * CALLS > TOLERANCE
