"""Certification by randomised smoothing against the floor of as many bare forward passes.

    python -m pytest benchmarks/test_defenses_smoothing.py -s

On one thread, in seconds of its processor's time. What is certified has no part in it, so that the
published net serves though it was not trained with noise. The floor is timed just before and just
after the certification, in the batches that it sends.
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
LIMIT = 1.5  # in floors: drawing and adding the noise are part of each pass
SECONDS = 600  # for 500 images


@one_thread()
def bare(net: nn.Module, x: Tensor, batch_size: int, passes: int) -> float:
    """Seconds for a forward pass of one sample."""
    batch = x[torch.arange(batch_size) % len(x)]
    with torch.no_grad():
        net(batch)
        start = time.process_time()
        for _ in range(passes):
            net(batch)
    return (time.process_time() - start) / (passes * batch_size)


@one_thread()
def certified(smoothed: RandomizedSmoothing, x: Tensor) -> float:
    """Seconds to certify `x`, divided by the passes that it takes."""
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
    floor = (before + bare(net, x, smoothed.batch_size, 200)) / 2
    _, peak = peak_memory(lambda: smoothed.certify(x[:2]))
    sent = smoothed.n0 + smoothed.n
    entry = Entry(
        suite="defenses",
        job=f"smoothing, 500 certificates of {n:,} draws, {CASE.title}",
        who=f"advkit `{type(smoothed).__name__}`, from {images} images",
        ours=True,
        figures=Figures(
            floors=seconds / floor, forward=sent, seconds=500 * sent * seconds, mib=peak / 2**20
        ),
        limits={"floors": LIMIT, "seconds": SECONDS},
        remark="floors: of as many bare forward passes",
    )
    record(benchmark, entry)
    check(entry)
