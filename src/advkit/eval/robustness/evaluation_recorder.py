"""Recorder of an evaluation, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from advkit.core.batch_recorder import BatchRecorder
from advkit.core.batching import offset_sample_numbers
from advkit.core.protocols import Attack
from advkit.eval.accuracy import ClassifiedBatch, Rate, warn_of_chance
from advkit.eval.budgets import distinct_budgets
from advkit.eval.noise import NoiseOutcome, robust_to_noise
from advkit.eval.robustness.attack_recorder import AttackRecorder
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.report import Report
from advkit.eval.robustness.streamed_report import StreamedReport
from advkit.models import Classifier


class EvaluationRecorder:
    """Clean predictions, attacks and random noise of one evaluation.

    The time to record a batch does not depend on the number of batches before it.

    Args:
        classifier: the model.
        attacks: the attacks to run.
        total: number of inputs, `None` if unknown.
        batch_size: the most samples that an attack passes to the model at once.
    """

    def __init__(
        self,
        classifier: Classifier,
        attacks: Sequence[Attack],
        total: int | None,
        batch_size: int,
    ) -> None:
        self.classifier = classifier
        self.total = total
        self.attacks = [AttackRecorder(attack, batch_size=batch_size) for attack in attacks]
        self.budgets = distinct_budgets(attacks)
        self.noise = BatchRecorder()
        self.clean = BatchRecorder()
        self.features: int | None = None
        self.num_classes: int | None = None

    def update(self, batch: ClassifiedBatch) -> None:
        """Attack one batch and record the results."""
        with offset_sample_numbers(batch.first):
            for recorder in self.attacks:
                recorder.update(self.classifier, batch)
            self.noise.update(
                {b: robust_to_noise(self.classifier, batch, *b) for b in self.budgets}
            )
        if self.features is None and len(batch.x):
            self.features, self.num_classes = batch.x[0].numel(), self.classifier.num_classes
        self.clean.update({"clean": batch.correct, "not_finite": batch.not_finite})

    def warn_of_chance(self) -> None:
        """Warn if the clean accuracy of all batches so far may be chance."""
        if self.num_classes is not None:
            warn_of_chance(Rate.of(self.clean.compute()["clean"]), self.num_classes)

    def report(self) -> Report:
        """Return a report on the batches so far; later batches do not change it.

        The report joins its columns when it is first read.
        """
        outcomes = [recorder.outcome_so_far() for recorder in self.attacks]
        return StreamedReport(partial(self._report, len(self.clean), outcomes))

    def _report(self, batches: int, outcomes: Sequence[Callable[[], AttackOutcome]]) -> Report:
        """Build the report on the first `batches`."""
        clean, noise = self.clean.compute(batches), self.noise.compute(batches)
        return Report(
            model=repr(self.classifier),
            bounds=self.classifier.bounds,
            clean=clean["clean"],
            not_finite=clean["not_finite"],
            outcomes=tuple(outcome() for outcome in outcomes),
            noise=tuple(
                NoiseOutcome(norm=norm, eps=eps, robust=robust)
                for (norm, eps), robust in noise.items()
            ),
            total=self.total,
            features=self.features,
            num_classes=self.num_classes,
        )
