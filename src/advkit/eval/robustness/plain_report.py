"""Parts of a report as plain values for JSON, and the digest of all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from advkit.core.boxes import format_norm
from advkit.eval.evidence.evaluated_inputs import EvaluatedInputs
from advkit.eval.evidence.provenance import Provenance
from advkit.eval.evidence.threat_model import Knowledge, ThreatModel, knowledge_of
from advkit.eval.noise import SEED as NOISE_SEED
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.report_arrays import Arrays, hash_of_arrays
from advkit.eval.robustness.worst_case import budget_texts

FORMAT = "advkit report 1"
# Entries that differ between runs with equal figures.
_OF_THE_RUN = ("date", "command", "device", "threads", "batch_size", "gates")


def digest_of_plain(plain: dict[str, Any]) -> str:
    """Return the SHA-256 of the values of `Report.to_dict` that equal evaluations share."""
    attacks = [{**attack, "seconds": None} for attack in plain["attacks"]]
    shared = {name: value for name, value in plain.items() if name not in _OF_THE_RUN}
    text = json.dumps({**shared, "attacks": attacks}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def threat_model_of(outcomes: Sequence[AttackOutcome]) -> ThreatModel:
    """Return the threat model of attacks with these outcomes."""
    limits = [
        budget or f"{format_norm(outcome.norm)}, any distance"
        for outcome, budget in zip(outcomes, budget_texts(outcomes), strict=True)
    ]
    return ThreatModel.of([_knowledge(outcome) for outcome in outcomes], limits)


def _knowledge(outcome: AttackOutcome) -> Knowledge:
    return knowledge_of(int(outcome.backward.sum()))


def plain_outcomes(outcomes: Sequence[AttackOutcome]) -> list[dict[str, Any]]:
    """Return the outcomes of attacks as plain values, each with its budget and its knowledge."""
    return [
        {**outcome.to_dict(), "budget": budget or None, "knowledge": _knowledge(outcome)}
        for outcome, budget in zip(outcomes, budget_texts(outcomes), strict=True)
    ]


def plain_conditions(run: Provenance, outcomes: Sequence[AttackOutcome]) -> dict[str, Any]:
    """Return what the figures were computed with, apart from hashes."""
    return {
        "seeds": {
            "attacks": [outcome.parameters.get("seed") for outcome in outcomes],
            "random_noise": NOISE_SEED,
        },
        "versions": dict(run.versions),
        "numerics": dict(run.numerics),
        "device": run.device,
        "threads": run.threads,
        "batch_size": run.batch_size,
        "date": run.date,
        "command": run.command,
    }


def plain_hashes(run: Provenance, inputs: EvaluatedInputs, arrays: Arrays) -> dict[str, Any]:
    """Return the SHA-256 of all parts of an evaluation, and of the per-input results `arrays`."""
    return {
        "model": run.model,
        "weights": run.weights,
        "data": inputs.data_sha256,
        "attacks": list(run.attacks),
        "records": hash_of_arrays(arrays),
    }
