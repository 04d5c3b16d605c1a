"""What one attack does to a data set, counted and timed batch by batch."""

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

_EXAMPLES = 6
_NOT_ATTACKED = {  # value and dtype of the columns
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
        raise TypeError(f"`attacks` must be a list of attacks, got {attacks!r}")
    if not attacks:
        raise ValueError("`attacks` must hold at least one attack, got none")
    for attack in attacks:
        check_length(attack, total)


class AttackRecorder:
    """What one attack has done so far, batch by batch.

    Args:
        attack: the attack.
        batch_size: the most samples that it sends at once.
        examples: how many of its successes are kept for pictures.
    """

    def __init__(self, attack: Attack, *, batch_size: int, examples: int = _EXAMPLES) -> None:
        self.attack: Any = attack
        self.batch_size = batch_size
        self.norm: str = getattr(attack, "norm", "")
        self.columns = BatchRecorder()
        self.seconds = 0.0
        self.wanted = examples
        self.examples: list[Examples] = []

    def update(self, model: Classifier, batch: ClassifiedBatch) -> None:
        """Attack the samples of a batch that the model labels correctly."""
        n, rows = len(batch.x), batch.rows.cpu()
        found = {k: torch.full((n,), v, dtype=dtype) for k, (v, dtype) in _NOT_ATTACKED.items()}
        if len(rows):
            attack = for_samples(self.attack, rows + batch.first)
            attack = sending_at_most(attack, self.batch_size)
            for name, values in self._attack(attack, model, batch).items():
                found[name][rows] = values
        self.columns.update(found)

    def _attack(self, attack: Any, model: Classifier, batch: ClassifiedBatch) -> dict[str, Tensor]:
        """Run the `attack` on samples of a batch and return what it finds, by column."""
        x, y = batch.attacked
        start = time.perf_counter()
        with batch.attacking():
            result = attack.run(model, x.clone(), given_labels(model, y).clone())
        success = result.success.cpu()  # waits for the device, so that the clock is right
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
        x, y = batch.attacked
        room = self.wanted - sum(len(e.y) for e in self.examples)
        wanted = result.success.nonzero().flatten()[: 2 * room]
        if self.examples and self.examples[0].x.shape[1:] != x.shape[1:]:
            return  # pictures of one size only
        if not len(wanted):
            return
        answer = batch.labels_of_attacked(model, result.x_adv, wanted)
        # On the boundary a batch of another size may round to the other side.
        turned = is_misclassified(answer, y[wanted]).nonzero().flatten()[:room]
        if len(turned):
            rows = wanted[turned]
            parts = (x[rows], result.x_adv[rows], y[rows], answer[turned])
            self.examples.append(Examples(*(part.cpu() for part in parts)))

    def outcome_so_far(self) -> Callable[[], AttackOutcome]:
        """Return a function that builds the outcome of the batches so far, whatever follows."""
        examples = tuple(self.examples)
        return partial(self._outcome, len(self.columns), self.seconds, self.norm, examples)

    def compute(self) -> AttackOutcome:
        """Return what the attack did to all batches so far."""
        return self.outcome_so_far()()

    def _outcome(
        self, batches: int, seconds: float, norm: str, examples: Sequence[Examples]
    ) -> AttackOutcome:
        """Return what the attack did to the first `batches`."""
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
