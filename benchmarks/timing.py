"""Time in floors: how many bare forward and backward passes of its batch a job takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

from torch import Tensor, nn

from benchmarks.nets import floor

Result = TypeVar("Result")


def in_floors(
    benchmark: Any,
    job: Callable[[], Result],
    batch: tuple[nn.Module, Tensor, Tensor],
    *,
    rounds: int,
    warmup_rounds: int = 0,
    bare: Callable[[nn.Module, Tensor, Tensor], object] = floor,
) -> tuple[Result, float | None]:
    """What `job` returns, and the median over its rounds of its time in floors of the `batch`.

    The floor is a `bare` pass. Each round times it just before and just after the job, so that a
    machine whose speed wanders moves both. With the benchmarks disabled the job runs once and the
    time is `None`.
    """
    floors, times = [], []

    def timed_floor() -> None:
        start = time.perf_counter()
        for _ in range(5):
            bare(*batch)
        floors.append((time.perf_counter() - start) / 5)

    def timed_job() -> Result:
        start = time.perf_counter()
        result = job()
        times.append(time.perf_counter() - start)
        return result

    bare(*batch)
    result = benchmark.pedantic(
        timed_job, setup=timed_floor, rounds=rounds, warmup_rounds=warmup_rounds
    )
    if benchmark.disabled:
        return result, None
    timed_floor()
    around = [(a + b) / 2 for a, b in pairwise(floors)]
    ratios = [t / f for t, f in zip(times, around, strict=True)][warmup_rounds:]
    ratio = statistics.median(ratios)
    benchmark.extra_info |= {
        "floors": round(ratio, 2),
        "floor_ms": round(1000 * statistics.median(floors), 2),
    }
    return result, ratio
