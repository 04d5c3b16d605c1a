"""Cost of sixteen defenders: their fit, and the anomaly score of a request and of a batch.

    python -m pytest benchmarks/test_mrr.py -s --benchmark-columns=median,iqr,rounds

The net is that of the article for MNIST, 784-300-100-10, on as many random images as MNIST has. It
learns nothing, but the cost is the same. The limits are those of the project on two cores.
"""

from __future__ import annotations

from functools import cache
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advkit.defenses import MRR, LatentDefenders
from advkit.eval.benchmarking.cost import peak_memory
from benchmarks.table import Entry, Figures, check, record

# Limits of the project: seconds of a fit, and milliseconds by the number of inputs.
FIT_SECONDS = 600
SCORE_MS = {1: 5, 1000: 1000}


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(784, 300), nn.ReLU(), nn.Dropout(), nn.Linear(300, 100), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Dropout(), nn.Linear(100, 10)).eval()


def images(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(n, 1, 28, 28, generator=generator),
        torch.randint(0, 10, (n,), generator=generator),
    )


@cache
def fitted() -> MRR:
    """Train sixteen defenders briefly."""
    return MRR(LatentDefenders(count=16, epochs=1)).fit(net(), *images(2000))


def test_a_fit(benchmark):
    n, count = (500, 2) if benchmark.disabled else (60_000, 16)
    mrr = MRR(LatentDefenders(count=count))
    benchmark.pedantic(mrr.fit, args=(net(), *images(n)), rounds=1)
    if benchmark.disabled:
        return
    record_entry(benchmark, f"a fit of {count} defenders on {n:,} images", FIT_SECONDS, None)


def record_entry(benchmark: Any, job: str, limit: float, mib: float | None) -> None:
    """Record an entry of the table, and check its limit."""
    figures = Figures(seconds=benchmark.stats.stats.median, mib=mib)
    entry = Entry("MRR", job, "advkit `MRR`", True, figures, {"seconds": limit})
    record(benchmark, entry)
    check(entry)


@pytest.mark.parametrize("n", [1, 1000])
def test_anomaly_score(benchmark, n):
    mrr, (x, _) = fitted(), images(2000)
    requests = cycle(torch.split(x, n))
    benchmark.pedantic(
        mrr.anomaly_score,
        setup=lambda: ((next(requests),), {}),
        rounds=200 if n == 1 else 10,
        warmup_rounds=2,
    )
    if benchmark.disabled:
        return
    _, peak = peak_memory(lambda: mrr.anomaly_score(x[:n]))
    record_entry(
        benchmark,
        f"anomaly score of {n:,} inputs by 16 defenders",
        SCORE_MS[n] / 1000,
        peak / 2**20,
    )
