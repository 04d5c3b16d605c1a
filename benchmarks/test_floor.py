"""Attacks against the floor: how many bare forward and backward passes of the batch they take.

    python -m pytest benchmarks --benchmark-columns=median,iqr,rounds

Each round times the floor just before and just after the attack, so that a machine whose speed
wanders moves both. The figure `floors` of a benchmark is the median over the rounds.
"""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

import pytest

from advkit import attacks
from benchmarks.nets import LENET, RESNET20, floor

# How many floors each job may take.
LIMITS = [
    pytest.param(RESNET20, "never", 1.05 * 40, id="resnet20-never"),
    pytest.param(LENET, "never", 1.2 * 40, id="lenet-never"),
    pytest.param(RESNET20, "first", 3.0, id="resnet20-first"),
    pytest.param(LENET, "first", 6.0, id="lenet-first"),
]


@pytest.mark.parametrize(("case", "stop", "limit"), LIMITS)
def test_pgd_40(benchmark, case, stop, limit):
    net, x, y = case.load()
    attack = attacks.PGD(eps=case.eps, steps=40, stop=stop)
    floors, times = [], []

    def timed_floor():
        start = time.perf_counter()
        for _ in range(5):
            floor(net, x, y)
        floors.append((time.perf_counter() - start) / 5)

    def attacked():
        start = time.perf_counter()
        result = attack.run(net, x, y)
        times.append(time.perf_counter() - start)
        return result

    floor(net, x, y)
    result = benchmark.pedantic(
        attacked, setup=timed_floor, rounds=9 if stop == "never" else 25, warmup_rounds=1
    )
    assert result.success.all()
    if benchmark.disabled:
        return
    timed_floor()
    around = [(a + b) / 2 for a, b in pairwise(floors[1:])]
    ratio = statistics.median(t / f for t, f in zip(times[1:], around, strict=True))
    benchmark.extra_info |= {
        "floors": round(ratio, 2),
        "limit": limit,
        "floor_ms": round(1000 * statistics.median(floors), 2),
        "success": float(result.success.float().mean()),
        "forward_per_input": float(result.queries.forward.float().mean()),
        "backward_per_input": float(result.queries.backward.float().mean()),
    }
    print(f"\n{case.factory} {stop}: {ratio:.2f} floors of {benchmark.extra_info['floor_ms']} ms")
    assert ratio < limit
