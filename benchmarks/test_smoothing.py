"""Certification by randomised smoothing against the floor of as many bare forward passes.

    python -m pytest benchmarks/test_smoothing.py -s

On one thread, in seconds of its processor's time. What is certified has no part in it, so that the
published net serves though it was not trained with noise. The floor is timed just before and just
after the certification, in the batches that it sends.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from advkit.defenses.randomized_smoothing import RandomizedSmoothing
from benchmarks.nets import Case
from benchmarks.test_minimum_norm import one_thread

CASE = Case("mnist_cnn_certified", "mnist_cnn_certified.pt", "mnist_test.npz", 200, 0.1)
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
    all_500 = 500 * (smoothed.n0 + smoothed.n) * seconds
    benchmark.extra_info |= {
        "floors": seconds / floor,
        "seconds_of_500": all_500,
        "images_per_second": 500 / all_500,
    }
    print(
        f"\n{seconds / floor:.2f} floors; 500 images in {all_500:.0f} s, "
        f"{500 / all_500:.2f} images a second"
    )
    assert seconds < LIMIT * floor
    assert all_500 < SECONDS
