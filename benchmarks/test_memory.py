"""Peak memory of attacks beside that of one bare forward and backward pass.

What counts is the tensors that are alive at once, as torch's profiler records them: the resident
size of a process says more about its allocator's habits than about the attack.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import pytest
import torch

from advkit import attacks
from benchmarks.nets import LENET, RESNET20, floor


def peak(job: Callable[[], object]) -> int:
    """Most bytes that `job` has in tensors at once, above what was there before."""
    job()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        job()
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(nbytes for _, nbytes in changes))


@pytest.mark.parametrize("case", [RESNET20, LENET], ids=lambda case: case.factory)
@pytest.mark.parametrize("stop", ["never", "first"])
def test_peak_memory(benchmark, case, stop):
    net, x, y = case.load()
    attack = attacks.PGD(eps=case.eps, steps=10, stop=stop)
    bare, batch = peak(lambda: floor(net, x, y)), x.nelement() * x.element_size()
    most = benchmark.pedantic(peak, args=(lambda: attack.run(net, x, y),), rounds=1)
    limit = 1.3 * bare + 6 * batch
    benchmark.extra_info |= {"peak": most, "bare": bare, "batch": batch, "limit": int(limit)}
    print(f"\n{case.factory} {stop}: {most / 2**20:.1f} MiB, bare pass {bare / 2**20:.1f} MiB, "
          f"batch {batch / 2**20:.2f} MiB, limit {limit / 2**20:.1f} MiB")  # fmt: skip
    assert most < limit
