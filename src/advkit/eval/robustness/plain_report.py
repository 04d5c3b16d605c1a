"""A report as plain values for JSON, and the digest of its figures."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from advkit.core.boxes import format_norm
from advkit.eval.evidence.threat_model import ThreatModel, knowledge_of
from advkit.eval.noise import SEED as NOISE_SEED
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.report_arrays import arrays_of, hash_of_arrays
from advkit.eval.robustness.worst_case import budget_texts

if TYPE_CHECKING:
    from advkit.eval.robustness.report import Report

FORMAT = "advkit report 1"
# Entries that differ between runs with equal figures.
_OF_THE_RUN = ("date", "command", "device", "threads", "batch_size", "gates")


def to_plain(report: Report) -> dict[str, Any]:
    """Return plain values for JSON."""
    return {
        "format": FORMAT,
        "advkit": report.provenance.versions["advkit"],
        **_subject(report),
        "threat_model": _threat_model(report).to_dict(),
        **_figures(report),
        "gates": [gate.to_dict() for gate in report.gates],
        "notes": report.notes(),
        **_conditions(report),
    }


def digest_of_plain(plain: dict[str, Any]) -> str:
    """Return the SHA-256 of the values of `to_plain` that equal evaluations share."""
    attacks = [{**attack, "seconds": None} for attack in plain["attacks"]]
    shared = {name: value for name, value in plain.items() if name not in _OF_THE_RUN}
    text = json.dumps({**shared, "attacks": attacks}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _subject(report: Report) -> dict[str, Any]:
    """Return what was evaluated."""
    return {
        "model": report.model,
        "bounds": list(report.bounds),
        "features": report.features,
        "positions": report.positions,
        "num_classes": report.num_classes,
        "class_names": list(report.class_names),
        "about": dict(report.about),
        "inputs": len(report.inputs),
        "inputs_wanted": report.total,
        "inputs_not_finite": report.not_finite.nonzero().flatten().tolist(),
        "checks": report.checks and {"training_mode": report.checks.training_mode},
    }


def _threat_model(report: Report) -> ThreatModel:
    outcomes = report.outcomes
    limits = [
        budget or f"{format_norm(outcome.norm)}, any distance"
        for outcome, budget in zip(outcomes, budget_texts(outcomes), strict=True)
    ]
    return ThreatModel.of([knowledge_of(int(o.backward.sum())) for o in outcomes], limits)


def _figures(report: Report) -> dict[str, Any]:
    """Return the figures of the report, and whether to believe them."""
    texts = budget_texts(report.outcomes)
    return {
        "clean_accuracy": report.clean_accuracy.to_dict(),
        "attacks": [_attack(o, text) for o, text in zip(report.outcomes, texts, strict=True)],
        "worst_case_by_budget": {b: rate.to_dict() for b, rate in report.worst_cases.items()},
        "random_noise": {n.budget: n.to_dict() for n in report.noise},
        "nearest_by_norm": {norm: n.to_dict() for norm, n in report.nearest.items()},
        "verdict": report.verdict,
        "findings": [finding.to_dict() for finding in report.findings],
    }


def _attack(outcome: AttackOutcome, budget: str) -> dict[str, Any]:
    knowledge = knowledge_of(int(outcome.backward.sum()))
    return {**outcome.to_dict(), "budget": budget or None, "knowledge": knowledge}


def _conditions(report: Report) -> dict[str, Any]:
    """Return what the figures were computed with, and the hashes that identify it."""
    run = report.provenance
    return {
        "seeds": {
            "attacks": [outcome.parameters.get("seed") for outcome in report.outcomes],
            "random_noise": NOISE_SEED,
        },
        "versions": dict(run.versions),
        "numerics": dict(run.numerics),
        "device": run.device,
        "threads": run.threads,
        "batch_size": run.batch_size,
        "date": run.date,
        "command": run.command,
        "sha256": {
            "model": run.model,
            "weights": run.weights,
            "data": report.inputs.data_sha256,
            "attacks": list(run.attacks),
            "records": hash_of_arrays(arrays_of(report)),
        },
    }
