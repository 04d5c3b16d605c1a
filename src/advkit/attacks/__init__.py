"""Layer 2: attacks, each a frozen object of hyper-parameters that is called with a model."""

from advkit.attacks.bim import BIM
from advkit.attacks.carlini_wagner import CarliniWagnerL2
from advkit.attacks.deepfool import DeepFool
from advkit.attacks.fab import FAB
from advkit.attacks.fgm import FGM
from advkit.attacks.fgsm import FGSM
from advkit.attacks.jsma import JSMA
from advkit.attacks.lbfgs import LBFGS
from advkit.attacks.pgd import PGD
from advkit.attacks.square import Square

__all__ = [
    "BIM",
    "FAB",
    "FGM",
    "FGSM",
    "JSMA",
    "LBFGS",
    "PGD",
    "CarliniWagnerL2",
    "DeepFool",
    "Square",
]
