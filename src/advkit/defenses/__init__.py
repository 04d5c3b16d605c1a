"""Layer 2: defenses, each with the attack that knows about it."""

from advkit.core.fitting import fit
from advkit.defenses._base import TrainingLoss, WeightedSum
from advkit.defenses.adversarial_training import AdversarialTraining

__all__ = [
    "AdversarialTraining",
    "TrainingLoss",
    "WeightedSum",
    "fit",
]
