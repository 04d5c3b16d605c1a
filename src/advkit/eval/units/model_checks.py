"""Checks of a model on a few inputs of each batch, two forward passes for each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from advkit.core import sample_rows
from advkit.core.batching import offset_sample_numbers
from advkit.core.checks import look_like_probabilities
from advkit.eval.accuracy import ClassifiedBatch
from advkit.models import Classifier, DifferentiableClassifier
from advkit.models.batch_dependence import keeps_batch, uses_batch_statistics
from advkit.models.convert import has_gradients
from advkit.models.protocols import evaluating, may_interrupt
from advkit.models.wrappers import averages_draws

CHECKED_EVERY = 64  # inputs, so that the checks cost next to nothing
# Relative change of a logit that is more than rounding.
_TOLERANCE, _TOLERANCE_OF_16_BITS = 1e-3, 1e-1
COLUMNS = ("checked", "random", "probabilities", "labels", "saturated")


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelChecks:
    """Outcome of the checks of a model on `n` inputs.

    Attributes:
        checked: bool `(n,)`; the inputs that were checked. The other masks are false elsewhere.
        random: bool `(n,)`; other logits when the model was evaluated again. For an `Expectation`,
            whose means always differ a little, another label.
        probabilities: bool `(n,)`; logits in [0, 1] with a sum of one, as all others of the batch.
        labels: bool `(n,)`; logits of one value at the label, and another one elsewhere.
        saturated: bool `(n,)`; logits so far apart that the softmax of the others is zero.
        training_mode: whether a module of the model ran in training mode.
    """

    checked: Tensor
    random: Tensor
    probabilities: Tensor
    labels: Tensor
    saturated: Tensor
    training_mode: bool


def check_batch(model: Classifier, batch: ClassifiedBatch) -> dict[str, Tensor]:
    """Check the outputs of `model` on a few inputs of a batch.

    A model without logits, one whose outputs depend on the whole batch, and one whose queries may
    end the evaluation are not checked.

    Returns:
        Masks `(n,)` on the CPU: the inputs that were `checked`, and those of them whose logits
        are `random`, `probabilities`, one-hot `labels`, or so far apart that their softmax is
        `saturated`.
    """
    found = {name: torch.zeros(len(batch.x), dtype=torch.bool) for name in COLUMNS}
    rows = every(CHECKED_EVERY, batch)
    whole = keeps_batch(model) or uses_batch_statistics(model)
    possible = not whole and not may_interrupt(model)
    if len(rows) and possible and has_gradients(model):
        first, second = _logits_twice(model, batch, rows)
        found["checked"][rows] = True
        differ = _labels_differ if averages_draws(model) else _differ
        for name, mask in (("random", differ(first, second)), *_kinds(first).items()):
            found[name][rows] = mask.cpu()
    return found


def every(step: int, batch: ClassifiedBatch) -> Tensor:
    """Return the rows `(k,)` of the inputs whose number in the data is a multiple of `step`.

    They do not depend on the size of the batches.
    """
    return torch.tensor(range(-batch.first % step, len(batch.x), step), dtype=torch.int64)


def _logits_twice(
    model: DifferentiableClassifier, batch: ClassifiedBatch, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the logits of the `rows` of a batch, computed twice."""
    n, x = len(batch.x), batch.x[rows.to(batch.x.device)]
    with (
        torch.no_grad(),
        evaluating(model),
        offset_sample_numbers(batch.first),
        sample_rows.numbered(n, batch.first),
        sample_rows.selected(rows, n),
    ):
        return model.logits(x), model.logits(x)


def _differ(first: Tensor, second: Tensor) -> Tensor:
    """Return a mask `(n,)` of the inputs whose logits changed by more than rounding."""
    precise = first.dtype in (torch.float32, torch.float64)
    tolerance = _TOLERANCE if precise else _TOLERANCE_OF_16_BITS
    return ((first - second).abs() > tolerance * (1 + first.abs())).any(1)


def _labels_differ(first: Tensor, second: Tensor) -> Tensor:
    """Return a mask `(n,)` of the inputs whose label changed."""
    return first.argmax(1) != second.argmax(1)


def _kinds(logits: Tensor) -> dict[str, Tensor]:
    """Return masks `(n,)` of the rows of `logits` `(n, classes)` that are not plain logits."""
    top = logits.topk(2, dim=1).values
    labels = are_one_hot(logits)
    # row by row, since the number of rows depends on the size of the batches
    alike = torch.tensor([look_like_probabilities(row[None]) for row in logits])
    finfo = torch.finfo(logits.dtype)
    smallest = math.log(finfo.tiny) + math.log(finfo.eps)  # of the subnormal numbers
    return {
        "probabilities": alike.to(labels.device) & ~labels,
        "labels": labels,
        "saturated": (top[:, 0] - top[:, 1] > -smallest) & top[:, 1].isfinite() & ~labels,
    }


def are_one_hot(logits: Tensor) -> Tensor:
    """Return a mask `(n,)` of the rows that are one at the label and zero elsewhere."""
    return ((logits == 0) | (logits == 1)).all(1) & (logits.sum(1) == 1)
