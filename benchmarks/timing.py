"""Time in floors: how many bare forward and backward passes of its batch a job takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from benchmarks.nets import floor

Result = TypeVar("Result")


class Times(NamedTuple):
    """Medians over the rounds; `None` without the clock."""

    floors: float | None
    seconds: float | None


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, and for the BLAS that peers reach through numpy and scipy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            yield
    finally:
        torch.set_num_threads(before)


def in_floors(
    benchmark: Any,
    job: Callable[[], Result],
    batch: tuple[nn.Module, Tensor, Tensor],
    *,
    rounds: int,
    warmup_rounds: int = 0,
    bare: Callable[[nn.Module, Tensor, Tensor], object] = floor,
) -> tuple[Result, Times]:
    """What `job` returns, and how long it takes, also in floors of the `batch`.

    The floor is a `bare` pass. Each round times it just before and just after the job, so that a
    machine whose speed wanders moves both. With the benchmarks disabled the job runs once, untimed.
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
        return result, Times(None, None)
    timed_floor()
    around = [(a + b) / 2 for a, b in pairwise(floors)]
    ratios = [t / f for t, f in zip(times, around, strict=True)][warmup_rounds:]
    benchmark.extra_info["floor_ms"] = round(1000 * statistics.median(floors), 2)
    return result, Times(statistics.median(ratios), statistics.median(times[warmup_rounds:]))
