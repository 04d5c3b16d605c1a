"""One job for an attack, ours or a peer's, and how what it does is measured.

What comes back is judged alike for all: by one more look of the net at the whole batch. A failure
counts as infinitely far. The samples are counted by the net.
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
from benchmarks.timing import in_floors, one_thread

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]

MEMORY_SECONDS = 1.0  # of a job that are watched for its memory: what comes later is no larger


@dataclass(frozen=True)
class Job:
    """Images to attack, and what counts.

    Attributes:
        what: the job in the table, before net and images.
        case: the net.
        images: how many, the first that the net labels correctly.
        norm: of the distance.
        eps: budget, infinite for the nearest example.
        targeted: whether to reach the class after the label instead of leaving the label.
        rounds: how often to run it.
        quick: how many images to take without the clock.
        chance: how much of the share of successes is luck.
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
        """The job in the table."""
        return f"{self.what}, {self.case.title}, {self.images} images"

    def __str__(self) -> str:
        return self.title.replace(" ", "_")

    def goal(self, y: Tensor) -> Tensor:
        """Targets, or the labels."""
        return (y + 1) % 10 if self.targeted else y

    def judge(self, net: nn.Module, x: Tensor, goal: Tensor, x_adv: Tensor) -> tuple[float, float]:
        """Share of successes, and the median distance; nothing succeeds out of ball and box."""
        with torch.no_grad():
            at_goal = net(x_adv).argmax(1) == goal
        inside = ((x_adv > -1e-6) & (x_adv < 1 + 1e-6)).flatten(1).all(1)  # NaN is not
        distance = lp_norm(x_adv - x, self.norm)
        inside &= distance <= self.eps * (1 + 1e-4)
        success = inside & (at_goal if self.targeted else ~at_goal)
        distance = distance.where(success, math.inf)
        return success.float().mean().item(), distance.median().item()


class Counter:
    """Counts the samples that go through a net, forward and backward."""

    def __init__(self, net: nn.Module) -> None:
        self.forward = self.backward = 0
        self.until = math.inf  # a look after that time ends the job
        net.register_forward_hook(self._note)

    def _note(self, module: nn.Module, args: Any, logits: Tensor) -> None:
        self.forward += len(logits)
        if logits.requires_grad:
            logits.register_hook(self._note_backward)
        if time.perf_counter() > self.until:
            raise EnoughError

    def _note_backward(self, grad: Tensor) -> None:
        self.backward += len(grad)

    def reset(self) -> None:
        self.forward = self.backward = 0


class EnoughError(BaseException):
    """The job was watched long enough; no peer may catch it."""


def seed_peers() -> None:
    """The global random states that peers draw from, at zero."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@one_thread()
def measure(
    benchmark: Any, job: Job, who: str, attack: Attack, *, limits: dict[str, float] | None = None
) -> Entry:
    """Run `attack(net, x, labels or targets)` on the job; an entry of the table, recorded."""
    net, x, y = job.case.load_correct(job.quick if benchmark.disabled else job.images)
    goal, counter = job.goal(y), Counter(net)
    errors: list[str] = []

    def attempt() -> tuple[Tensor, tuple[float, float]]:
        counter.reset()
        seed_peers()
        x_adv = found()
        return x_adv, (counter.forward / len(x), counter.backward / len(x))

    def found() -> Tensor:
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
        mib = watched(attempt, counter) / 2**20
        if limits is None and time.perf_counter() - start > MEMORY_SECONDS:
            rounds = 1  # a peer's long job: its noise is small, and its time is better spent
    (x_adv, sent), times = in_floors(benchmark, attempt, (net, x, y), rounds=rounds)
    success, distance = job.judge(net, x, goal, x_adv)
    near = distance if math.isinf(job.eps) else None
    entry = Entry(
        suite="attacks",
        job=job.title,
        who=who,
        ours=limits is not None,
        figures=Figures(success, near, times.floors, *sent, times.seconds, mib),
        limits=(limits or {}) if job.case.published and not benchmark.disabled else {},
        remark=f"failed: {errors[0]}" if errors else "",
        chance=job.chance,
    )
    record(benchmark, entry)
    return entry


def watched(attempt: Callable[[], object], counter: Counter) -> int:
    """The most bytes of tensors that `attempt` holds in its first seconds."""
    counter.until = time.perf_counter() + MEMORY_SECONDS
    try:
        return peak_memory(lambda: _unless_enough(attempt))[1]
    finally:
        counter.until = math.inf


def _unless_enough(attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except EnoughError:
        return


def measure_ours(benchmark: Any, job: Job, attack: Any, limits: dict[str, float]) -> Entry:
    """The same for one of our attacks, held to its limits."""

    def call(net: nn.Module, x: Tensor, goal: Tensor) -> Tensor:
        found: Tensor = attack(net, x, target=goal) if job.targeted else attack(net, x, goal)
        return found

    attack = small(attack) if benchmark.disabled else attack
    entry = measure(benchmark, job, f"advkit `{attack!r}`", call, limits=limits)
    check(entry)
    return entry


def small(attack: Any) -> Any:
    """The attack with as little to do as shows that it works."""
    most = {"steps": 10, "search_steps": 2, "max_queries": 100, "gamma": 0.02}
    given = {name: getattr(attack, name) for name in most if hasattr(attack, name)}
    return replace(attack, **{name: min(value, most[name]) for name, value in given.items()})


def measure_peer(benchmark: Any, job: Job, peer: Peer) -> Entry:
    """The same for a peer; what it does badly, a failure too, is a figure of the table."""
    if benchmark.disabled:
        pytest.skip("a comparison, which is nothing without the clock")
    if peer.slow and job.case is RESNET20 and os.environ.get("ADVKIT_SLOW_PEERS") != "1":
        pytest.skip("takes more than 20 seconds; ADVKIT_SLOW_PEERS=1 runs it")
    module = peer.load()
    return measure(benchmark, job, str(peer), lambda *batch: peer.run(module, *batch))
