"""A recorder of tensors that come batch by batch and are joined over the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class BatchRecorder:
    """Tensors by name, moved to the CPU batch by batch; their last axis is over the samples."""

    def __init__(self) -> None:
        self._parts: dict[Any, list[Tensor]] = {}

    def update(self, found: Mapping[Any, Tensor]) -> None:
        """Record one batch: by name, `(n,)` or `(rows, n)`."""
        for name, part in found.items():
            self._parts.setdefault(name, []).append(part.cpu())

    def compute(self) -> dict[Any, Tensor]:
        """Return the tensors of all batches recorded so far, joined."""
        return {name: torch.cat(parts, dim=-1) for name, parts in self._parts.items()}
