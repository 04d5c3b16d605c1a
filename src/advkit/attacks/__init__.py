"""Layer 2: attacks, each a frozen object of hyper-parameters that is called with a model.

An attack keeps nothing from run to run: threads may share it, as far as they may share the model.
"""

from advkit.attacks.adaptive import (
    Adaptive,
    Evasion,
    FeatureMatching,
    JointCarliniWagner,
    Mimicry,
    SelectivePGD,
)
from advkit.attacks.apgd import APGD
from advkit.attacks.auto_attack import AutoAttack
from advkit.attacks.bim import BIM
from advkit.attacks.carlini_wagner import CarliniWagnerL2
from advkit.attacks.cascade import Cascade
from advkit.attacks.ddn import DDN
from advkit.attacks.deepfool import DeepFool
from advkit.attacks.fab import FAB
from advkit.attacks.fgm import FGM
from advkit.attacks.fgsm import FGSM
from advkit.attacks.fmn import FMN
from advkit.attacks.hopskipjump import HopSkipJump
from advkit.attacks.jsma import JSMA
from advkit.attacks.lbfgs import LBFGS
from advkit.attacks.minimum_norm import MinimumNorm
from advkit.attacks.pgd import PGD
from advkit.attacks.probes import probes
from advkit.attacks.random_noise import RandomNoise
from advkit.attacks.sigma_zero import SigmaZero
from advkit.attacks.sparse_pgd import SparsePGD
from advkit.attacks.sparse_rs import SparseRS
from advkit.attacks.square import Square
from advkit.attacks.substitute import Substitute
from advkit.attacks.suite import Suite
from advkit.attacks.transfer import Transfer

__all__ = [
    "APGD",
    "BIM",
    "DDN",
    "FAB",
    "FGM",
    "FGSM",
    "FMN",
    "JSMA",
    "LBFGS",
    "PGD",
    "Adaptive",
    "AutoAttack",
    "CarliniWagnerL2",
    "Cascade",
    "DeepFool",
    "Evasion",
    "FeatureMatching",
    "HopSkipJump",
    "JointCarliniWagner",
    "Mimicry",
    "MinimumNorm",
    "RandomNoise",
    "SelectivePGD",
    "SigmaZero",
    "SparsePGD",
    "SparseRS",
    "Square",
    "Substitute",
    "Suite",
    "Transfer",
    "probes",
]
