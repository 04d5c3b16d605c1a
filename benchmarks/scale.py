"""Evaluations at scale: several workers, the share of the store, and the memory of a stream.

    python -m benchmarks.scale workers
    python -m benchmarks.scale store
    python -m benchmarks.scale stream

`workers` evaluates the suite on 1,000 CIFAR-10 images (JPEG copies) and ResNet-20, with one, two
and four worker processes of one thread each, and compares the times with the cost model of
docs/scale.md. `store` measures the share of processor time that a store takes. `stream` evaluates
FGSM on streams of 2,000 to 200,000 images of 28 x 28, each in a process of its own, and prints peak
memory and time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from examples.studies.nets import cifar10_resnet20
from torch import Tensor, nn

from advkit.attacks import FGSM, PGD, Suite
from advkit.data import load_npz
from advkit.eval import Report, evaluate
from advkit.eval.store.store import Store
from benchmarks.nets import DATA

WEIGHTS, IMAGES = "cifar10_resnet20.pt", "cifar10_test_jpeg_1000_2999.npz"
EPS = 1 / 255  # a third of the images withstand it, so that all stages of the suite have work
INPUTS = 1000
WORKERS = (1, 2, 4)
STREAMS = (2_000, 20_000, 200_000)
BATCH = 128
BARE_PASSES = 5  # that the time of a pass is the least of


def resnet20() -> nn.Module:
    """Return ResNet-20 with its published weights."""
    net = cifar10_resnet20()
    net.load_state_dict(torch.load(DATA / WEIGHTS, weights_only=True))
    return net.eval()


def images(n: int) -> tuple[Tensor, Tensor]:
    """Return the first `n` images and their labels."""
    data = load_npz(DATA / IMAGES).head(n)
    return data.x, data.y


def pass_seconds(net: nn.Module, x: Tensor) -> tuple[float, float]:
    """Return the seconds of a forward pass, and of a backward pass, for one input."""
    forward, both = [], []
    x = x[:BATCH].clone().requires_grad_()
    for _ in range(BARE_PASSES):
        start = time.perf_counter()
        total = net(x).logsumexp(1).sum()
        forward.append(time.perf_counter() - start)
        torch.autograd.grad(total, x)
        both.append(time.perf_counter() - start)
    return min(forward) / len(x), (min(both) - min(forward)) / len(x)


def samples(report: Report) -> tuple[int, int]:
    """Return the samples forward and backward of all attacks, and of clean passes and noise."""
    forward = sum(int(outcome.forward.sum()) for outcome in report.outcomes)
    backward = sum(int(outcome.backward.sum()) for outcome in report.outcomes)
    return forward + 2 * len(report.clean), backward


def evaluated(pool: ProcessPoolExecutor, n: int, attacks: list[Any]) -> tuple[Report, float]:
    """Evaluate ResNet-20 with the workers of a pool, and return the report and its seconds."""
    x, y = images(n)
    start = time.perf_counter()
    report = evaluate(None, x, y, attacks=attacks, factory=resnet20, executor=pool)
    return report, time.perf_counter() - start


def measure_workers() -> None:
    """Print the time with one, two and four workers, next to that of the cost model."""
    torch.set_num_threads(1)
    forward_seconds, backward_seconds = pass_seconds(resnet20(), images(BATCH)[0])
    print(f"a pass of one input: {1000 * (forward_seconds + backward_seconds):.2f} ms")
    print("| workers | seconds | of one worker | cost model | digest |")
    print("| --- | --- | --- | --- | --- |")
    alone = None
    for workers in WORKERS:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            evaluated(pool, INPUTS, [FGSM(eps=EPS)])  # starts the workers
            report, seconds = evaluated(pool, INPUTS, [Suite(eps=EPS)])
        alone = alone or seconds
        forward, backward = samples(report)
        used = min(workers, os.cpu_count() or 1)
        predicted = (forward * forward_seconds + backward * backward_seconds) / used
        print(
            f"| {workers} | {seconds:.1f} | {seconds / alone:.3f} | {predicted:.1f} | "
            f"{report.digest[:12]} |",
            flush=True,
        )
    print(f"samples forward {forward:,}, backward {backward:,}; {report.worst_case}")


def measure_store() -> None:
    """Print the share of processor time that a store takes."""
    torch.set_num_threads(1)
    net, (x, y) = resnet20(), images(INPUTS)
    spent = 0.0

    def clocked(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal spent
            start = time.process_time()
            try:
                return function(*arguments)
            finally:
                spent += time.process_time() - start

        return run

    for name in ("__init__", "get", "save", "finish"):
        setattr(Store, name, clocked(getattr(Store, name)))
    for attack in (FGSM(eps=EPS), PGD(eps=EPS), Suite(eps=EPS)):
        spent = 0.0
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            evaluate(net, x, y, attacks=[attack], store=folder)
            total = time.process_time() - start
        print(f"{attack}: {spent:.3f} s of {total:.1f} s, {spent / total:.2%}", flush=True)


def stream(n: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `n` random images in batches."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, n, BATCH):
        size = min(BATCH, n - start)
        x = torch.rand(size, 1, 28, 28, generator=generator)
        yield x, (x.flatten(1)[:, :10]).argmax(1)


def evaluate_stream_of(n: int) -> None:
    """Evaluate FGSM on a stream of `n` images, and print peak memory in MiB and seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 144, 10)
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = evaluate(net, stream(n), attacks=[FGSM(eps=0.1)], store=folder)
    assert len(report.clean) == n
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    print(f"| {n:,} | {peak:.1f} | {time.perf_counter() - start:.1f} |", flush=True)


def measure_streams() -> None:
    """Print peak memory and time of streams of several lengths."""
    print("| inputs | peak MiB | seconds |\n| --- | --- | --- |", flush=True)
    for n in STREAMS:
        command = [sys.executable, "-m", "benchmarks.scale", "stream", "--inputs", str(n)]
        subprocess.run(command, check=True)


def main() -> None:
    """Print the measurement of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("workers", "store", "stream"))
    parser.add_argument("--inputs", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inputs is not None:
        evaluate_stream_of(args.inputs)
        return
    {"workers": measure_workers, "store": measure_store, "stream": measure_streams}[args.what]()


if __name__ == "__main__":
    main()
