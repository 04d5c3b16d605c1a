"""Layer 2: detectors of attacks, told by what the attacked model answers."""

from advkit.detectors.forest import OutputForest
from advkit.detectors.guard import Alarm, Guard
from advkit.detectors.scores import (
    KernelDensity,
    LocalIntrinsicDimensionality,
    Mahalanobis,
    MaxSoftmax,
    OutputEntropy,
)
from advkit.detectors.surrogate import Surrogate
from advkit.detectors.table import OutputTable, collect

__all__ = [
    "Alarm",
    "Guard",
    "KernelDensity",
    "LocalIntrinsicDimensionality",
    "Mahalanobis",
    "MaxSoftmax",
    "OutputEntropy",
    "OutputForest",
    "OutputTable",
    "Surrogate",
    "collect",
]
