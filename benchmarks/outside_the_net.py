"""Overhead of attacks, the share of their time outside the net, in two versions of advkit.

    python -m benchmarks.outside_the_net BEFORE/src AFTER/src [--pairs 15] [--data FOLDER]

Each version runs in a process of its own, with one thread. The processes take turns, and processor
time is measured, so that a busy or slow machine affects both. The net is ResNet-20 for CIFAR-10
with its published weights, and the batch has 64 images. The files are `cifar10_resnet20.pt` and
`cifar10_test_0000_0499.npz` in the folder `--data`, by default `$ADVKIT_DATA`. Time inside the net
is that of its forward passes and of the backward passes of torch. An attack that a version lacks
has the overhead nan.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from examples.studies.nets import cifar10_resnet20
from torch import Tensor, nn

from advkit import attacks
from advkit.data import load_npz

EPS = 2 / 255
WEIGHTS, IMAGES = "cifar10_resnet20.pt", "cifar10_test_0000_0499.npz"

# Few steps of each attack: the overhead of a step does not depend on their number.
ATTACKS: dict[str, Callable[[nn.Module], Any]] = {
    "FGSM": lambda net: attacks.FGSM(eps=EPS),
    "FGM": lambda net: attacks.FGM(eps=0.3),
    "BIM": lambda net: attacks.BIM(eps=EPS, steps=2, stop="never"),
    "PGD linf": lambda net: attacks.PGD(eps=EPS, steps=2, stop="never"),
    "PGD l2": lambda net: attacks.PGD(eps=0.3, norm="l2", steps=2, stop="never"),
    "PGD l1": lambda net: attacks.PGD(eps=4, norm="l1", steps=2, stop="never"),
    "APGD linf": lambda net: attacks.APGD(eps=EPS, steps=4, stop="never"),
    "APGD l2": lambda net: attacks.APGD(eps=0.3, norm="l2", steps=4, stop="never"),
    "APGD l1": lambda net: attacks.APGD(eps=4, norm="l1", steps=4, stop="never"),
    "SparsePGD": lambda net: attacks.SparsePGD(eps=24, unit="pixel", steps=8, stop="never"),
    "SelectivePGD": lambda net: attacks.SelectivePGD(eps=EPS, steps=2, stop="never"),
    "Adaptive": lambda net: attacks.Adaptive(attack=attacks.PGD(eps=EPS, steps=1), losses=["ce"]),
    "Suite": lambda net: attacks.Suite(eps=EPS / 8),
    "DeepFool": lambda net: attacks.DeepFool(steps=1, candidates=2),
    "CarliniWagnerL2": lambda net: attacks.CarliniWagnerL2(search_steps=1, steps=2),
    "JointCarliniWagner": lambda net: attacks.JointCarliniWagner(search_steps=1, steps=2),
    "LBFGS": lambda net: attacks.LBFGS(search_steps=1, steps=2),
    "FAB": lambda net: attacks.FAB(steps=2),
    "DDN": lambda net: attacks.DDN(steps=2),
    "FMN l2": lambda net: attacks.FMN(steps=2),
    "FMN linf": lambda net: attacks.FMN(norm="linf", steps=2),
    "FMN l1": lambda net: attacks.FMN(norm="l1", steps=2),
    "FMN l0": lambda net: attacks.FMN(norm="l0", steps=2),
    "MinimumNorm l2": lambda net: attacks.MinimumNorm(steps=4),
    "MinimumNorm linf": lambda net: attacks.MinimumNorm(norm="linf", steps=4),
    "MinimumNorm l1": lambda net: attacks.MinimumNorm(norm="l1", steps=8),
    "MinimumNorm l0": lambda net: attacks.MinimumNorm(norm="l0", steps=8),
    "SigmaZero": lambda net: attacks.SigmaZero(steps=2),
    "JSMA": lambda net: attacks.JSMA(gamma=3 / 3072, candidates=1),
    "Square": lambda net: attacks.Square(eps=EPS, max_queries=5, stop="never"),
    "SparseRS": lambda net: attacks.SparseRS(eps=24, unit="pixel", max_queries=5, stop="never"),
    "HopSkipJump": lambda net: attacks.HopSkipJump(max_queries=10, init_gradient_queries=3),
    "RandomNoise": lambda net: attacks.RandomNoise(eps=EPS, restarts=4),
    "Transfer": lambda net: attacks.Transfer(attack=attacks.FGSM(eps=EPS), surrogate=net),
}


class Clocked(nn.Module):
    """Net with a timer for its forward passes and the backward passes of torch."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seconds = 0.0
        torch.autograd.grad = self._clocked(torch.autograd.grad)

    def forward(self, x: Tensor) -> Tensor:
        return self._clocked(self.net)(x)

    def _clocked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **options)
            finally:
                self.seconds += time.process_time() - start

        return clocked


def serve(folder: Path) -> None:
    """Read names of attacks from standard input, run each, and print its overhead."""
    torch.set_num_threads(1)
    net = cifar10_resnet20()
    net.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True))
    clocked = Clocked(net).eval()
    data = load_npz(folder / IMAGES).head(64)
    for name in map(str.strip, sys.stdin):
        if not hasattr(attacks, name.split()[0]):
            print(math.nan, flush=True)
            continue
        attack = ATTACKS[name](clocked)
        clocked.seconds, start = 0.0, time.process_time()
        attack.run(clocked, data.x, data.y)
        total = time.process_time() - start
        print(1 - clocked.seconds / total, flush=True)


def start_server(source: Path, folder: Path) -> subprocess.Popen[str]:
    """Start a process that runs attacks with the advkit at `source`."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.outside_the_net", "--serve", "--data", str(folder)],
        env={**os.environ, "PYTHONPATH": str(source.resolve())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def overhead(process: subprocess.Popen[str], name: str) -> float:
    """Run one attack in `process`, and return its overhead."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{name}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def compare(sources: list[Path], folder: Path, pairs: int) -> None:
    """Print a table of medians over the pairs; the first pair is a warm-up."""
    processes = [start_server(source, folder) for source in sources]
    print("| attack | before | after | median of the differences |")
    print("| --- | --- | --- | --- |")
    for name in ATTACKS:
        measured: list[list[float]] = [[], []]
        for turn in range(pairs + 1):
            for i in (0, 1) if turn % 2 else (1, 0):
                measured[i].append(overhead(processes[i], name))
        before, after = (shares[1:] for shares in measured)
        differences = [b - a for a, b in zip(before, after, strict=True)]
        cells = (statistics.median(before), statistics.median(after))
        middle = statistics.median(differences)
        print(f"| {name} | {cells[0]:.2%} | {cells[1]:.2%} | {middle:+.2%} |", flush=True)
    for process in processes:
        process.communicate()


def main() -> None:
    """Compare two versions, or run attacks for the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path, metavar="SRC")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("ADVKIT_DATA"), help="by default $ADVKIT_DATA"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.data is None or not all((args.data / name).is_file() for name in (WEIGHTS, IMAGES)):
        parser.error(
            f"`--data` must name a folder with {WEIGHTS} and {IMAGES}, got {args.data}. "
            "See docs/data.md for their sources."
        )
    if args.serve:
        serve(args.data)
    elif len(args.sources) == 2:
        compare(args.sources, args.data, args.pairs)
    else:
        parser.error("SRC must be two folders, before and after.")


if __name__ == "__main__":
    main()
