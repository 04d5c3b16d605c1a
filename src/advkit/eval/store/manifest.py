"""Manifest of a store: the evaluation whose results it holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from advkit.eval.evidence.provenance import Provenance
from advkit.eval.units.chunks import Inputs
from advkit.eval.units.descriptions import AttackDescription, EvaluationDescription

FORMAT = "advkit store 3"
# Entries of the surroundings that two runs of one evaluation share, with their verbs.
_SETTINGS = {
    "device": "device is",
    "versions": "versions are",
    "numerics": "settings of torch are",
}
# Fields of the provenance that the results depend on, apart from the attacks and the batch size.
_SURROUNDINGS = ("model", "weights", "device", "threads", "versions", "numerics")
# Numbers that two runs of one evaluation share, by attribute; `None` fits any.
_NUMBERS = {"inputs": "number of inputs", "batch_size": "batch size", "chunk_size": "chunk size"}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Evaluation whose results a store holds, as plain values.

    Attributes:
        surroundings: hashes of the model and its weights, device, threads and versions; see
            `Worker.surroundings`.
        attacks: hash and description of each attack.
        budgets: norm and `eps` of each budget that random noise is drawn for.
        batch_size: samples of a batch.
        chunk_size: samples of a chunk.
        inputs: number of all inputs; `None` for a stream.
        chunks: number of all chunks; `None` for a stream whose end no run has reached.
        about: further facts for the reader of the report.
        class_names: name of each class; empty if they are unknown.
        date: start of the first run.
        command: shell command of the first run; `None` for one from Python.
    """

    surroundings: Mapping[str, Any]
    attacks: tuple[Mapping[str, Any], ...]
    budgets: tuple[tuple[str, float], ...]
    batch_size: int
    chunk_size: int
    inputs: int | None
    chunks: int | None
    about: Mapping[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    date: str
    command: str | None

    @staticmethod
    def of(description: EvaluationDescription, provenance: Provenance, inputs: Inputs) -> Manifest:
        """Return the manifest of an evaluation."""
        attacks = zip(provenance.attacks, description.attacks, strict=True)
        plain = provenance.to_plain()
        return Manifest(
            surroundings={name: plain[name] for name in _SURROUNDINGS},
            attacks=tuple({"hash": each, **attack.to_plain()} for each, attack in attacks),
            budgets=description.budgets,
            batch_size=inputs.batch_size,
            chunk_size=inputs.chunk_size,
            inputs=inputs.total,
            chunks=inputs.chunk_count,
            about=description.about,
            class_names=description.class_names,
            date=provenance.date,
            command=provenance.command,
        )

    @property
    def provenance(self) -> Provenance:
        """Provenance of the evaluation, with the date and the command of its first run."""
        return Provenance(
            **self.surroundings,
            batch_size=self.batch_size,
            attacks=tuple(attack["hash"] for attack in self.attacks),
            date=self.date,
            command=self.command,
        )

    @property
    def description(self) -> EvaluationDescription:
        """Description of the evaluation."""
        return EvaluationDescription(
            attacks=tuple(AttackDescription.from_plain(attack) for attack in self.attacks),
            budgets=self.budgets,  # type: ignore[arg-type]  # a norm is a string
            total=self.inputs,
            about=self.about,
            class_names=self.class_names,
        )

    def key(self, attack: int | None, chunk: str) -> str:
        """Return the key of a unit: the hash of all that its result depends on.

        Args:
            attack: number of the attack; `None` for the clean passes.
            chunk: hash of the inputs.
        """
        work = self.budgets if attack is None else self.attacks[attack]["hash"]
        parts = [FORMAT, self.surroundings, self.batch_size, work, chunk]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"format": FORMAT, **asdict(self)}

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Manifest:
        """Return the manifest that `to_plain` was called on.

        Raises:
            ValueError: the values are not those of a manifest.
        """
        if not isinstance(plain, Mapping) or plain.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}.")
        try:
            values = {name: plain[name] for name in Manifest.__dataclass_fields__}
            values["attacks"] = tuple(values["attacks"])
            values["class_names"] = tuple(values["class_names"])
            values["budgets"] = tuple((norm, eps) for norm, eps in values["budgets"])
            return Manifest(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it lacks {error}.") from error

    def difference(self, here: Manifest) -> str | None:
        """Return a text on the first difference to `here`, `None` for the same evaluation."""
        return next(self._differences(here), None)

    def _differences(self, here: Manifest) -> Iterator[str]:
        old, new = self.surroundings, here.surroundings
        for name, text in _SETTINGS.items():  # before the model, whose hash depends on Python
            if old[name] != new[name]:
                yield f"{text} {_shown(old[name], new[name])}, here {_shown(new[name], old[name])}"
        if old["model"] != new["model"]:
            hashes = f"hash {old['model'][:12]}, here {new['model'][:12]}"
            yield (
                f"model has other weights, settings or code ({hashes}). If a forward pass changes "
                "an attribute of the model, evaluate a fresh copy"
            )
        yield from self._differing_attacks(here)
        for name, text in _NUMBERS.items():
            there, value = getattr(self, name), getattr(here, name)
            if there != value and None not in (there, value):
                yield f"{text} is {there:,}, here {value:,}"
        if old["threads"] != new["threads"]:
            yield (
                f"number of threads is {old['threads']}, here {new['threads']}, which changes the "
                "rounding (call torch.set_num_threads or set OMP_NUM_THREADS)"
            )

    def _differing_attacks(self, here: Manifest) -> Iterator[str]:
        if len(self.attacks) != len(here.attacks):
            counts = f"number of attacks is {len(self.attacks)}, here {len(here.attacks)}"
            yield f"{counts}: {_labels(self)} there, {_labels(here)} here"
        labels = ([a.label for a in each.description.attacks] for each in (self, here))
        for number, (old, new) in enumerate(zip(*labels, strict=False), 1):
            if self.attacks[number - 1]["hash"] == here.attacks[number - 1]["hash"]:
                continue
            if old == new:
                yield f"attack {number}, {old}, has other tensors, functions or models"
            else:
                yield f"attack {number} is {old}, here {new}"


def _shown(value: object, other: object) -> str:
    """Return a value of the surroundings as text; of a mapping, the entries that `other` lacks."""
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return ", ".join(f"{k} {each}" for k, each in value.items() if other.get(k) != each)
    return str(value)


def _labels(manifest: Manifest) -> str:
    return ", ".join(attack.label for attack in manifest.description.attacks)
