"""Black-box attacks of advkit and of peers, on the same images and within the same query budget.

    python -m pytest benchmarks/test_attacks_black_box.py -s

The peers are the installed ones of the extra `peers`. ADVKIT_SLOW_PEERS=1 also runs slow ones.
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

# Queries of a run that is not compared: enough for a first success.
FEW_QUERIES = 300

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
    assert entry.figures.forward <= attack.max_queries


@pytest.mark.parametrize(("job", "attack"), [pair[:2] for pair in OURS[:2]], ids=str)
def test_a_finished_image_is_not_queried_again(job, attack):
    net, x, y = job.case.load_correct(8)
    robust: list[list[bool]] = [[] for _ in y]  # for each image and query: labeled correctly

    def record(module: nn.Module, args: tuple[Tensor], logits: Tensor) -> None:
        nearest = torch.cdist(args[0].flatten(1), x.flatten(1)).argmin(1)
        for image, label in zip(nearest.tolist(), logits.argmax(1).tolist(), strict=True):
            robust[image].append(label == int(y[image]))

    with one_thread():
        net.register_forward_hook(record)
        result = replace(attack, max_queries=FEW_QUERIES).run(net, x, y)
    assert [len(queries) for queries in robust] == result.queries.forward.tolist()
    assert result.success.any()
    for queries, success in zip(robust, result.success.tolist(), strict=True):
        assert all(queries[:-2])  # until the query that succeeds and its verification
        assert queries[-2:] == [not success] * 2


# Peers have the smallest number of steps with at least as many queries as advkit. With 8 steps,
# HopSkipJump of foolbox sends 1,846 queries and that of ART 1,745, in linf 1,891 and 1,785.
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


@pytest.mark.filterwarnings("ignore")  # warnings of peers
@pytest.mark.parametrize(("peer", "job"), PEERS, ids=str)
def test_peer(benchmark, peer, job):
    entry = measure_peer(benchmark, job, peer)
    ours = [e.figures for e in ENTRIES if e.ours and e.job == entry.job]
    if job is SQUARE:  # advkit takes at most half the time of a peer
        assert all(figures.seconds <= entry.figures.seconds / 2 for figures in ours)
