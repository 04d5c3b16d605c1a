"""Memory over repeated calls of every attack, which must not grow.

    python -m pytest benchmarks/test_growth.py -s

Measured are live tensors that operations of torch created, including those that only a graph
references, and memory that Python and NumPy allocated.
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

# Bytes: less than 200 calls use that each keep 8 KiB.
MAX_GROWTH = 2**20
CALLS = 200
# Calls if benchmarks are disabled.
FEW_CALLS = 5
WARM_UP_CALLS = 3

pytestmark = pytest.mark.slow  # minutes: 200 calls of every attack


def growth(job: Callable[[], object], calls: int) -> tuple[int, int]:
    """Measure the growth in bytes of tensors, and of Python with NumPy, over `calls` of `job`."""
    with Storages() as storages:
        tensors = difference(job, calls, lambda: storages.current)
    tracemalloc.start()
    try:
        return tensors, difference(job, calls, lambda: tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()


def difference(job: Callable[[], object], calls: int, nbytes: Callable[[], int]) -> int:
    """Measure the growth of `nbytes` over `calls` of `job`, after warm-up calls."""
    before = 0
    for call in range(WARM_UP_CALLS + calls):
        if call == WARM_UP_CALLS:
            gc.collect()
            before = nbytes()
        job()
    gc.collect()
    return nbytes() - before


class Far:
    """Detector of inputs: alarm far from the mean image."""

    reads_inputs = True

    def __init__(self, x: Tensor) -> None:
        self.mean = x.mean(0)

    def anomaly_score(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the distance to the mean `(n,)`."""
        return torch.linalg.vector_norm((x - self.mean).flatten(1), dim=1)

    def margin_over_threshold(self, x: Tensor, labels: Tensor, threshold: float) -> Tensor:
        """Return the excess over the threshold `(n, 1)`."""
        return self.anomaly_score(x, labels)[:, None] - threshold

    def features(self, x: Tensor) -> Tensor:
        """Return the flattened images `(n, d)`."""
        return x.flatten(1)


class Confident:
    """Detector of outputs: alarm at high scores."""

    def anomaly_score(self, outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the highest score `(n,)`."""
        return outputs.max(1)


def highest_score(outputs: Tensor) -> Tensor:
    """Return the highest score `(n,)`."""
    return outputs.amax(1)


def small_net() -> nn.Module:
    """Create the same random net at every call: digits to ten logits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)
        ).eval()


X = digits("test").x[:2]
START_IMAGES = digits("train").x[:32]
PGD = attacks.PGD(eps=0.1, steps=4)

# Every attack with few steps: a leak in them would be larger in a whole run.
ATTACKS = [
    attacks.FGSM(eps=0.1),
    attacks.FGM(eps=0.5),
    attacks.BIM(eps=0.1, steps=4),
    PGD,
    attacks.PGD(eps=0.1, steps=4, stop="never", momentum=1.0, restarts=2),
    attacks.PGD(norm="l1", eps=2.0, steps=4, stop="never"),
    attacks.APGD(eps=0.1, steps=4),
    attacks.APGD(norm="l1", eps=2.0, steps=10, candidates=2, loss="dlr"),
    attacks.Cascade(attacks=[attacks.FGSM(eps=0.1), PGD]),
    attacks.AutoAttack(eps=0.6),
    attacks.Suite(eps=0.1),
    attacks.Suite(eps=2, norm="l0"),
    attacks.SparsePGD(eps=3, unit="pixel", steps=8, restarts=2),
    attacks.DeepFool(steps=4),
    attacks.CarliniWagnerL2(search_steps=2, steps=3, candidates=1),
    attacks.JSMA(gamma=0.1, candidates=2),
    attacks.LBFGS(search_steps=2, steps=3, candidates=1),
    attacks.FAB(steps=10, candidates=1),
    attacks.DDN(steps=4),
    attacks.FMN(norm="l1", steps=4),
    attacks.FMN(norm="l0", steps=4),
    attacks.SigmaZero(steps=4),
    attacks.MinimumNorm(steps=4),
    attacks.MinimumNorm(norm="l0", steps=8),
    attacks.Square(eps=0.1, max_queries=20),
    attacks.SparseRS(eps=3, max_queries=20),
    attacks.HopSkipJump(max_queries=40, init_gradient_queries=5),
    attacks.RandomNoise(eps=0.1, restarts=3),
    attacks.Transfer(attack=PGD, surrogate=small_net()),
    attacks.Adaptive(
        attack=PGD,
        losses=[
            "ce",
            Evasion(detector_score=highest_score, threshold=0.9),
            Mimicry(logits=4 * torch.eye(10)),
        ],
    ),
    attacks.SelectivePGD(eps=0.1, steps=4, start_images=START_IMAGES),
    attacks.JointCarliniWagner(search_steps=1, steps=3, start_images=START_IMAGES),
    attacks.FeatureMatching(eps=0.1, steps=4, start_images=START_IMAGES),
    attacks.Substitute(max_queries=16, rounds=2, epochs=1),
]


def job(attack: Any) -> Callable[[], object]:
    """Return a call of `attack`, on a guard if the attack supports guards."""
    net = small_net()
    with torch.no_grad():
        y = net(X).argmax(1)
    if isinstance(attack, attacks.Substitute):
        return lambda: attack.fit(net, small_net(), X)
    if isinstance(attack, attacks.Adaptive):
        return lambda: attack.run(Guard(net, Confident(), threshold=0.9), X, y)
    if hasattr(attack, "start_images"):
        return lambda: attack.run(Guard(net, Far(START_IMAGES), threshold=5.0), X, y)
    return lambda: attack.run(net, X, y)


def test_every_attack_is_listed():
    others = {"Evasion", "Mimicry", "probes"}  # losses and a function
    assert {type(attack).__name__ for attack in ATTACKS} == set(attacks.__all__) - others


@pytest.mark.filterwarnings("ignore::advkit.InconclusiveWarning")
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_memory_does_not_grow(benchmark, attack):
    calls = FEW_CALLS if benchmark.disabled else CALLS
    with one_thread():
        tensors, python = benchmark.pedantic(growth, args=(job(attack), calls), rounds=1)
    benchmark.extra_info |= {"calls": calls, "tensors": tensors, "python": python}
    print(f"\n{type(attack).__name__}: {calls} calls, tensors {tensors:+d} B, Python {python:+d} B")
    assert tensors < MAX_GROWTH
    assert python < MAX_GROWTH


@pytest.mark.parametrize(
    ("keeps", "what"),
    [
        (lambda: torch.ones(2048), 0),
        (lambda: torch.ones(2048, requires_grad=True).exp().sum().grad_fn, 0),
        (lambda: bytes(8192), 1),
    ],
    ids=["tensors", "graphs", "bytes"],
)
def test_kept_memory_is_detected(keeps, what):
    kept: list[object] = []
    grown = growth(lambda: kept.append(keeps()), CALLS)
    assert grown[what] >= 8192 * CALLS > MAX_GROWTH
