"""Distance and cost of minimum-norm attacks of advkit and of peers, in the same run.

    python -m pytest benchmarks/test_attacks_minimum_norm.py -s

The peers are the installed ones of the extra `peers`, and L-BFGS-B of SciPy. A bad result of a peer
is recorded and is not an error. ADVKIT_SLOW_PEERS=1 also runs slow peers.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from advkit.attacks import (
    DDN,
    FAB,
    FMN,
    JSMA,
    LBFGS,
    CarliniWagnerL2,
    DeepFool,
    MinimumNorm,
    SigmaZero,
)
from benchmarks.attacking import Job, measure_ours, measure_peer
from benchmarks.nets import LENET, RESNET20
from benchmarks.peers import Peer

DEEPFOOL = [Job("DeepFool", LENET), Job("DeepFool", RESNET20, rounds=2)]
CW_LENET = Job("C&W 9 x 100", LENET, rounds=1)
CW_RESNET20 = Job("C&W 9 x 100", RESNET20, 32, rounds=1)
CW_SHORT = Job("C&W, fewer than 300 passes", RESNET20, 32, rounds=1)
CW_SHORT_LENET = Job("C&W, fewer than 300 passes", LENET, rounds=1)
PIXELS = Job("JSMA to the next class", LENET, norm="l0", targeted=True)
QUASI_NEWTON = Job("L-BFGS", LENET, 16)
FAST = [
    Job("nearest in l2, 100 steps", LENET),
    Job("nearest in l2, 100 steps", RESNET20, rounds=1),
]
LONG = Job("nearest in l2, any schedule", LENET, rounds=1)
FAST_LINF = [
    Job("nearest in linf, 100 steps", LENET, norm="linf"),
    Job("nearest in linf, 100 steps", RESNET20, norm="linf", rounds=1),
]
FAST_L1 = [
    Job("nearest in l1, 100 steps", LENET, norm="l1"),
    Job("nearest in l1, 100 steps", RESNET20, norm="l1", rounds=1),
]
FAST_L0 = [
    Job("fewest features, 100 steps", LENET, norm="l0"),
    Job("fewest features, 100 steps", RESNET20, norm="l0", rounds=1),
]

CW = CarliniWagnerL2(search_steps=9, steps=100)
OURS = [
    (DEEPFOOL[0], DeepFool(), {"passes": 25, "distance": 1.59}),
    (DEEPFOOL[1], DeepFool(), {"passes": 10, "distance": 0.1065}),
    (CW_LENET, CW, {"passes": 1000, "distance": 1.345}),
    (CW_LENET, CarliniWagnerL2(steps=80), {"passes": 1000, "distance": 1.345}),
    (CW_RESNET20, CW, {"passes": 950, "distance": 0.101}),
    (CW_SHORT_LENET, CarliniWagnerL2(search_steps=3, steps=30), {}),
    (CW_SHORT, CarliniWagnerL2(search_steps=3, steps=60), {}),
    (PIXELS, JSMA(theta=1, gamma=0.15), {"passes": 100, "success": 0.86}),
    (QUASI_NEWTON, LBFGS(), {"passes": 600, "distance": 1.60}),
    (FAST[0], FAB(steps=100), {"passes": 110, "distance": 1.375}),
    (FAST[1], FAB(steps=100), {"passes": 110, "distance": 0.106}),
    (LONG, CW, {"passes": 3000, "distance": 1.335}),
    *((job, MinimumNorm(norm=job.norm), {}) for job in (*FAST, *FAST_LINF, *FAST_L1, *FAST_L0)),
    *((job, attack, {}) for job in FAST for attack in (DDN(init_norm=0.3), FMN(alpha_init=0.1))),
    *((job, attack, {}) for job in FAST_LINF for attack in (FAB(norm="linf"), FMN(norm="linf"))),
    *((job, attack, {}) for job in FAST_L1 for attack in (FAB(norm="l1"), FMN(norm="l1"))),
    *((job, attack, {}) for job in FAST_L0 for attack in (FMN(norm="l0"), SigmaZero())),
]


@pytest.mark.parametrize(("job", "attack", "limits"), OURS, ids=str)
def test_ours(benchmark, job, attack, limits):
    measure_ours(benchmark, job, attack, {"success": 1.0, **limits})


ALPHA = "\N{GREEK SMALL LETTER ALPHA}"  # name of an argument in adv_lib


def carlini_wagner(rate: float) -> list[Peer]:
    """Return C&W of each peer, with nine constants and a hundred steps for each."""
    adv_lib = {"binary_search_steps": 9, "max_iterations": 100, "learning_rate": rate}
    foolbox = {"binary_search_steps": 9, "steps": 100, "stepsize": rate}
    return [
        Peer("adv_lib", "carlini_wagner_l2", adv_lib, slow=True),
        Peer("foolbox", "L2CarliniWagnerAttack", foolbox),
    ]


DEEPFOOLS = [
    Peer("adv_lib", "df", {"steps": 50}),
    Peer("foolbox", "L2DeepFoolAttack", {"steps": 50}),
    Peer("torchattacks", "DeepFool", {"steps": 50}),
    # The overshoot of the other peers.
    Peer("art", "DeepFool", {"max_iter": 50, "epsilon": 0.02}, slow=True),
]
NO_SEARCH = Peer("torchattacks", "CW", {"steps": 900})
SALIENCY = Peer("art", "SaliencyMapMethod", {"theta": 1, "gamma": 0.15})
REFERENCE = Peer("scipy", "L-BFGS-B", {"constants": 12, "maxfun": 60})
# Options other than norm and steps were tuned on both nets, and improve on the defaults there.
ALMA = {"init_lr_distance": 1, ALPHA: 0.5}
WALKS = [
    # Without rounding to 8 bits.
    Peer("adv_lib", "ddn", {"steps": 100, "levels": None, "init_norm": 0.3}),
    Peer("adv_lib", "fmn", {"steps": 100, "norm": 2, f"{ALPHA}_init": 0.1}),
    Peer("adv_lib", "alma", {"num_steps": 100, **ALMA}),
    Peer("adv_lib", "fab", {"n_iter": 100, "norm": 2}, slow=True),
]
ALMA_LONG = Peer("adv_lib", "alma", {"num_steps": 1000, **ALMA})
LINF_WALKS = [
    Peer("adv_lib", "fmn", {"steps": 100, "norm": math.inf}),
    Peer("adv_lib", "fab", {"n_iter": 100, "norm": math.inf}, slow=True),
]
L1_WALKS = [
    Peer("adv_lib", "fmn", {"steps": 100, "norm": 1}),
    Peer("adv_lib", "fab", {"n_iter": 100, "norm": 1}, slow=True),
]
L0_WALKS = [
    Peer("adv_lib", "fmn", {"steps": 100, "norm": 0}),
    Peer("adv_lib", "sigma_zero", {"num_steps": 100}),
]

# C&W has the default learning rate and the best of several learning rates.
PEERS = [
    *((job, peer) for job in DEEPFOOL for peer in DEEPFOOLS),
    *((CW_LENET, peer) for rate in (0.01, 0.3) for peer in carlini_wagner(rate)),
    *((CW_RESNET20, peer) for peer in carlini_wagner(0.003)),
    (CW_RESNET20, carlini_wagner(0.01)[0]),
    (CW_SHORT, replace(carlini_wagner(0.01)[1], slow=True)),  # it aborts early
    (CW_SHORT, NO_SEARCH),
    (CW_SHORT_LENET, NO_SEARCH),
    (PIXELS, SALIENCY),
    (QUASI_NEWTON, REFERENCE),
    *((job, peer) for job in FAST for peer in WALKS),
    (LONG, ALMA_LONG),
    *((job, peer) for job in FAST_LINF for peer in LINF_WALKS),
    *((job, peer) for job in FAST_L1 for peer in L1_WALKS),
    *((job, peer) for job in FAST_L0 for peer in L0_WALKS),
]


@pytest.mark.filterwarnings("ignore")  # warnings of peers
@pytest.mark.parametrize(("job", "peer"), PEERS, ids=str)
def test_peer(benchmark, job, peer):
    measure_peer(benchmark, job, peer)
