"""Layer 2: how robust a model is, in numbers that a reviewer can check."""

from advkit.eval.benchmark import benchmark
from advkit.eval.benchmark_result import Benchmark, Floor
from advkit.eval.detection import (
    ClassificationScores,
    Detection,
    DetectionScores,
    classification_scores,
    detection_scores,
)
from advkit.eval.evaluation import evaluate, evaluate_stream, robust_accuracy
from advkit.eval.matrix import TransferMatrix, TransferSource
from advkit.eval.noise import NoiseOutcome
from advkit.eval.outcome import AttackOutcome, Examples, Nearest
from advkit.eval.ranking import AttackCost, Group, Row
from advkit.eval.rates import Rate, accuracy
from advkit.eval.report import Report
from advkit.eval.transfer import transfer_matrix

__all__ = [
    "AttackCost",
    "AttackOutcome",
    "Benchmark",
    "ClassificationScores",
    "Detection",
    "DetectionScores",
    "Examples",
    "Floor",
    "Group",
    "Nearest",
    "NoiseOutcome",
    "Rate",
    "Report",
    "Row",
    "TransferMatrix",
    "TransferSource",
    "accuracy",
    "benchmark",
    "classification_scores",
    "detection_scores",
    "evaluate",
    "evaluate_stream",
    "robust_accuracy",
    "transfer_matrix",
]
