"""Diagnosis of a robust accuracy, as text, a dict and a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advkit.core.files import save_json
from advkit.eval import text_tables
from advkit.eval.accuracy import Rate
from advkit.eval.findings.finding import Finding, format_findings, verdict
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.versions import versions

_HEADING = ("probe", "robust\naccuracy", "forward\nper input", "backward\nper input")


@dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis:
    """Findings about a model, and what each probe found.

    Attributes:
        model: description of the model.
        clean_accuracy: share of the inputs that are labeled correctly before any attack.
        findings: reasons to doubt a robust accuracy, the most severe first.
        outcomes: outcome of each probe that was run, by role.
        left_out: reason why a probe was not run, by role.
        figure: robust accuracy of the report that was diagnosed, `None` without one.
    """

    model: str
    clean_accuracy: Rate
    findings: tuple[Finding, ...]
    outcomes: Mapping[str, AttackOutcome]
    left_out: Mapping[str, str]
    figure: Rate | None = None

    def __str__(self) -> str:
        heading = [f"{self.model}", f"clean accuracy {self.clean_accuracy}"]
        if self.figure is not None:
            heading.append(f"robust accuracy in the report {self.figure}")
        found, table = format_findings(self.findings), text_tables.format_tables([self.table()])
        notes = [f"{role} was left out: {reason}" for role, reason in self.left_out.items()]
        wrapped = ["", *text_tables.wrap_notes(notes)] if notes else []
        return "\n".join([*heading, "", *found, "", *table, *wrapped])

    @property
    def verdict(self) -> str:
        """Sentence that says whether to believe the figure."""
        return verdict(self.findings)

    def table(self) -> text_tables.Table:
        """Return the table of the probes."""
        rows = [_row(role, outcome) for role, outcome in self.outcomes.items()]
        return text_tables.Table(
            "Probes: robust accuracy under one attack each", _HEADING, rows, []
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "model": self.model,
            "verdict": self.verdict,
            "clean_accuracy": self.clean_accuracy.to_dict(),
            "robust_accuracy_in_report": self.figure and self.figure.to_dict(),
            "findings": [finding.to_dict() for finding in self.findings],
            "probes": {role: outcome.to_dict() for role, outcome in self.outcomes.items()},
            "left_out": dict(self.left_out),
            "versions": versions(),
        }

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict()` to `path`; after an error, no partial file is left."""
        return save_json(path, self.to_dict())


def _row(role: str, outcome: AttackOutcome) -> tuple[str, ...]:
    """Return the row of a probe; a minimum-norm attack has no robust accuracy."""
    shown = "at any distance" if outcome.minimum_norm else str(outcome.robust_accuracy)
    passes = (outcome.mean_of_attacked(c) for c in (outcome.forward, outcome.backward))
    return f"{role}: {outcome.label}", shown, *("" if p is None else f"{p:,.1f}" for p in passes)
