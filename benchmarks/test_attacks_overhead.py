"""Overhead of attacks on ResNet-20: the share of their time outside the passes of the net.

    python -m pytest benchmarks/test_attacks_overhead.py -s

Each call of the net and each call of `torch.autograd.grad` is timed. The remaining time is that of
the attack itself: steps, projections, records.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from advkit import attacks
from benchmarks.attacking import small
from benchmarks.nets import RESNET20
from benchmarks.table import Entry, Figures, record
from benchmarks.timing import one_thread

EPS = RESNET20.eps
# Share of the time of an attack: the limit of the project.
MAX_OVERHEAD = 0.05

ATTACKS = [
    attacks.FGSM(eps=EPS),
    attacks.FGM(eps=0.5),
    attacks.BIM(eps=EPS, stop="never"),
    attacks.PGD(eps=EPS, steps=20, stop="never"),
    attacks.PGD(eps=EPS, steps=40),
    attacks.PGD(norm="l2", eps=0.5, steps=20, stop="never"),
    attacks.PGD(norm="l1", eps=5.0, steps=20, stop="never"),
    attacks.APGD(eps=EPS, steps=20, stop="never"),
    attacks.APGD(norm="l2", eps=0.5, steps=20, stop="never"),
    attacks.APGD(norm="l1", eps=5.0, steps=20, stop="never"),
    attacks.DeepFool(),
    attacks.DeepFool(norm="linf"),
    attacks.FAB(steps=30),
    attacks.FAB(norm="linf", steps=30),
    attacks.DDN(steps=30),
    attacks.FMN(steps=30),
    attacks.FMN(norm="l0", steps=30),
    attacks.SigmaZero(steps=30),
    attacks.CarliniWagnerL2(search_steps=2, steps=20),
    attacks.LBFGS(search_steps=2, steps=20),
    attacks.JSMA(gamma=0.01),
    attacks.Square(eps=2 / 255, max_queries=100),
    attacks.Square(norm="l2", eps=0.3, max_queries=100),
    attacks.HopSkipJump(max_queries=60),
]


class Passes:
    """Timer of the seconds in passes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, job):
        """Return `job` with its time counted."""

        def call(*args, **options):
            start = time.perf_counter()
            try:
                return job(*args, **options)
            finally:
                self.seconds += time.perf_counter() - start

        return call


@contextmanager
def timed_passes(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Iterator[Passes]:
    """Time the passes of `net`."""
    passes = Passes()
    with monkeypatch.context() as patch:
        patch.setattr(net, "forward", passes.timed(net.forward))
        patch.setattr(torch.autograd, "grad", passes.timed(torch.autograd.grad))
        yield passes


@one_thread()
@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_overhead(benchmark, monkeypatch, attack):
    net, x, y = RESNET20.load_correct(4 if benchmark.disabled else 64)
    attack = small(attack) if benchmark.disabled else attack
    attack.run(net, x[:4], y[:4])  # warm-up
    with timed_passes(net, monkeypatch) as passes:
        start = time.perf_counter()
        benchmark.pedantic(attack.run, args=(net, x, y), rounds=1)
        seconds = time.perf_counter() - start
    assert 0 < passes.seconds < seconds
    if benchmark.disabled:
        return
    overhead = 1 - passes.seconds / seconds
    entry = Entry(
        "attacks, overhead",
        "ResNet-20, 64 images",
        f"advkit `{attack!r}`",
        True,
        Figures(seconds=seconds, overhead=overhead),
        {"overhead": MAX_OVERHEAD},
        remark=f"{100 * overhead:.1f} % outside the passes",
    )
    record(benchmark, entry)
    assert overhead < 2 * MAX_OVERHEAD  # the table marks attacks slightly above the limit
