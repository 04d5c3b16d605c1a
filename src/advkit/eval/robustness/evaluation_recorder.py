"""Recorder of an evaluation, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from advkit.core.batch_recorder import BatchRecorder
from advkit.core.batching import offset_sample_numbers
from advkit.core.protocols import Attack
from advkit.eval.accuracy import ClassifiedBatch
from advkit.eval.budgets import distinct_budgets
from advkit.eval.noise import NoiseOutcome, withstands_noise
from advkit.eval.robustness.attack_recorder import AttackRecorder
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.report import Report
from advkit.eval.robustness.streamed_report import StreamedReport
from advkit.models import Classifier


class EvaluationRecorder:
    """Clean answers, attacks and noise of one evaluation.

    Recording a batch takes the same time whatever came before it.

    Args:
        classifier: the model.
        attacks: what it is attacked with.
        total: number of inputs, `None` if unknown.
        batch_size: the most samples that an attack sends at once.
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
        self.answers = BatchRecorder()

    def update(self, batch: ClassifiedBatch) -> None:
        """Attack one batch, and record what comes of it."""
        with offset_sample_numbers(batch.first):
            for recorder in self.attacks:
                recorder.update(self.classifier, batch)
            self.noise.update(
                {b: withstands_noise(self.classifier, batch, *b) for b in self.budgets}
            )
        self.answers.update({"clean": batch.right, "not_finite": batch.not_finite})

    def report(self) -> Report:
        """Return a report on the batches so far; later batches do not change it.

        Its columns are joined when it is first read.
        """
        outcomes = [recorder.outcome_so_far() for recorder in self.attacks]
        return StreamedReport(partial(self._report, len(self.answers), outcomes))

    def _report(self, batches: int, outcomes: Sequence[Callable[[], AttackOutcome]]) -> Report:
        """Build the report on the first `batches`."""
        answers, noise = self.answers.compute(batches), self.noise.compute(batches)
        return Report(
            model=repr(self.classifier),
            bounds=self.classifier.bounds,
            clean=answers["clean"],
            not_finite=answers["not_finite"],
            outcomes=tuple(outcome() for outcome in outcomes),
            noise=tuple(
                NoiseOutcome(norm=norm, eps=eps, robust=robust)
                for (norm, eps), robust in noise.items()
            ),
            total=self.total,
        )
