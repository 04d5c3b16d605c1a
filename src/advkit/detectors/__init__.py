"""Layer 2: detectors of attacks on the outputs of a model, and the guard that uses a detector.

Threads may share a fitted detector; `fit` must run in one thread.
"""

from advkit.detectors.alarm import Alarm, Verdict
from advkit.detectors.collect import collect
from advkit.detectors.confidence_scores import MaxSoftmax, OutputEntropy
from advkit.detectors.distance_scores import (
    KernelDensity,
    LocalIntrinsicDimensionality,
    Mahalanobis,
)
from advkit.detectors.forest import OutputForest
from advkit.detectors.guard import Guard
from advkit.detectors.output_table import OutputTable
from advkit.detectors.surrogate import DetectorSurrogate

__all__ = [
    "Alarm",
    "DetectorSurrogate",
    "Guard",
    "KernelDensity",
    "LocalIntrinsicDimensionality",
    "Mahalanobis",
    "MaxSoftmax",
    "OutputEntropy",
    "OutputForest",
    "OutputTable",
    "Verdict",
    "collect",
]
