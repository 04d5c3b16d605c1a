"""The black-box attacks beside the peers, on the same images and within the same budget of samples.

    python -m pytest benchmarks/test_black_box.py -s

On one thread, in seconds of its processor's time. What comes back is judged alike for all: by one
more look of the net at the whole batch. `robust` is the share of images that kept their label;
`distance` is the median over the images, a failure counts as infinitely far; `sent` is how many
samples went through the net for each image, as the net counts them.

The peers are those of the extra `peers` that are installed. Ours is run beside each of them, in
the same minute. ADVKIT_SLOW_PEERS=1 runs also those that take long.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advkit.attacks import HopSkipJump, Square
from advkit.core.norms import lp_norm
from advkit.core.results import AttackResult
from benchmarks.nets import LENET, RESNET20, Case
from benchmarks.peers import Peer
from benchmarks.test_minimum_norm import one_thread

Batch = tuple[nn.Module, Tensor, Tensor]


class Figures(NamedTuple):
    """What was measured."""

    robust: float
    distance: float
    seconds: float
    sent: float

    def __str__(self) -> str:
        return (
            f"robust {self.robust:.3f}, distance {self.distance:8.5f}, "
            f"{self.seconds:6.2f} s, sent {self.sent:7.1f}"
        )


@dataclass(frozen=True)
class Job:
    """One of our attacks and the images to run it on.

    Attributes:
        attack: ours; its `eps`, if it has one, its norm and its queries are those of the job.
        case: the net.
        images: how many, the first that the net labels correctly.
        time: the share of a peer's time that ours may take.
        chance: how much larger a share of robust images may be than a peer's, where two seeds of
            one attack differ as much.
    """

    attack: Square | HopSkipJump
    case: Case
    images: int
    time: float = math.inf
    chance: float = 0.0

    def __str__(self) -> str:
        return f"{type(self.attack).__name__}-{self.case.factory}-{self.attack.norm}"

    def small(self) -> Job:
        """The job where nothing is compared: fewer images and queries."""
        return replace(self, attack=replace(self.attack, queries=300), images=8)

    @property
    def eps(self) -> float:
        """Radius of the ball; infinite for an attack without one."""
        return float(getattr(self.attack, "eps", math.inf))

    def ours(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """What our attack finds."""
        return self.attack(net, x, y)

    def judge(self, batch: Batch, x_adv: Tensor) -> tuple[float, float]:
        """Share of robust images and the median distance; nothing succeeds outside of the ball."""
        net, x, y = batch
        with torch.no_grad():
            left = net(x_adv).argmax(1) != y
        distance = lp_norm(x_adv - x, self.attack.norm)
        inside = ((x_adv > -1e-6) & (x_adv < 1 + 1e-6)).flatten(1).all(1)  # NaN is not
        success = left & inside & (distance <= self.eps + 1e-5)
        return (~success).float().mean().item(), distance.where(success, math.inf).median().item()


@one_thread()
def measure(
    job: Job, batch: Batch, attack: Callable[[nn.Module, Tensor, Tensor], Tensor]
) -> Figures:
    """Run `attack(net, x, y)` on the batch, with peers' global seeds at zero."""
    net, x, _ = batch
    sent: list[int] = []
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    hook = net.register_forward_hook(lambda module, args, logits: sent.append(len(logits)))
    start = time.process_time()
    x_adv = attack(*batch)
    seconds = time.process_time() - start
    hook.remove()
    return Figures(*job.judge(batch, x_adv), seconds, sum(sent) / len(x))


def record(benchmark: Any, job: Job, name: str, figures: Figures) -> None:
    """Write the figures of `name` down and print them."""
    benchmark.extra_info |= {f"{name} {field}": v for field, v in figures._asdict().items()}
    print(f"\n{job}: {figures}  {name}")


SQUARE = Job(Square(eps=8 / 255, queries=1000), RESNET20, images=100, time=0.5)
SQUARE_L2 = Job(Square(norm="l2", eps=2.0, queries=1000), LENET, images=100, chance=0.03)
HOPSKIPJUMP = Job(HopSkipJump(queries=2000), LENET, images=50)
HOPSKIPJUMP_LINF = Job(HopSkipJump(norm="linf", queries=2000), LENET, images=50)

