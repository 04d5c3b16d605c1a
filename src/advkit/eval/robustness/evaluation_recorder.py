"""Recorder of an evaluation, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from torch import Tensor

from advkit.core.batch_recorder import BatchRecorder
from advkit.eval.accuracy import Rate, warn_of_chance
from advkit.eval.evidence.evaluated_inputs import EvaluatedInputs
from advkit.eval.evidence.provenance import Provenance
from advkit.eval.noise import NoiseOutcome
from advkit.eval.robustness.attack_recorder import AttackRecorder
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.report import Report
from advkit.eval.robustness.streamed_report import StreamedReport
from advkit.eval.units.descriptions import EvaluationDescription
from advkit.eval.units.model_checks import COLUMNS, ModelChecks
from advkit.eval.units.unit_result import UnitResult, noise_column


class EvaluationRecorder:
    """Clean predictions, attacks and random noise of one evaluation.

    The time to record a chunk does not depend on the number of chunks before it.
    """

    def __init__(self, description: EvaluationDescription, provenance: Provenance) -> None:
        self._description, self._provenance = description, provenance
        self._attacks = [AttackRecorder(attack) for attack in description.attacks]
        self._clean = BatchRecorder()
        self._facts: dict[str, Any] = {}

    def update(self, clean: UnitResult, attacked: Sequence[UnitResult]) -> None:
        """Record the results of the next chunk: of its clean passes, and of each attack."""
        self._clean.update(clean.columns)
        if self._facts.get("features") is None:  # unknown as long as all batches are empty
            self._facts = dict(clean.facts)
        for recorder, result in zip(self._attacks, attacked, strict=True):
            recorder.update(result)

    def warn_of_chance(self) -> None:
        """Warn if the clean accuracy of all chunks so far may be chance."""
        if self._facts.get("num_classes") is not None:
            inputs = _inputs(self._clean.compute())
            warn_of_chance(Rate.of(inputs.correct), self._facts["num_classes"])

    def report(self) -> Report:
        """Return a report on the chunks so far; later chunks do not change it.

        The report joins its columns when it is first read.
        """
        outcomes = [recorder.outcome_so_far() for recorder in self._attacks]
        return StreamedReport(partial(self._report, len(self._clean), outcomes))

    def _report(self, chunks: int, outcomes: Sequence[Callable[[], AttackOutcome]]) -> Report:
        """Build the report on the first `chunks`."""
        columns = self._clean.compute(chunks)
        inputs = _inputs(columns)
        return Report(
            model=self._facts["model"],
            bounds=tuple(self._facts["bounds"]),
            outcomes=tuple(outcome() for outcome in outcomes),
            noise=tuple(
                NoiseOutcome(norm=norm, eps=eps, robust=columns[noise_column(number)])
                for number, (norm, eps) in enumerate(self._description.budgets)
            ),
            about=self._description.about,
            total=self._description.total,
            features=self._facts["features"],
            positions=self._facts.get("positions"),  # unknown to a store of an earlier version
            num_classes=self._facts["num_classes"],
            checks=ModelChecks(
                **{name: columns[name] for name in COLUMNS},
                training_mode=self._facts["training_mode"],
            ),
            inputs=inputs,
            provenance=self._provenance,
            class_names=self._description.class_names,
        )


def _inputs(columns: dict[str, Tensor]) -> EvaluatedInputs:
    """Return the inputs of all chunks from the columns of their clean passes."""
    return EvaluatedInputs(**{field.name: columns[field.name] for field in fields(EvaluatedInputs)})
