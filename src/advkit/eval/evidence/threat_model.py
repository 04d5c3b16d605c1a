"""Threat model of an evaluation, in the terms of NIST AI 100-2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Knowledge = Literal["white-box", "black-box"]
SOURCE = "NIST AI 100-2e2025"


def knowledge_of(backward: int) -> Knowledge:
    """Return what an attack with `backward` passes through the model must know.

    Gradients need the parameters of the model (white-box). Without them, its outputs are enough
    (black-box).
    """
    return "white-box" if backward else "black-box"


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """Attacker of an evaluation, in the terms of NIST AI 100-2e2025, section 2.1.

    Attributes:
        attack_class: class of the attacks.
        life_cycle_stage: when the attacker acts.
        goal: what the attacker wants.
        objective: what counts as a success.
        capabilities: what the attacker controls.
        knowledge: what the attacker knows of the model: the most that an attack used.
        limits: budget of each attack with one, and the norm of each minimum-norm attack.
        source: the document that defines the terms.
    """

    attack_class: str = "evasion"
    life_cycle_stage: str = "deployment"
    goal: str = "integrity violation"
    objective: str = "untargeted misclassification"
    capabilities: tuple[str, ...]
    knowledge: Knowledge
    limits: tuple[str, ...]
    source: str = SOURCE

    @staticmethod
    def of(knowledge: Sequence[Knowledge], limits: Sequence[str]) -> ThreatModel:
        """Return the threat model of attacks that need this `knowledge` within these `limits`."""
        queries = ("query access",) if "black-box" in knowledge else ()
        return ThreatModel(
            capabilities=("testing data control", *queries),
            knowledge="white-box" if "white-box" in knowledge else "black-box",
            limits=tuple(dict.fromkeys(limits)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "capabilities": [*self.capabilities], "limits": [*self.limits]}
