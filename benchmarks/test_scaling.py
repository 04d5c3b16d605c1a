"""What attacks cost per sample as batches, inputs, classes and threads grow.

    export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296
    export MALLOC_TOP_PAD_=1073741824
    python -m pytest benchmarks/test_scaling.py -s --benchmark-json=bench.json
    python -m benchmarks.plot_scaling bench.json docs/scaling.png

One axis is varied at a time from a base: 64 samples of 28 pixels, 10 classes, one thread. The net
is random and takes images of any size. `floors` is the time in bare passes of the same batch, see
`timing.py`; a sample's forward and backward passes are counted by the attack. The figures for two
threads need two idle cores: threads that wait for each other spin.

The variables let glibc keep the pages that it has. Otherwise it gives tensors of 224 pixels back
and asks for new pages at every step, which on a slow system takes up to half of the time: FAB,
JSMA and Square then miss their limits on that axis.
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
from benchmarks.timing import in_floors

CHANNELS = 3

pytestmark = pytest.mark.slow  # five minutes: every size of every axis


@dataclass(frozen=True)
class Size:
    """How large a job is."""

    batch: int = 64
    pixels: int = 28
    classes: int = 10
    threads: int = 1

    def load(self) -> tuple[nn.Module, Tensor, Tensor]:
        """A net, images and what the net says of them."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, CHANNELS, self.pixels, self.pixels)
        x = torch.rand(shape, generator=generator)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Pooled(self.classes).eval().requires_grad_(False)
        with torch.no_grad():
            return net, x, net(x).argmax(1)


class Pooled(nn.Module):
    """Two convolutions and the mean over what is left of the image."""

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
    """JSMA that changes six features at most, whatever the size of the image."""
    return attacks.JSMA(gamma=6 / (CHANNELS * size.pixels**2), candidates=2)


# Few steps of each: what a step costs is what grows.
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

# At the largest value of an axis a pass, with all that the attack does about it, takes at most so
# many times the floors that it takes at the base. Counted by pass it is the same for attacks whose
# number of passes depends on the classes (DeepFool) or on when samples are finished.
GROWTH = 1.5
# Two threads share out the net's passes, but hardly the short operations of an attack on a small
# batch. HopSkipJump draws a number for each feature of each query, and LBFGS keeps sixteen tensors
# of the size of the batch: at 224 pixels these are new pages from the system at every step.
NOT_HELD = {
    *(("threads", name) for name in ATTACKS),
    *(("pixels", name) for name in ("HopSkipJump", "LBFGS")),
}


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, int, str], float]:
    """Floors for each pass, by axis, value and attack."""
    return {}


# HopSkipJump finds no other label on an untrained net: what is measured is the cost of its queries.
@pytest.mark.filterwarnings("ignore:the search could not begin")
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(("axis", "value"), CELLS)
def test_cost(benchmark, measured, axis, value, name):
    if benchmark.disabled and value != min(AXES[axis]):
        pytest.skip("without the clock only the smallest of each axis")
    size = replace(BASE, **{axis: value})
    attack = ATTACKS[name](size)
    with threads(size.threads):
        net, x, y = size.load()
        result, most = peak_memory(lambda: attack.run(net, x, y))
        _, times = in_floors(
            benchmark, lambda: attack.run(net, x, y), (net, x, y), rounds=rounds(size)
        )
    figures: dict[str, Any] = {
        "axis": axis,
        "value": value,
        "attack": name,
        "forward_per_input": round(result.queries.forward.float().mean().item(), 2),
        "backward_per_input": round(result.queries.backward.float().mean().item(), 2),
        "peak_mib": round(most / 2**20, 3),
    }
    if times.floors is not None and times.seconds is not None:
        passes = (figures["forward_per_input"] + figures["backward_per_input"]) / 2
        measured[axis, value, name] = times.floors / passes
        figures |= {
            "ms_per_sample": round(1000 * times.seconds / size.batch, 4),
            "floors": round(times.floors, 2),
            "floors_per_pass": round(times.floors / passes, 3),
        }
    benchmark.extra_info |= figures
    print("\n" + ", ".join(f"{key} {value}" for key, value in figures.items()))


def rounds(size: Size) -> int:
    """Few where one takes long."""
    return 1 if size.batch * size.pixels**2 > 64 * 112**2 else 3


@pytest.mark.parametrize(
    ("axis", "name"),
    [(axis, name) for axis in AXES for name in ATTACKS if (axis, name) not in NOT_HELD],
)
def test_cost_does_not_grow(measured, axis, name):
    base, largest = getattr(BASE, axis), max(AXES[axis])
    if (axis, largest, name) not in measured or (axis, base, name) not in measured:
        pytest.skip("needs the clock, and the figures of this axis")
    assert measured[axis, largest, name] <= GROWTH * measured[axis, base, name]
