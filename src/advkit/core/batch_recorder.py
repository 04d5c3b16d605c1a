"""A recorder of tensors that arrive batch by batch and are concatenated over the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_FIRST_CAPACITY = 1024  # samples


class BatchRecorder:
    """Tensors by name, moved to the CPU batch by batch, with samples along their last axis.

    The length of a recorder is its number of batches. Each tensor has one buffer, whose capacity
    doubles when it is full. A list of small tensors would keep the allocator from reusing the
    memory of the batches between them. Recording a batch takes the same time at any number of
    earlier batches, on average.
    """

    def __init__(self) -> None:
        self._buffers: dict[Any, Tensor] = {}
        self._ends = [0]  # number of samples after each batch

    def __len__(self) -> int:
        return len(self._ends) - 1

    def update(self, batch: Mapping[Any, Tensor]) -> None:
        """Record the tensors `(n,)` or `(rows, n)` of a batch; all batches have the same names."""
        start, n = self._ends[-1], 0
        for name, given in batch.items():
            tensor = given.cpu()
            n = tensor.shape[-1]
            buffer = self._with_room(name, tensor, start + n)
            buffer[..., start : start + n] = tensor
        self._ends.append(start + n)

    def _with_room(self, name: Any, tensor: Tensor, size: int) -> Tensor:
        """Return the buffer of a tensor with room for `size` samples, in a dtype that holds all."""
        buffer = self._buffers.get(name)
        if buffer is None:
            buffer = torch.empty(*tensor.shape[:-1], 0, dtype=tensor.dtype)
        dtype = torch.promote_types(buffer.dtype, tensor.dtype)
        if name not in self._buffers or buffer.shape[-1] < size or buffer.dtype != dtype:
            larger = torch.empty(*buffer.shape[:-1], max(2 * size, _FIRST_CAPACITY), dtype=dtype)
            larger[..., : buffer.shape[-1]] = buffer
            self._buffers[name] = buffer = larger
        return buffer

    def compute(self, batches: int | None = None) -> dict[Any, Tensor]:
        """Return the tensors of the first `batches` batches, concatenated; `None` means all."""
        size = self._ends[-1 if batches is None else batches]
        return {name: buffer[..., :size].clone() for name, buffer in self._buffers.items()}
