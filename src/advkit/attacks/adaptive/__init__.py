"""Attacks on a model and its detector together."""

from advkit.attacks.adaptive.adaptive_attack import Adaptive
from advkit.attacks.adaptive.feature_matching import FeatureMatching
from advkit.attacks.adaptive.joint_carlini_wagner import JointCarliniWagner
from advkit.attacks.adaptive.losses import Evasion, Mimicry
from advkit.attacks.adaptive.selective_pgd import SelectivePGD

__all__ = [
    "Adaptive",
    "Evasion",
    "FeatureMatching",
    "JointCarliniWagner",
    "Mimicry",
    "SelectivePGD",
]
