"""Layer 2: robust accuracy, cost of attacks, transfer and detection, as rates with counts."""

from advkit.eval.accuracy import Rate, accuracy
from advkit.eval.benchmarking.benchmark import benchmark
from advkit.eval.benchmarking.comparison import AttackComparison, ComparedAttack
from advkit.eval.benchmarking.distance_ratio import distance_ratio, optimality
from advkit.eval.benchmarking.ranking import AttackCost, Group, Row
from advkit.eval.benchmarking.result import BarePass, Benchmark
from advkit.eval.detection.binary import detection_scores
from advkit.eval.detection.binary_result import Detection, DetectionScores
from advkit.eval.detection.multiclass import classification_scores
from advkit.eval.detection.multiclass_result import ClassificationScores
from advkit.eval.diagnosis.diagnose import diagnose
from advkit.eval.diagnosis.diagnosis import Diagnosis
from advkit.eval.findings.finding import Finding
from advkit.eval.noise import NoiseOutcome
from advkit.eval.robustness.accuracy_curve import AccuracyCurve
from advkit.eval.robustness.callbacks import Callback, ChunkRecord
from advkit.eval.robustness.evaluate import evaluate, evaluate_stream, robust_accuracy
from advkit.eval.robustness.merge import merge
from advkit.eval.robustness.outcome import AttackOutcome, NearestExamples
from advkit.eval.robustness.report import Report
from advkit.eval.robustness.security_curve import SecurityCurves, security_curve
from advkit.eval.transfer.result import TransferMatrix, TransferSource
from advkit.eval.transfer.transfer_matrix import transfer_matrix
from advkit.eval.units.examples import Examples

__all__ = [
    "AccuracyCurve",
    "AttackComparison",
    "AttackCost",
    "AttackOutcome",
    "BarePass",
    "Benchmark",
    "Callback",
    "ChunkRecord",
    "ClassificationScores",
    "ComparedAttack",
    "Detection",
    "DetectionScores",
    "Diagnosis",
    "Examples",
    "Finding",
    "Group",
    "NearestExamples",
    "NoiseOutcome",
    "Rate",
    "Report",
    "Row",
    "SecurityCurves",
    "TransferMatrix",
    "TransferSource",
    "accuracy",
    "benchmark",
    "classification_scores",
    "detection_scores",
    "diagnose",
    "distance_ratio",
    "evaluate",
    "evaluate_stream",
    "merge",
    "optimality",
    "robust_accuracy",
    "security_curve",
    "transfer_matrix",
]