JOBS = [SQUARE, SQUARE_L2, HOPSKIPJUMP, HOPSKIPJUMP_LINF]


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_ours(benchmark, job):
    job = job.small() if benchmark.disabled else job
    results: list[AttackResult] = []

    def attack(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        results.append(job.attack.run(net, x, y))
        return results[-1].x_adv

    batch = job.case.load_correct(job.images)
    figures = benchmark.pedantic(measure, args=(job, batch, attack), rounds=1)
    record(benchmark, job, "advkit", figures)
    forward = results[-1].queries.forward
    assert figures.sent == forward.sum().item() / len(forward)
    assert forward.max() <= job.attack.queries
    assert figures.robust == (~results[-1].success).float().mean().item()


@pytest.mark.parametrize("job", [SQUARE, SQUARE_L2], ids=str)
def test_a_finished_image_sends_no_more(job):
    job = job.small()
    net, x, y = job.case.load_correct(job.images)
    answers: list[list[bool]] = [[] for _ in y]  # of the net, for each image: still robust?

    def note(module: nn.Module, args: tuple[Tensor], logits: Tensor) -> None:
        nearest = torch.cdist(args[0].flatten(1), x.flatten(1)).argmin(1)
        for image, label in zip(nearest.tolist(), logits.argmax(1).tolist(), strict=True):
            answers[image].append(label == int(y[image]))

    with one_thread():
        net.register_forward_hook(note)
        result = job.attack.run(net, x, y)
    assert [len(found) for found in answers] == result.queries.forward.tolist()
    assert result.success.any()
    for found, success in zip(answers, result.success.tolist(), strict=True):
        assert all(found[:-2])  # until the one that succeeds and the last look at it
        assert found[-2:] == [not success] * 2


# The peers' numbers of steps are the first that send at least as many samples as ours: HopSkipJump
# of foolbox sends 1,846 with 8 and that of ART 1,745, in linf 1,891 and 1,785.
PEERS = [
    (Peer("torchattacks", "Square", {"norm": "Linf", "eps": 8 / 255, "n_queries": 1000}), SQUARE),
    (
        Peer(
            "art", "SquareAttack", {"norm": math.inf, "eps": 8 / 255, "max_iter": 1000}, slow=True
        ),
        SQUARE,
    ),
    (Peer("torchattacks", "Square", {"norm": "L2", "eps": 2.0, "n_queries": 1000}), SQUARE_L2),
    *(
        (Peer("foolbox", "HopSkipJumpAttack", {"steps": 9, "constraint": norm}), job)
        for norm, job in [("l2", HOPSKIPJUMP), ("linf", HOPSKIPJUMP_LINF)]
    ),
    *(
        (
            Peer("art", "HopSkipJump", {"max_iter": 9, "norm": norm, "batch_size": 512}),
            job,
        )
        for norm, job in [(2, HOPSKIPJUMP), (math.inf, HOPSKIPJUMP_LINF)]
    ),
]


@pytest.mark.filterwarnings("ignore")  # peers warn of much that is not ours to mend
@pytest.mark.parametrize(("peer", "job"), PEERS, ids=str)
def test_peer(benchmark, peer, job):
    if benchmark.disabled:
        pytest.skip("a comparison, which is nothing without the clock")
    if peer.slow and os.environ.get("ADVKIT_SLOW_PEERS") != "1":
        pytest.skip("takes more than 20 seconds; ADVKIT_SLOW_PEERS=1 runs it")
    module = peer.load()

    def call(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return peer.run(module, net, x, y).detach().to(x)

    batch = job.case.load_correct(job.images)
    ours = measure(job, batch, job.ours)
    record(benchmark, job, "advkit", ours)
    theirs = benchmark.pedantic(measure, args=(job, batch, call), rounds=1)
    record(benchmark, job, str(peer), theirs)
    assert ours.robust <= theirs.robust + job.chance
    assert ours.seconds <= job.time * theirs.seconds
    if math.isinf(job.eps):
        assert ours.sent <= theirs.sent
        assert ours.distance <= theirs.distance
