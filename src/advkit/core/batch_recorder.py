"""A recorder of tensors that come batch by batch and are joined over the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class BatchRecorder:
    """Tensors by name, moved to the CPU batch by batch; their last axis is over the samples.

    Its length is the number of batches. They are joined by `compute` alone, so that recording a
    batch takes the same time whatever came before it.
    """

    def __init__(self) -> None:
        self._parts: dict[Any, list[Tensor]] = {}
        self._batches = 0

    def __len__(self) -> int:
        return self._batches

    def update(self, found: Mapping[Any, Tensor]) -> None:
        """Record one batch: by name, `(n,)` or `(rows, n)`; every batch has the same names."""
        for name, part in found.items():
            self._parts.setdefault(name, []).append(part.cpu())
        self._batches += 1

    def compute(self, batches: int | None = None) -> dict[Any, Tensor]:
        """Return the tensors of the first `batches`, joined; of all so far for `None`."""
        return {name: torch.cat(parts[:batches], dim=-1) for name, parts in self._parts.items()}
