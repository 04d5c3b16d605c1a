"""Jobs for attacks of advkit and of peers, and their measurement.

Results are evaluated in the same way for all, with one more forward pass of the whole batch. The
distance of a failure counts as infinite. Passes are counted by hooks on the net.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advkit.core.norms import Norm, lp_norm
from advkit.eval.benchmarking.cost import peak_memory
from benchmarks.nets import RESNET20, Case
from benchmarks.peers import Peer
from benchmarks.table import Entry, Figures, check, record
from benchmarks.timing import in_passes, one_thread

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]

# Seconds of a job in which its memory is measured: the peak is reached within the first steps.
MEMORY_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """Images to attack, and the criterion of success.

    Attributes:
        what: name of the job in the table, before net and images.
        case: the net.
        images: number of images, the first that the net labels correctly.
        norm: norm of the distance.
        eps: budget, infinite for the nearest adversarial example.
        targeted: true if the target is the class after the label; false for untargeted attacks.
        rounds: number of runs.
        quick: number of images if benchmarks are disabled.
        chance: random variation of the attack success rate.
    """

    what: str
    case: Case
    images: int = 64
    norm: Norm = "l2"
    eps: float = math.inf
    targeted: bool = False
    rounds: int = 3
    quick: int = 4
    chance: float = 0.0

    @property
    def title(self) -> str:
        """Name of the job in the table."""
        return f"{self.what}, {self.case.title}, {self.images} images"

    def __str__(self) -> str:
        return self.title.replace(" ", "_")

    def goal(self, y: Tensor) -> Tensor:
        """Return the targets of a targeted job, else the labels."""
        return (y + 1) % 10 if self.targeted else y

    def evaluate(
        self, net: nn.Module, x: Tensor, goal: Tensor, x_adv: Tensor
    ) -> tuple[float, float]:
        """Return success rate and median distance; success requires ball and bounds."""
        with torch.no_grad():
            at_goal = net(x_adv).argmax(1) == goal
        inside = ((x_adv > -1e-6) & (x_adv < 1 + 1e-6)).flatten(1).all(1)  # NaN is not
        distance = lp_norm(x_adv - x, self.norm)
        inside &= distance <= self.eps * (1 + 1e-4)
        success = inside & (at_goal if self.targeted else ~at_goal)
        distance = distance.where(success, math.inf)
        return success.float().mean().item(), distance.median().item()


class Counter:
    """Counter of the samples in forward and backward passes of a net."""

    def __init__(self, net: nn.Module) -> None:
        self.forward = self.backward = 0
        self.until = math.inf  # a forward pass after this time ends the job
        net.register_forward_hook(self._count)

    def _count(self, module: nn.Module, args: Any, logits: Tensor) -> None:
        self.forward += len(logits)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        if time.perf_counter() > self.until:
            raise EnoughError

    def _count_backward(self, grad: Tensor) -> None:
        self.backward += len(grad)

    def reset(self) -> None:
        self.forward = self.backward = 0


class EnoughError(BaseException):
    """Signal that memory was measured long enough; peers do not catch a `BaseException`."""


def seed_peers() -> None:
    """Seed the global random states that peers draw from with zero."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@one_thread()
def measure(
    benchmark: Any, job: Job, name: str, attack: Attack, *, limits: dict[str, float] | None = None
) -> Entry:
    """Run `attack(net, x, labels or targets)` on the job; record and return a table entry."""
    net, x, y = job.case.load_correct(job.quick if benchmark.disabled else job.images)
    goal, counter = job.goal(y), Counter(net)
    errors: list[str] = []

    def attempt() -> tuple[Tensor, tuple[float, float]]:
        counter.reset()
        seed_peers()
        x_adv = run()
        return x_adv, (counter.forward / len(x), counter.backward / len(x))

    def run() -> Tensor:
        try:
            return attack(net, x, goal).detach().to(x)
        except Exception as error:
            if limits is not None:
                raise
            errors.append(repr(error))
            return torch.full_like(x, math.nan)

    mib, rounds = None, job.rounds
    if not benchmark.disabled:
        start = time.perf_counter()
        mib = peak_bytes(attempt, counter) / 2**20
        if limits is None and time.perf_counter() - start > MEMORY_SECONDS:
            rounds = (
                1  # a long job of a peer: one run is enough, because its relative noise is small
            )
    (x_adv, sent), times = in_passes(benchmark, attempt, (net, x, y), rounds=rounds)
    success, distance = job.evaluate(net, x, goal, x_adv)
    measured_distance = distance if math.isinf(job.eps) else None
    entry = Entry(
        suite="attacks",
        job=job.title,
        name=name,
        ours=limits is not None,
        figures=Figures(success, measured_distance, times.passes, *sent, times.seconds, mib),
        limits=(limits or {}) if job.case.published and not benchmark.disabled else {},
        remark=f"failed: {errors[0]}" if errors else "",
        chance=job.chance,
    )
    record(benchmark, entry)
    return entry


def peak_bytes(attempt: Callable[[], object], counter: Counter) -> int:
    """Measure the most bytes that tensors of `attempt` hold in its first seconds."""
    counter.until = time.perf_counter() + MEMORY_SECONDS
    try:
        return peak_memory(lambda: _until_enough(attempt))[1]
    finally:
        counter.until = math.inf


def _until_enough(attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except EnoughError:
        return


def measure_ours(benchmark: Any, job: Job, attack: Any, limits: dict[str, float]) -> Entry:
    """Measure an attack of advkit, and check its limits."""

    def call(net: nn.Module, x: Tensor, goal: Tensor) -> Tensor:
        x_adv: Tensor = attack(net, x, target=goal) if job.targeted else attack(net, x, goal)
        return x_adv

    attack = small(attack) if benchmark.disabled else attack
    entry = measure(benchmark, job, f"advkit `{attack!r}`", call, limits=limits)
    check(entry)
    return entry


def small(attack: Any) -> Any:
    """Return the attack with few steps, enough to show that it works."""
    limits = {"steps": 10, "search_steps": 2, "max_queries": 100, "gamma": 0.02}
    settings = {name: getattr(attack, name) for name in limits if hasattr(attack, name)}
    return replace(attack, **{name: min(value, limits[name]) for name, value in settings.items()})


def measure_peer(benchmark: Any, job: Job, peer: Peer) -> Entry:
    """Measure an attack of a peer; a failure is recorded in the table and is not an error."""
    if benchmark.disabled:
        pytest.skip("a comparison, which needs timed benchmarks")
    if peer.slow and job.case is RESNET20 and os.environ.get("ADVKIT_SLOW_PEERS") != "1":
        pytest.skip("takes more than 20 seconds: set ADVKIT_SLOW_PEERS=1 to run it")
    module = peer.load()
    return measure(benchmark, job, str(peer), lambda *batch: peer.run(module, *batch))
