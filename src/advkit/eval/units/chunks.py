"""Chunks of the inputs: consecutive batches that are evaluated in one unit of work."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from advkit.core import sample_rows
from advkit.core.archives import digest_of_tensor
from advkit.core.batching import NumberedBatches, batches
from advkit.core.indexed_data import number_of_samples, select


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive batches of the data.

    Attributes:
        number: number of the chunk, from 0.
        batches: inputs `(n, *features)`, labels `(n,)` and the number of the first sample of each
            batch, at least one batch.
    """

    number: int
    batches: tuple[tuple[Tensor, Tensor, int], ...]

    @property
    def first(self) -> int:
        """Number of the first sample in the data."""
        return self.batches[0][2]

    def __len__(self) -> int:
        """Return the number of samples."""
        return sum(len(x) for x, _, _ in self.batches)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the numbers, inputs and labels of all batches, in hexadecimal.

        The numbers that a model reads inside `given_rows` are among them.
        """
        parts = [part for x, y, _ in self.batches for part in (x, _as_int64(y))]
        tensors = [digest_of_tensor(part) for part in parts]
        if sample_rows.current_frame() is not None:
            with sample_rows.numbered(len(self), self.first):
                tensors.append(digest_of_tensor(sample_rows.current_rows()))
        return hashlib.sha256(f"{self.number} {self.first} {tensors}".encode()).hexdigest()

    def to(self, device: torch.device | str | None) -> Chunk:
        """Return the chunk on `device`; `None` leaves it where it is."""
        if device is None:
            return self
        moved = tuple((x.to(device), y.to(device), first) for x, y, first in self.batches)
        return Chunk(self.number, moved)


class Inputs:
    """Inputs and labels of an evaluation, in chunks of whole batches.

    Args:
        x: inputs `(n, *features)`, an indexed data set, or an iterable of batches `(x, y)`.
        y: labels `(n,)`; `None` if `x` holds them.
        batch_size: samples of a batch; an iterable has its own batches.
        chunk_size: samples of a chunk, which is filled up with whole batches; 1 makes each batch a
            chunk.

    Attributes:
        total: number of samples; `None` as long as the end of an iterable has not been reached.
        chunk_count: number of chunks, or `None` as for `total`.

    Raises:
        ValueError: inputs and labels differ in number, or `batch_size` is not positive.
        TypeError: `x` or `y` are of the wrong type.
    """

    def __init__(self, x: Any, y: Tensor | None, batch_size: int, chunk_size: int) -> None:
        self._stream = batches(x, y, batch_size)
        self._x, self._y = x, y
        self._last: tuple[Tensor, Tensor, int] | None = None  # batch of an iterable
        self.batch_size, self.chunk_size = batch_size, chunk_size
        self.total, self.chunk_count = number_of_samples(x), None
        self._step = -(-chunk_size // batch_size) * batch_size  # of data with an index
        if self.total is not None:
            self.chunk_count = -(-self.total // self._step)

    def chunks(self, wanted: Callable[[int], bool]) -> Iterator[Chunk]:
        """Yield the chunks whose number is `wanted`; the others are not read, if they can be."""
        if self.chunk_count is None:
            return (chunk for chunk in self._grouped(self._stream) if wanted(chunk.number))
        return (self._read(number) for number in range(self.chunk_count) if wanted(number))

    def size(self, wanted: Callable[[int], bool]) -> int | None:
        """Return the number of samples in the chunks that are `wanted`, `None` if unknown."""
        if self.chunk_count is None or self.total is None:
            return None
        starts = (number * self._step for number in range(self.chunk_count) if wanted(number))
        return sum(min(self._step, self.total - start) for start in starts)

    def count(self, wanted: Callable[[int], bool]) -> int | None:
        """Return the number of chunks that are `wanted`, `None` if unknown."""
        return None if self.chunk_count is None else sum(map(wanted, range(self.chunk_count)))

    def empty_chunk(self) -> Chunk:
        """Return a chunk without samples, for a shard without a chunk.

        The inputs have at least one sample; an iterable has been read to its end.
        """
        x, y = select(self._x, self._y, 0, 1) if self._last is None else self._last[:2]
        return Chunk(0, ((x[:0], y[:0], 0),))

    def _read(self, number: int) -> Chunk:
        """Read a chunk of data with an index, batch by batch."""
        assert self.total is not None
        end = min((number + 1) * self._step, self.total)
        parts = []
        for first in range(number * self._step, end, self.batch_size):
            x, y = select(self._x, self._y, first, min(first + self.batch_size, end))
            parts += [(x, y, first) for x, y, _ in batches(x, y, self.batch_size)]
        return Chunk(number, tuple(parts))

    def _grouped(self, stream: NumberedBatches) -> Iterator[Chunk]:
        """Group consecutive batches; a chunk ends with the batch that fills it."""
        number, total = 0, 0
        group: list[tuple[Tensor, Tensor, int]] = []
        for x, y, first in stream:
            batch = x.clone(), y.clone(), first  # the stream may write the next one over it
            group.append(batch)
            total, self._last = first + len(x), batch
            if total - group[0][2] >= self.chunk_size:
                yield Chunk(number, tuple(group))
                number, group = number + 1, []
        if group:
            yield Chunk(number, tuple(group))
        self.total, self.chunk_count = total, number + bool(group)


def _as_int64(labels: Tensor) -> Tensor:
    """Return labels in the dtype that a data set gives them; those of another kind as they are."""
    return labels if labels.is_floating_point() else labels.long()
