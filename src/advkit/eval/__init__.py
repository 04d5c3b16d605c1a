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
from advkit.eval.evidence.evaluated_inputs import EvaluatedInputs
from advkit.eval.evidence.gate import Gate
from advkit.eval.evidence.provenance import Provenance
from advkit.eval.evidence.records import Records
from advkit.eval.evidence.schema import report_schema
from advkit.eval.findings.finding import Finding
from advkit.eval.gates.compare import compare
from advkit.eval.gates.comparison import Comparison, DistanceComparison, RateComparison
from advkit.eval.gates.gate import gate
from advkit.eval.noise import NoiseOutcome
from advkit.eval.robustness.accuracy_curve import AccuracyCurve
from advkit.eval.robustness.callbacks import Callback, ChunkRecord
from advkit.eval.robustness.evaluate import evaluate, evaluate_stream, robust_accuracy
from advkit.eval.robustness.load_report import load_report
from advkit.eval.robustness.merge import merge
from advkit.eval.robustness.outcome import AttackOutcome, NearestExamples
from advkit.eval.robustness.redraw import redraw
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
    "Comparison",
    "Detection",
    "DetectionScores",
    "Diagnosis",
    "DistanceComparison",
    "EvaluatedInputs",
    "Examples",
    "Finding",
    "Gate",
    "Group",
    "NearestExamples",
    "NoiseOutcome",
    "Provenance",
    "Rate",
    "RateComparison",
    "Records",
    "Report",
    "Row",
    "SecurityCurves",
    "TransferMatrix",
    "TransferSource",
    "accuracy",
    "benchmark",
    "classification_scores",
    "compare",
    "detection_scores",
    "diagnose",
    "distance_ratio",
    "evaluate",
    "evaluate_stream",
    "gate",
    "load_report",
    "merge",
    "optimality",
    "redraw",
    "report_schema",
    "robust_accuracy",
    "security_curve",
    "transfer_matrix",
]
