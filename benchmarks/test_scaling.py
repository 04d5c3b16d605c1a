"""Cost of attacks per sample for growing batches, inputs, classes and threads.

    export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296
    export MALLOC_TOP_PAD_=1073741824
    python -m pytest benchmarks/test_scaling.py -s --benchmark-json=bench.json
    python -m benchmarks.plot_scaling bench.json docs/scaling.png

One axis is varied at a time from a base: 64 samples of 28 pixels, 10 classes, one thread. The net
is random and accepts images of any size. `passes` is the time in forward and backward passes of the
same batch, see `timing.py`. Forward and backward passes of a sample are counted by the attack. The
figures for two threads need two idle cores, because waiting threads spin.

The variables make glibc keep its pages. Otherwise it returns the memory of tensors of 224 pixels
and requests new pages at every step, which takes up to half of the time on a slow system. FAB, JSMA
and Square then exceed their limits on that axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advkit import attacks
from advkit.eval.benchmarking.cost import peak_memory
from benchmarks.timing import in_passes

CHANNELS = 3

pytestmark = pytest.mark.slow  # five minutes: every size of every axis


@dataclass(frozen=True)
class Size:
    """Size of a job."""

    batch: int = 64
    pixels: int = 28
    classes: int = 10
    threads: int = 1

    def load(self) -> tuple[nn.Module, Tensor, Tensor]:
        """Create a net and images, and return them with the predicted labels."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, CHANNELS, self.pixels, self.pixels)
        x = torch.rand(shape, generator=generator)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Pooled(self.classes).eval().requires_grad_(False)
        with torch.no_grad():
            return net, x, net(x).argmax(1)


class Pooled(nn.Module):
    """Two convolutions, the mean over the remaining pixels, and a linear layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(CHANNELS, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()
        )
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return 50 * self.head(self.features(x).mean((2, 3)))


BASE = Size()
AXES = {
    "batch": (1, 8, 64, 512),
    "pixels": (28, 56, 112, 224),
    "classes": (10, 100, 1000),
    "threads": (1, 2),
}
CELLS = [(axis, value) for axis, values in AXES.items() for value in values]


def few_features(size: Size) -> attacks.JSMA:
    """Return JSMA that changes at most six features of an image of any size."""
    return attacks.JSMA(gamma=6 / (CHANNELS * size.pixels**2), candidates=2)


# Few steps of each attack: only the cost of a step depends on the size.
ATTACKS = {
    "PGD": lambda size: attacks.PGD(eps=4 / 255, steps=10, stop="never"),
    "DeepFool": lambda size: attacks.DeepFool(steps=3),
    "FAB": lambda size: attacks.FAB(steps=6),
    "CarliniWagnerL2": lambda size: attacks.CarliniWagnerL2(search_steps=1, steps=5),
    "JSMA": few_features,
    "LBFGS": lambda size: attacks.LBFGS(search_steps=1, steps=5),
    "Square": lambda size: attacks.Square(eps=4 / 255, max_queries=12, stop="never"),
    "HopSkipJump": lambda size: attacks.HopSkipJump(max_queries=30, init_gradient_queries=5),
}

# Limit of the time in passes for each pass of an attack: ratio of the largest value of an axis to
# the base. It is counted for each pass because the number of passes depends on the
# classes (DeepFool) and on when samples are finished.
MAX_GROWTH = 1.5
# Cases without this limit. Two threads speed up the passes of the net, but hardly the short
# operations of an attack on a small batch. HopSkipJump draws a number for each feature of a query,
# and LBFGS keeps sixteen tensors of the size of the batch: at 224 pixels both need new pages from
# the system at every step.
NOT_LIMITED = {
    *(("threads", name) for name in ATTACKS),
    *(("pixels", name) for name in ("HopSkipJump", "LBFGS")),
}


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Set the number of threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, int, str], float]:
    """Time in passes for each pass of the attack, by axis, value and attack."""
    return {}


# HopSkipJump finds no other label on an untrained net: only the cost of its queries is measured.
@pytest.mark.filterwarnings("ignore:the search could not begin")
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(("axis", "value"), CELLS)
def test_cost(benchmark, measured, axis, value, name):
    if benchmark.disabled and value != min(AXES[axis]):
        pytest.skip("only the smallest value of each axis runs with benchmarks disabled")
    size = replace(BASE, **{axis: value})
    attack = ATTACKS[name](size)
    with threads(size.threads):
        net, x, y = size.load()
        result, peak = peak_memory(lambda: attack.run(net, x, y))
        _, times = in_passes(
            benchmark, lambda: attack.run(net, x, y), (net, x, y), rounds=rounds(size)
        )
    figures: dict[str, Any] = {
        "axis": axis,
        "value": value,
        "attack": name,
        "forward_per_input": round(result.queries.forward.float().mean().item(), 2),
        "backward_per_input": round(result.queries.backward.float().mean().item(), 2),
        "peak_mib": round(peak / 2**20, 3),
    }
    if times.passes is not None and times.seconds is not None:
        own_passes = (figures["forward_per_input"] + figures["backward_per_input"]) / 2
        measured[axis, value, name] = times.passes / own_passes
        figures |= {
            "ms_per_sample": round(1000 * times.seconds / size.batch, 4),
            "passes": round(times.passes, 2),
            "passes_per_own_pass": round(times.passes / own_passes, 3),
        }
    benchmark.extra_info |= figures
    print("\n" + ", ".join(f"{key} {value}" for key, value in figures.items()))


def rounds(size: Size) -> int:
    """Return the number of rounds, one for large sizes."""
    return 1 if size.batch * size.pixels**2 > 64 * 112**2 else 3


@pytest.mark.parametrize(
    ("axis", "name"),
    [(axis, name) for axis in AXES for name in ATTACKS if (axis, name) not in NOT_LIMITED],
)
def test_cost_does_not_grow(measured, axis, name):
    base, largest = getattr(BASE, axis), max(AXES[axis])
    if (axis, largest, name) not in measured or (axis, base, name) not in measured:
        pytest.skip("needs timed benchmarks, and the figures of this axis")
    assert measured[axis, largest, name] <= MAX_GROWTH * measured[axis, base, name]
