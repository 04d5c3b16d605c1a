"""Layer 2: defenses, each with the attack that adapts to it.

Threads may share a fitted defense to the extent that they may share its model. Each thread that
trains needs its own module.
"""

from advkit.defenses.adversarial_training import AdversarialTraining
from advkit.defenses.certificates import Certificates
from advkit.defenses.distillation import Distillation, DistillationLoss, TemperedCrossEntropy
from advkit.defenses.feature_squeezing import FeatureSqueezing, NonLocalMeans
from advkit.defenses.free_adversarial_training import FreeAdversarialTraining, Replay
from advkit.defenses.gaussian_noise import GaussianNoise
from advkit.defenses.input_validator import InputValidator, Validation
from advkit.defenses.jpeg_compression import JpegCompression
from advkit.defenses.label_smoothing import LabelSmoothing
from advkit.defenses.logit_pairing import LogitPairing
from advkit.defenses.logit_squeezing import LogitSqueezing
from advkit.defenses.mart import MART
from advkit.defenses.mrr import MRR, Chain, InputDefender, LatentDefenders
from advkit.defenses.randomized_smoothing import RandomizedSmoothing
from advkit.defenses.trades import TRADES
from advkit.defenses.training_loss import TrainingLoss, WeightedSum
from advkit.training.fit import fit
from advkit.training.history import History

__all__ = [
    "MART",
    "MRR",
    "TRADES",
    "AdversarialTraining",
    "Certificates",
    "Chain",
    "Distillation",
    "DistillationLoss",
    "FeatureSqueezing",
    "FreeAdversarialTraining",
    "GaussianNoise",
    "History",
    "InputDefender",
    "InputValidator",
    "JpegCompression",
    "LabelSmoothing",
    "LatentDefenders",
    "LogitPairing",
    "LogitSqueezing",
    "NonLocalMeans",
    "RandomizedSmoothing",
    "Replay",
    "TemperedCrossEntropy",
    "TrainingLoss",
    "Validation",
    "WeightedSum",
    "fit",
]
