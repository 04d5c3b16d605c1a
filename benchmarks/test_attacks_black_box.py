"""The black-box attacks beside the peers, on the same images and within the same budget of samples.

    python -m pytest benchmarks/test_attacks_black_box.py -s

The peers are those of the extra `peers` that are installed. ADVKIT_SLOW_PEERS=1 runs also those
that take long.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from advkit.attacks import HopSkipJump, Square
from benchmarks.attacking import Job, measure_ours, measure_peer
from benchmarks.nets import LENET, RESNET20
from benchmarks.peers import Peer
from benchmarks.table import ENTRIES
from benchmarks.timing import one_thread

FEW = 300  # queries where nothing is compared

SQUARE = Job("Square, 1,000 queries", RESNET20, 100, norm="linf", eps=8 / 255, rounds=1)
SQUARE_L2 = Job("Square, 1,000 queries", LENET, 100, eps=2.0, rounds=1, chance=0.03)
HOPSKIPJUMP = Job("HopSkipJump, 2,000 queries", LENET, 50, rounds=1)
HOPSKIPJUMP_LINF = Job("HopSkipJump in linf, 2,000 queries", LENET, 50, norm="linf", rounds=1)

OURS = [
    (SQUARE, Square(eps=8 / 255, max_queries=1000), {"success": 1.0}),
    (SQUARE_L2, Square(norm="l2", eps=2.0, max_queries=1000), {}),
    (HOPSKIPJUMP, HopSkipJump(max_queries=2000), {"success": 1.0}),
    (HOPSKIPJUMP_LINF, HopSkipJump(norm="linf", max_queries=2000), {"success": 1.0}),
]


@pytest.mark.parametrize(("job", "attack", "limits"), OURS, ids=str)
def test_ours(benchmark, job, attack, limits):
    entry = measure_ours(benchmark, job, attack, limits)
    assert entry.figures.forward <= attack.queries


@pytest.mark.parametrize(("job", "attack"), [pair[:2] for pair in OURS[:2]], ids=str)
def test_a_finished_image_sends_no_more(job, attack):
    net, x, y = job.case.load_correct(8)
    answers: list[list[bool]] = [[] for _ in y]  # of the net, for each image: still robust?

    def note(module: nn.Module, args: tuple[Tensor], logits: Tensor) -> None:
        nearest = torch.cdist(args[0].flatten(1), x.flatten(1)).argmin(1)
        for image, label in zip(nearest.tolist(), logits.argmax(1).tolist(), strict=True):
            answers[image].append(label == int(y[image]))

    with one_thread():
        net.register_forward_hook(note)
        result = replace(attack, max_queries=FEW).run(net, x, y)
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
    entry = measure_peer(benchmark, job, peer)
    ours = [e.figures for e in ENTRIES if e.ours and e.job == entry.job]
    if job is SQUARE:  # half of their time is what it was made for
        assert all(figures.seconds <= entry.figures.seconds / 2 for figures in ours)
