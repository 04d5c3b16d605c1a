"""Adversarial examples rounded to bytes, as an attacker must who sends image files."""

from __future__ import annotations

import torch
from torch import Tensor

from advkit.core.results import AttackResult
from advkit.eval.accuracy import ClassifiedBatch
from advkit.models import Classifier
from advkit.models.protocols import is_misclassified, may_interrupt

ROUNDED_EVERY = 20  # inputs; the choice does not depend on the size of the batches
_LEVELS = 255  # steps between the values of a byte
_TOLERANCE = 1e-3  # of a step, by which rounded inputs may miss a value of a byte


def check_rounding(
    model: Classifier, part: ClassifiedBatch, result: AttackResult
) -> dict[str, Tensor]:
    """Round a few successes of an attack to bytes, and predict their labels in one pass.

    Clean inputs that are not bytes themselves are not checked, nor is a model whose queries may end
    the evaluation.

    Returns:
        Masks on the CPU of the attacked inputs: those that were `rounded`, and those of them whose
        success the rounding has `undone`.
    """
    x, y = part.attacked
    rounded = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    undone = rounded.clone()
    chosen = ((part.rows + part.first) % ROUNDED_EVERY == 0) & result.success
    rows = chosen.nonzero().flatten()[: 0 if may_interrupt(model) else None]
    rows = rows[_are_bytes(x[rows], model.bounds)]
    if len(rows):
        predicted = part.predict_attacked(model, to_bytes(result.x_adv, model.bounds), rows)
        rounded[rows] = True
        undone[rows] = ~is_misclassified(predicted, y[rows])
    return {"rounded": rounded.cpu(), "undone": undone.cpu()}


def to_bytes(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return `x` with each value rounded to one of 256 between the `bounds`."""
    lower, upper = bounds
    step = (upper - lower) / _LEVELS
    return (lower + ((x - lower) / step).round() * step).clamp(lower, upper)


def _are_bytes(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return a mask `(n,)` of the inputs whose features all have one of 256 values."""
    step = (bounds[1] - bounds[0]) / _LEVELS
    return ((x - to_bytes(x, bounds)).abs() <= _TOLERANCE * step).flatten(1).all(1)
