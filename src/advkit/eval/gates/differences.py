"""Sentences on what differs between two reports and what does not: attacks, model, versions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

from advkit.eval.evidence.provenance import Provenance
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.report import Report


def differences(old: Report, new: Report) -> list[str]:
    """Return sentences on the attacks, models, bounds and versions of two reports."""
    return [
        *_on_attacks(old.outcomes, new.outcomes),
        *_on_bounds(old, new),
        *_on_models(old.provenance, new.provenance),
        *_on_versions(old.provenance, new.provenance),
    ]


def _on_attacks(old: Sequence[AttackOutcome], new: Sequence[AttackOutcome]) -> Iterator[str]:
    before, after = Counter(map(_attack, old)), Counter(map(_attack, new))
    changed = [("the old report", before - after), ("the new one", after - before)]
    texts = [
        f"only {name} has {', '.join(label for label, _ in attacks)}"
        for name, attacks in changed
        if attacks
    ]
    if texts:
        text = "; ".join(texts)
        if {label for label, _ in before} == {label for label, _ in after}:
            text = "defaults of " + ", ".join(label for label, _ in before - after) + " differ"
        yield f"The attacks differ ({text}), so that a difference may come from them."


def _attack(outcome: AttackOutcome) -> tuple[str, str]:
    """Return the call that creates an attack, and all its parameters as text."""
    plain = {"norm": outcome.norm, **outcome.parameters}
    return outcome.label, json.dumps(plain, sort_keys=True, default=str)


def _on_bounds(old: Report, new: Report) -> Iterator[str]:
    if tuple(old.bounds) != tuple(new.bounds):
        yield (
            f"The bounds of the inputs differ: {list(old.bounds)} in the old report, "
            f"{list(new.bounds)} in the new one."
        )


def _on_models(old: Provenance, new: Provenance) -> Iterator[str]:
    if old.model is not None and old.model == new.model:
        yield "The models are the same: their weights, settings and code have one hash."
    elif old.weights is not None and old.weights == new.weights:
        yield "The weights of the models are the same: they have one hash."


def _on_versions(old: Provenance, new: Provenance) -> Iterator[str]:
    names = [*dict.fromkeys([*old.versions, *new.versions])]
    changed = [
        f"{name} {old.versions.get(name, '-')} and {new.versions.get(name, '-')}"
        for name in names
        if old.versions.get(name) != new.versions.get(name)
    ]
    if changed:
        yield f"The versions differ: {', '.join(changed)}."
