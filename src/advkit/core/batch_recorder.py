"""A recorder of tensors that arrive batch by batch and are concatenated over the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class BatchRecorder:
    """Tensors by name, moved to the CPU batch by batch, with samples along their last axis.

    The length of a recorder is its number of batches. Only `compute` concatenates the tensors, so
    recording a batch takes the same time at any number of earlier batches.
    """

    def __init__(self) -> None:
        self._parts: dict[Any, list[Tensor]] = {}
        self._batches = 0

    def __len__(self) -> int:
        return self._batches

    def update(self, batch: Mapping[Any, Tensor]) -> None:
        """Record the tensors `(n,)` or `(rows, n)` of a batch; all batches have the same names."""
        for name, tensor in batch.items():
            self._parts.setdefault(name, []).append(tensor.cpu())
        self._batches += 1

    def compute(self, batches: int | None = None) -> dict[Any, Tensor]:
        """Return the tensors of the first `batches` batches, concatenated; `None` means all."""
        return {name: torch.cat(parts[:batches], dim=-1) for name, parts in self._parts.items()}
