"""A few adversarial examples of an attack, kept for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

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
        distance: `(k,)`; distance of each adversarial example from its input.
    """

    x: Tensor
    x_adv: Tensor
    y: Tensor
    predicted: Tensor
    index: Tensor
    distance: Tensor

    def __len__(self) -> int:
        return len(self.y)

    @staticmethod
    def join(parts: Sequence[Examples]) -> Examples | None:
        """Join all examples of `parts` in their order; `None` for an empty sequence.

        All pictures have the size of the first one; examples of other sizes are left out.
        """
        if not parts:
            return None
        size = parts[0].x.shape[1:]
        rows = (_columns(part) for part in parts if part.x.shape[1:] == size)
        return Examples(*(torch.cat(column) for column in zip(*rows, strict=True)))

    @staticmethod
    def nearest(parts: Sequence[Examples]) -> Examples | None:
        """Return the `MAX_EXAMPLES` nearest examples of `parts`, the nearest one first."""
        joined = Examples.join(parts)
        if joined is None:
            return None
        order = joined.distance.argsort(stable=True)[:MAX_EXAMPLES]
        return Examples(*(column[order] for column in _columns(joined)))


def _columns(examples: Examples) -> list[Tensor]:
    return [getattr(examples, field.name) for field in fields(examples)]
