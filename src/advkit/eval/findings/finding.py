"""A finding: a reason to doubt a robust accuracy."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from advkit.eval.text_tables import WIDTH, format_count

Severity = Literal["high", "medium", "low"]
SEVERITIES: tuple[Severity, ...] = ("high", "medium", "low")
MUCH = 0.05  # share of the inputs from which on a wrong figure is not just inexact
_INDENT = "    "


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Reason to doubt a robust accuracy, with its evidence and a remedy.

    Attributes:
        name: kind of the finding, such as `"random_model"`. `docs/findings` has a page of that
            name.
        severity: `"high"` if the figure should not be believed, `"medium"` if it may be somewhat
            wrong, and `"low"` if it stands, but says less than it seems to.
        message: sentences with the numbers.
        evidence: the numbers, by name.
        remedy: sentence that says what to do.
        code: code to type.
    """

    name: str
    severity: Severity
    message: str
    evidence: Mapping[str, float | int | str]
    remedy: str
    code: str

    def __str__(self) -> str:
        return "\n".join(format_finding(self))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**vars(self), "evidence": dict(self.evidence)}


def severity_of(affected: int, total: int) -> Severity:
    """Return the severity of a finding about `affected` of `total` inputs that count as robust."""
    if not affected:
        return "low"
    return "high" if affected >= MUCH * total else "medium"


def format_finding(finding: Finding) -> list[str]:
    """Return the lines of text of a finding."""
    lines = [f"[{finding.severity}] {finding.name}"]
    for sentence in (finding.message, finding.remedy):
        wrapped = textwrap.fill(sentence, WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
        lines.append(wrapped)
    return [*lines, *(f"{_INDENT}> {line}" for line in finding.code.splitlines())]


def format_findings(findings: Sequence[Finding]) -> list[str]:
    """Return the lines of text of several findings under their verdict."""
    lines = [verdict(findings)]
    for finding in findings:
        lines += ["", *format_finding(finding)]
    return lines


def verdict(findings: Sequence[Finding]) -> str:
    """Return the sentence that says whether to believe a figure with these `findings`."""
    count: dict[Severity, int] = {
        s: sum(finding.severity == s for finding in findings) for s in SEVERITIES
    }
    if count["high"]:
        return f"Verdict: do not believe these figures ({_findings('high', count)})."
    if count["medium"]:
        return f"Verdict: doubt these figures ({_findings('medium', count)})."
    if count["low"]:
        return f"Verdict: these figures stand ({_findings('low', count)})."
    return "Verdict: no check speaks against these figures."


def _findings(severity: Severity, count: Mapping[Severity, int]) -> str:
    """Return the count of the findings of the highest `severity` as text."""
    return format_count(count[severity], f"{severity} finding")
