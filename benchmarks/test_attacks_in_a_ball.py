"""Attacks of advkit and of peers within a budget, and their cost in passes.

    python -m pytest benchmarks/test_attacks_in_a_ball.py -s

A job with all steps shows the cost of a step. advkit also evaluates the last iterate, and the
success of each attack is verified with one more forward pass. By default, advkit stops attacking an
input once it is misclassified.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from advkit.attacks import APGD, FGSM, PGD
from advkit.eval.benchmarking.cost import peak_memory
from benchmarks.attacking import Job, measure_ours, measure_peer
from benchmarks.nets import LENET, RESNET20, Case, bare_pass
from benchmarks.peers import Peer
from benchmarks.table import record
from benchmarks.timing import one_thread


def job(what: str, case: Case, rounds: int) -> Job:
    images = {RESNET20: 64, LENET: 128}[case]
    return Job(what, case, images, norm="linf", eps=case.eps, rounds=rounds)


EVERY = "PGD-40, every step"
FIRST = "PGD-40, until misclassified"
ADAPTIVE = "APGD-100, every step"
ONE = "FGSM"

# Limit of each job in passes.
OURS = [
    (job(EVERY, RESNET20, 3), PGD(eps=RESNET20.eps, steps=40, stop="never"), 1.05 * 40),
    (job(EVERY, LENET, 9), PGD(eps=LENET.eps, steps=40, stop="never"), 1.2 * 40),
    (job(FIRST, RESNET20, 5), PGD(eps=RESNET20.eps, steps=40), 3.0),
    (job(FIRST, LENET, 9), PGD(eps=LENET.eps, steps=40), 6.0),
    (job(ADAPTIVE, LENET, 3), APGD(eps=LENET.eps, stop="never"), 1.3 * 100),
    (job(ONE, RESNET20, 5), FGSM(eps=RESNET20.eps), math.inf),
    (job(ONE, LENET, 9), FGSM(eps=LENET.eps), math.inf),
]


@pytest.mark.parametrize(("job", "attack", "passes"), OURS, ids=str)
def test_ours(benchmark, job, attack, passes):
    limited = not isinstance(attack, FGSM) and not benchmark.disabled
    # APGD also keeps its best iterate, the gradient there, and the point before the last step
    copies = 9 if isinstance(attack, APGD) else 6
    limits = {"success": 1.0, "passes": passes, "mib": memory_limit(job, copies)} if limited else {}
    measure_ours(benchmark, job, attack, limits)


@one_thread()
def memory_limit(job: Job, copies: int) -> float:
    """Return the limit in MiB: 1.3 times that of a bare pass, and `copies` of the batch."""
    net, x, y = job.case.load_correct(job.images)
    _, bare = peak_memory(lambda: bare_pass(net, x, y))
    return (1.3 * bare + copies * x.nelement() * x.element_size()) / 2**20


def pgd(eps: float) -> list[Peer]:
    """Return PGD of each peer, with a random start and forty steps of the paper's step size."""
    step = 2.5 * eps / 40
    return [
        Peer(
            "foolbox",
            "LinfPGD",
            {"steps": 40, "abs_stepsize": step, "random_start": True},
            eps=eps,
        ),
        Peer("torchattacks", "PGD", {"eps": eps, "alpha": step, "steps": 40}),
        Peer(
            "art",
            "ProjectedGradientDescentPyTorch",
            {"eps": eps, "eps_step": step, "max_iter": 40, "num_random_init": 1},
        ),
        Peer("adv_lib", "pgd_linf", {EPSILON: eps, "steps": 40}),
    ]


def apgd(eps: float) -> Peer:
    """Return the APGD of the peer that has one, with the steps of ours."""
    options = {"eps": eps, "norm": math.inf, "n_iter": 100, "loss_function": "ce"}
    return Peer("adv_lib", "apgd", options)


def fgsm(eps: float) -> list[Peer]:
    return [
        Peer("foolbox", "FGSM", {"random_start": False}, eps=eps),
        Peer("torchattacks", "FGSM", {"eps": eps}),
        Peer("art", "FastGradientMethod", {"eps": eps}),
    ]


EPSILON = "\N{GREEK SMALL LETTER EPSILON}"  # name of an argument in adv_lib
PEERS = [
    *(
        (EVERY, case, rounds, p)
        for case, rounds in ((RESNET20, 2), (LENET, 3))
        for p in pgd(case.eps)
    ),
    (ADAPTIVE, LENET, 2, apgd(LENET.eps)),
    *((ONE, case, 5, peer) for case in (RESNET20, LENET) for peer in fgsm(case.eps)),
]


@pytest.mark.filterwarnings("ignore")  # warnings of peers
@pytest.mark.parametrize(("what", "case", "rounds", "peer"), PEERS, ids=str)
def test_peer(benchmark, what, case, rounds, peer):
    entry = measure_peer(benchmark, job(what, case, rounds), peer)
    if what is EVERY:  # peers cannot stop early: this entry is also compared with that of FIRST
        record(benchmark, replace(entry, job=job(FIRST, case, rounds).title))
