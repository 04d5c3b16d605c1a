"""Time of OutputForest compared with `predict_proba` of scikit-learn, on one thread.

    python -m pytest benchmarks/test_detectors.py -s --benchmark-columns=median,iqr,rounds

A request is a call of `anomaly_score` with one row. Each request has a new row, so that most of its
nodes are not in the caches of the processor. Kalin, Ciolino and Noever (2021, arXiv:2102.09695)
report 0.12 ms. For batches, each round of advkit follows one of scikit-learn, so that a change in
the speed of the machine affects both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache
from itertools import cycle
from typing import Any

import numpy as np
import pytest

from advkit.detectors.forest import OutputForest
from benchmarks.table import TIME_TOLERANCE, Entry, Figures, check, record

# Rows and outputs of a table: many images with ten classes, few images with a thousand classes.
SIZES = [(17_500, 10), (2_100, 1_000)]
# Milliseconds of a request, from the article.
REQUEST_MS = 0.12
BATCH = 1_000


@cache
def fitted(rows: int, width: int) -> tuple[OutputForest, np.ndarray]:
    """Fit a forest of a hundred trees, and return it with rows that it was not fitted to."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(rows + BATCH, width))
    attacked = rng.integers(2, size=rows + BATCH)
    logits[:, 0] += 3 * (1 - attacked)  # models are less confident under attack
    powers = np.exp(logits)
    x = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    forest = OutputForest(random_state=0).fit(x[:rows], attacked[:rows])
    return forest, x[rows:]


def seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def paired_times(
    benchmark: Any, ours: Callable[[], object], peer: Callable[[], object]
) -> tuple[float, float]:
    """Measure the median times of `ours`, which is benchmarked, and of `peer`."""
    times: list[float] = []
    peers: list[float] = []
    benchmark.pedantic(
        lambda: times.append(seconds(ours)),
        setup=lambda: peers.append(seconds(peer)),
        rounds=15,
        warmup_rounds=1,
    )
    return statistics.median(times), statistics.median(peers)


def entry(job: str, by: str, figures: Figures, **more: Any) -> Entry:
    """Create an entry of the table."""
    return Entry("detectors", job, f"{by}, 100 trees", by == "advkit", figures, **more)


@pytest.mark.parametrize("by", ["advkit", "scikit-learn"])
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_a_request(benchmark, rows, width, by):
    forest, x = fitted(200 if benchmark.disabled else rows, width)
    requests = cycle([row[None] for row in x])
    benchmark.pedantic(
        forest.anomaly_score if by == "advkit" else forest.estimator_.predict_proba,
        setup=lambda: ((next(requests),), {}),
        rounds=5_000 if by == "advkit" else 100,
        warmup_rounds=10,
    )
    if benchmark.disabled:
        return
    depth = max(tree.tree_.max_depth for tree in forest.estimator_.estimators_)
    request = entry(
        f"a request, fitted to {rows:,} x {width:,}, {depth} levels",
        by,
        Figures(seconds=benchmark.stats.stats.median),
        limits={"seconds": REQUEST_MS / 1000} if by == "advkit" else {},
    )
    record(benchmark, request)
    check(request)


@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_a_batch(benchmark, rows, width):
    forest, x = fitted(200 if benchmark.disabled else rows, width)
    expected = forest.estimator_.predict_proba(x)
    np.testing.assert_array_equal(forest.predict_proba(x), expected)
    times = paired_times(
        benchmark, lambda: forest.predict_proba(x), lambda: forest.estimator_.predict_proba(x)
    )
    if benchmark.disabled:
        return
    job = f"a batch of {BATCH:,}, fitted to {rows:,} x {width:,}"
    for by, median in zip(("advkit", "scikit-learn"), times, strict=True):
        record(benchmark, entry(job, by, Figures(seconds=median), remark="bitwise equal results"))
    assert times[0] <= (1 + TIME_TOLERANCE) * times[1]
