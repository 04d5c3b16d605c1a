"""Recorder of one attack on a data set, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.attack_options import check_length, for_samples, sending_at_most
from advkit.core.batch_recorder import BatchRecorder
from advkit.core.hyperparameters import non_default_fields
from advkit.core.protocols import Attack
from advkit.core.results import AttackResult
from advkit.eval.accuracy import ClassifiedBatch
from advkit.eval.budgets import radius_of
from advkit.eval.robustness.outcome import AttackOutcome, Examples
from advkit.models import Classifier
from advkit.models.labels import given_labels
from advkit.models.protocols import is_misclassified

# Successes of an attack that are kept for pictures: as many as a figure shows side by side.
MAX_EXAMPLES = 6
# Value and dtype of each column for samples that are not attacked.
_NOT_ATTACKED = {
    "radius": (0, torch.float64),
    "robust": (False, torch.bool),
    "distance": (torch.nan, torch.float32),
    "forward": (0, torch.int64),
    "backward": (0, torch.int64),
    "no_gradient": (False, torch.bool),
    "not_finite": (False, torch.bool),
    "no_start": (False, torch.bool),
}


def check_attacks(attacks: Sequence[Attack], total: int | None) -> None:
    """Raise unless `attacks` is a list of attacks for `total` samples, `None` for any number."""
    if not (isinstance(attacks, Sequence) and all(map(checks.is_attack, attacks))):
        raise TypeError(f"`attacks` must be a list of attacks, got {attacks!r}.")
    if not attacks:
        raise ValueError("`attacks` must hold at least one attack, got none.")
    for attack in attacks:
        check_length(attack, total)


class AttackRecorder:
    """Outcome of one attack so far, batch by batch.

    Args:
        attack: the attack.
        batch_size: the most samples that it passes to the model at once.
        examples: number of its successes that are kept for pictures.
    """

    def __init__(self, attack: Attack, *, batch_size: int, examples: int = MAX_EXAMPLES) -> None:
        self.attack: Any = attack
        self.batch_size = batch_size
        self.norm: str = getattr(attack, "norm", "")
        self.columns = BatchRecorder()
        self.seconds = 0.0
        self.max_examples = examples
        self.examples: list[Examples] = []

    def update(self, model: Classifier, batch: ClassifiedBatch) -> None:
        """Attack the samples of a batch that the model labels correctly."""
        n, rows = len(batch.x), batch.rows.cpu()
        columns = {k: torch.full((n,), v, dtype=dtype) for k, (v, dtype) in _NOT_ATTACKED.items()}
        if len(rows):
            attack = for_samples(self.attack, rows + batch.first)
            attack = sending_at_most(attack, self.batch_size)
            for name, values in self._attack(attack, model, batch).items():
                columns[name][rows] = values
        self.columns.update(columns)

    def _attack(self, attack: Any, model: Classifier, batch: ClassifiedBatch) -> dict[str, Tensor]:
        """Run the `attack` on samples of a batch and return its result by column."""
        x, y = batch.attacked
        start = time.perf_counter()
        with batch.attacking():
            result = attack.run(model, x.clone(), given_labels(model, y).clone())
        success = result.success.cpu()  # waits for the device, which makes the measured time right
        self.seconds += time.perf_counter() - start
        self.norm = result.norm
        self._keep_examples(model, batch, result)
        return {
            "radius": radius_of(attack),
            "robust": ~success,
            "distance": torch.where(success, result.distance.cpu().float(), torch.nan),
            "forward": result.queries.forward.cpu(),
            "backward": result.queries.backward.cpu(),
            "no_gradient": result.no_gradient.cpu(),
            "not_finite": result.not_finite.cpu(),
            "no_start": result.no_start.cpu(),
        }

    def _keep_examples(
        self, model: Classifier, batch: ClassifiedBatch, result: AttackResult
    ) -> None:
        """Keep the first successes of a batch, up to `max_examples` over all batches."""
        x, y = batch.attacked
        missing = self.max_examples - sum(len(e.y) for e in self.examples)
        candidates = result.success.nonzero().flatten()[: 2 * missing]
        if self.examples and self.examples[0].x.shape[1:] != x.shape[1:]:
            return  # all pictures have the same size
        if not len(candidates):
            return
        predicted = batch.predict_attacked(model, result.x_adv, candidates)
        # On the decision boundary, rounding in a batch of another size may change the label.
        misclassified = is_misclassified(predicted, y[candidates]).nonzero().flatten()[:missing]
        if len(misclassified):
            rows = candidates[misclassified]
            parts = (x[rows], result.x_adv[rows], y[rows], predicted[misclassified])
            self.examples.append(Examples(*(part.cpu() for part in parts)))

    def outcome_so_far(self) -> Callable[[], AttackOutcome]:
        """Return a function that builds the outcome of the batches so far, at any later time."""
        examples = tuple(self.examples)
        return partial(self._outcome, len(self.columns), self.seconds, self.norm, examples)

    def compute(self) -> AttackOutcome:
        """Return the outcome of the attack on all batches so far."""
        return self.outcome_so_far()()

    def _outcome(
        self, batches: int, seconds: float, norm: str, examples: Sequence[Examples]
    ) -> AttackOutcome:
        """Return the outcome of the attack on the first `batches`."""
        eps = getattr(self.attack, "eps", None)
        return AttackOutcome(
            name=type(self.attack).__name__,
            settings=non_default_fields(self.attack),
            norm=norm,
            minimum_norm=eps is None,
            eps=float(eps) if isinstance(eps, Real) else None,
            seconds=seconds,
            examples=Examples.join(examples),
            **self.columns.compute(batches),
        )
