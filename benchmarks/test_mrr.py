"""What sixteen defenders cost: their fit, and the risk of a request and of a batch.

    python -m pytest benchmarks/test_mrr.py -s --benchmark-columns=median,iqr,rounds

The net is the article's for MNIST, 784-300-100-10, on as many random images as MNIST has: what it
learns is nothing, what it costs is the same. The limits are those of the project on two cores.
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

FIT_S = 600
MS = {1: 5, 1000: 1000}


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
    """Sixteen defenders that were trained briefly."""
    return MRR(LatentDefenders(count=16, epochs=1)).fit(net(), *images(2000))


def test_a_fit(benchmark):
    n, count = (500, 2) if benchmark.disabled else (60_000, 16)
    mrr = MRR(LatentDefenders(count=count))
    benchmark.pedantic(mrr.fit, args=(net(), *images(n)), rounds=1)
    if benchmark.disabled:
        return
    note(benchmark, f"a fit of {count} defenders on {n:,} images", FIT_S, None)


def note(benchmark: Any, job: str, limit: float, mib: float | None) -> None:
    """A line of the table, held to its limit."""
    figures = Figures(seconds=benchmark.stats.stats.median, mib=mib)
    entry = Entry("MRR", job, "advkit `MRR`", True, figures, {"seconds": limit})
    record(benchmark, entry)
    check(entry)


@pytest.mark.parametrize("n", [1, 1000])
def test_risk(benchmark, n):
    mrr, (x, _) = fitted(), images(2000)
    requests = cycle(torch.split(x, n))
    benchmark.pedantic(
        mrr.risk,
        setup=lambda: ((next(requests),), {}),
        rounds=200 if n == 1 else 10,
        warmup_rounds=2,
    )
    if benchmark.disabled:
        return
    _, peak = peak_memory(lambda: mrr.risk(x[:n]))
    note(benchmark, f"risk of {n:,} by 16 defenders", MS[n] / 1000, peak / 2**20)
