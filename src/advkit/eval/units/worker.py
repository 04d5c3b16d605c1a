"""Worker of an evaluation: it classifies chunks of the inputs and attacks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from advkit.core.batching import offset_sample_numbers
from advkit.core.boxes import positions
from advkit.core.fingerprints import fingerprint, fingerprint_if_any
from advkit.core.norms import Norm
from advkit.core.protocols import Attack
from advkit.eval.accuracy import ClassifiedBatch, classified_again, classified_batches
from advkit.eval.budgets import distinct_budgets
from advkit.eval.noise import robust_to_noise
from advkit.eval.units.attack_run import attack_batches
from advkit.eval.units.chunks import Chunk
from advkit.eval.units.input_columns import input_columns
from advkit.eval.units.model_checks import COLUMNS, check_batch
from advkit.eval.units.unit_result import UnitResult, noise_column
from advkit.eval.units.weights import hash_of_weights
from advkit.eval.units.worker_device import worker_device
from advkit.eval.versions import numerics, versions
from advkit.models import as_classifier
from advkit.models.training_mode import runs_in_training_mode


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """Everything that a worker needs for all units of an evaluation.

    Attributes:
        model: the model; `None` if the worker calls `factory`.
        factory: function that returns the model; `None` if there is a `model`.
        attacks: the attacks.
        batch_size: the most samples that an attack passes to the model at once.
        device: device of the inputs, and of the model of a factory; `None` leaves them where they
            are. With a factory, "cuda" is the GPU of the worker.
    """

    model: object
    factory: Callable[[], object] | None
    attacks: Sequence[Attack]
    batch_size: int
    device: torch.device | None


class Unit(NamedTuple):
    """One unit of work.

    Attributes:
        chunk: the inputs.
        attack: number of the attack; `None` for the clean passes and those of random noise.
        clean: result of the clean passes, which an attack needs.
    """

    chunk: Chunk
    attack: int | None = None
    clean: UnitResult | None = None


class Worker:
    """A model and the attacks that are run on it, in one process."""

    def __init__(self, job: Job) -> None:
        self._job, self._device = job, job.device
        if job.factory is not None:
            self._device = worker_device(job.device)
        self._classifier = as_classifier(_model(job, self._device))
        self._budgets = distinct_budgets(job.attacks)
        self._last: tuple[Chunk, list[ClassifiedBatch]] | None = None

    def surroundings(self, identity: str | None, *, required: bool) -> dict[str, object]:
        """Return what the results depend on apart from inputs and attacks, as plain values.

        Args:
            identity: text that stands for parts of the model that cannot be hashed.
            required: whether the hash of the model must be known; otherwise it may be `None`.

        Raises:
            TypeError: a part of the model cannot be hashed, and `identity` is `None`.
        """
        hash_of = fingerprint if required else fingerprint_if_any
        return {
            "model": hash_of(self._classifier, "model", identity=identity),
            "weights": hash_of_weights(self._classifier),
            "device": _device_name(self._device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "numerics": numerics(),
        }

    def compute(self, unit: Unit) -> UnitResult:
        """Compute the result of a unit of work."""
        if unit.attack is None or unit.clean is None:
            return self._classify(unit.chunk)
        attack, parts = self._job.attacks[unit.attack], self._classified(unit.chunk, unit.clean)
        return attack_batches(attack, self._classifier, parts, self._job.batch_size)

    def _classify(self, chunk: Chunk) -> UnitResult:
        """Classify a chunk without an attack and with random noise of each budget."""
        moved = iter(chunk.to(self._device).batches)
        parts = list(classified_batches(self._classifier, moved))
        self._last = (chunk, parts)
        columns = input_columns(parts)
        checked = [check_batch(self._classifier, part) for part in parts]
        columns |= {name: torch.cat([each[name] for each in checked]) for name in COLUMNS}
        for number, budget in enumerate(self._budgets):
            robust = [self._robust_to_noise(part, *budget) for part in parts]
            columns[noise_column(number)] = torch.cat(robust).cpu()
        x = next((part.x for part in parts if len(part.x)), None)
        facts = {
            "model": repr(self._classifier),
            "bounds": list(self._classifier.bounds),
            "features": None if x is None else x[0].numel(),
            "positions": None if x is None else positions(x),
            "training_mode": runs_in_training_mode(self._classifier),
            "num_classes": None if x is None else int(self._classifier.num_classes),
        }
        return UnitResult(columns=columns, facts=facts)

    def _robust_to_noise(self, part: ClassifiedBatch, norm: Norm, eps: float) -> Tensor:
        with offset_sample_numbers(part.first):
            return robust_to_noise(self._classifier, part, norm, eps)

    def _classified(self, chunk: Chunk, clean: UnitResult) -> list[ClassifiedBatch]:
        """Return the batches of a chunk with the results of their clean passes."""
        if self._last is None or self._last[0] is not chunk:
            moved = chunk.to(self._device).batches
            self._last = (chunk, classified_again(self._classifier, moved, clean.columns))
        return self._last[1]


def _model(job: Job, device: torch.device | None) -> object:
    """Return the model of a job; a factory has `device` as torch's default device."""
    if job.factory is None:
        return job.model
    with nullcontext() if device is None else device:
        model = job.factory()
    return model if device is None or not isinstance(model, nn.Module) else model.to(device)


def _device_name(device: torch.device | None) -> str:
    """Return the kind of a device: results are equal on devices of one kind."""
    if device is None or device.type != "cuda":
        return "cpu" if device is None else device.type
    return torch.cuda.get_device_name(device)
