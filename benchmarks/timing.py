"""Time of a job in passes: one pass is a forward and backward pass of the same batch."""

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

from benchmarks.nets import bare_pass

Result = TypeVar("Result")


class Times(NamedTuple):
    """Medians over the rounds; `None` if benchmarks are disabled."""

    passes: float | None
    seconds: float | None


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, and the BLAS that peers use through NumPy and SciPy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            yield
    finally:
        torch.set_num_threads(before)


def in_passes(
    benchmark: Any,
    job: Callable[[], Result],
    batch: tuple[nn.Module, Tensor, Tensor],
    *,
    rounds: int,
    warmup_rounds: int = 0,
    bare: Callable[[nn.Module, Tensor, Tensor], object] = bare_pass,
) -> tuple[Result, Times]:
    """Return the result of `job`, and its time in seconds and in passes of the `batch`.

    One pass is a call of `bare`. Each round times it just before and just after the job, so that a
    change in the speed of the machine affects both. With benchmarks disabled the job runs once and
    is not timed.
    """
    pass_times, times = [], []

    def timed_pass() -> None:
        start = time.perf_counter()
        for _ in range(5):
            bare(*batch)
        pass_times.append((time.perf_counter() - start) / 5)

    def timed_job() -> Result:
        start = time.perf_counter()
        result = job()
        times.append(time.perf_counter() - start)
        return result

    bare(*batch)
    result = benchmark.pedantic(
        timed_job, setup=timed_pass, rounds=rounds, warmup_rounds=warmup_rounds
    )
    if benchmark.disabled:
        return result, Times(None, None)
    timed_pass()
    around = [(a + b) / 2 for a, b in pairwise(pass_times)]
    ratios = [t / p for t, p in zip(times, around, strict=True)][warmup_rounds:]
    benchmark.extra_info["pass_ms"] = round(1000 * statistics.median(pass_times), 2)
    return result, Times(statistics.median(ratios), statistics.median(times[warmup_rounds:]))
