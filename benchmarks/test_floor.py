"""Attacks against the floor: how many bare forward and backward passes of the batch they take.

    python -m pytest benchmarks --benchmark-columns=median,iqr,rounds

The figure `floors` of a benchmark is the median over the rounds, see `timing.py`.
"""

from __future__ import annotations

import pytest

from advkit import attacks
from benchmarks.nets import LENET, RESNET20
from benchmarks.timing import in_floors

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
    result, floors = in_floors(
        benchmark,
        lambda: attack.run(net, x, y),
        (net, x, y),
        rounds=9 if stop == "never" else 25,
        warmup_rounds=1,
    )
    assert result.success.all()
    if floors is None:
        return
    benchmark.extra_info |= {
        "limit": limit,
        "success": float(result.success.float().mean()),
        "forward_per_input": float(result.queries.forward.float().mean()),
        "backward_per_input": float(result.queries.backward.float().mean()),
    }
    print(f"\n{case.factory} {stop}: {floors:.2f} floors of {benchmark.extra_info['floor_ms']} ms")
    assert floors < limit
