"""A few adversarial examples of an attack, kept for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_EXAMPLES = 6  # as many as a figure shows side by side


@dataclass(frozen=True, eq=False)
class Examples:
    """A few adversarial examples of an attack, for pictures.

    Attributes:
        x: clean inputs `(k, *features)`, labeled correctly by the model.
        x_adv: adversarial examples `(k, *features)`.
        y: true labels `(k,)`, which the model predicts for `x`.
        predicted: labels `(k,)` that the model predicts for `x_adv`.
        index: int64 `(k,)`; numbers of the inputs in the data.
    """

    x: Tensor
    x_adv: Tensor
    y: Tensor
    predicted: Tensor
    index: Tensor

    @staticmethod
    def join(parts: Sequence[Examples]) -> Examples | None:
        """Join the first `MAX_EXAMPLES` of `parts`; `None` for an empty sequence.

        All pictures have the size of the first one; examples of other sizes are left out.
        """
        if not parts:
            return None
        size = parts[0].x.shape[1:]
        rows = ((p.x, p.x_adv, p.y, p.predicted, p.index) for p in parts if p.x.shape[1:] == size)
        return Examples(*(torch.cat(column)[:MAX_EXAMPLES] for column in zip(*rows, strict=True)))

    @staticmethod
    def missing(parts: Sequence[Examples]) -> bool:
        """Return whether `parts` hold fewer examples than a figure shows."""
        return sum(len(part.y) for part in parts) < MAX_EXAMPLES
