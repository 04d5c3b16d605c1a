"""Layer 2: how robust a model is, in numbers that a reviewer can check."""

from advkit.eval.evaluation import evaluate, evaluate_stream, robust_accuracy
from advkit.eval.outcome import AttackOutcome, Examples, Nearest
from advkit.eval.rates import Rate, accuracy
from advkit.eval.report import Report

__all__ = [
    "AttackOutcome",
    "Examples",
    "Nearest",
    "Rate",
    "Report",
    "accuracy",
    "evaluate",
    "evaluate_stream",
    "robust_accuracy",
]
