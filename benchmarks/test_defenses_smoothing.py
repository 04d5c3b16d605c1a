"""Cost of certification by randomized smoothing, relative to as many bare forward passes.

    python -m pytest benchmarks/test_defenses_smoothing.py -s

Processor time is measured, with one thread. The cost does not depend on the certificates, so that
the published net can be used although it was not trained with noise. Bare forward passes are timed
just before and just after the certification, with batches of the same size.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from advkit.defenses.randomized_smoothing import RandomizedSmoothing
from advkit.eval.benchmarking.cost import peak_memory
from benchmarks.nets import Case
from benchmarks.table import Entry, Figures, check, record
from benchmarks.timing import one_thread

CASE = Case(
    "certified CNN",
    "mnist_cnn_certified",
    "mnist_cnn_certified.pt",
    "mnist_test.npz",
    batch=200,
    eps=0.1,
    fallback=True,
)
IMAGES, DRAWS = 30, 10_000
# Ratio to bare forward passes: noise is drawn and added in each pass.
MAX_RATIO = 1.5
# Seconds for 500 images: the limit of the project.
MAX_SECONDS = 600


@one_thread()
def bare(net: nn.Module, x: Tensor, batch_size: int, passes: int) -> float:
    """Measure the seconds of a forward pass of one sample."""
    batch = x[torch.arange(batch_size) % len(x)]
    with torch.no_grad():
        net(batch)
        start = time.process_time()
        for _ in range(passes):
            net(batch)
    return (time.process_time() - start) / (passes * batch_size)


@one_thread()
def certified(smoothed: RandomizedSmoothing, x: Tensor) -> float:
    """Measure the seconds to certify `x`, divided by the number of passes."""
    start = time.process_time()
    certificates = smoothed.certify(x)
    seconds = time.process_time() - start
    assert certificates.labels.shape == (len(x),)
    return seconds / (len(x) * (smoothed.n0 + smoothed.n))


def test_certify(benchmark):
    images, n = (2, 200) if benchmark.disabled else (IMAGES, DRAWS)
    net, x, _ = CASE.load()
    smoothed = RandomizedSmoothing(net, 0.25, n=n)
    before = bare(net, x, smoothed.batch_size, 200)
    seconds = benchmark.pedantic(certified, args=(smoothed, x[:images]), rounds=1)
    if benchmark.disabled:
        return
    bare_seconds = (before + bare(net, x, smoothed.batch_size, 200)) / 2
    _, peak = peak_memory(lambda: smoothed.certify(x[:2]))
    sent = smoothed.n0 + smoothed.n
    entry = Entry(
        suite="defenses",
        job=f"smoothing, 500 certificates of {n:,} draws, {CASE.title}",
        name=f"advkit `{type(smoothed).__name__}`, from {images} images",
        ours=True,
        figures=Figures(
            passes=seconds / bare_seconds,
            forward=sent,
            seconds=500 * sent * seconds,
            mib=peak / 2**20,
        ),
        limits={"passes": MAX_RATIO, "seconds": MAX_SECONDS},
        remark="passes: ratio to as many bare forward passes",
    )
    record(benchmark, entry)
    check(entry)
