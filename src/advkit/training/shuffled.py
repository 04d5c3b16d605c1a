"""Shuffled batches for training."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, TensorDataset


def shuffled(x: Tensor, y: Tensor, batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
    """Return batches of `x` and `y`, shuffled in each epoch, without a last batch of one sample.

    A single last sample is added to the batch before it, since batch norm cannot be trained on a
    batch of one. The order is that of a `DataLoader` with `shuffle=True`, drawn from torch's
    generator. With a `batch_size` of 1, every batch has one sample.

    Args:
        x: inputs `(n, *features)`.
        y: labels or other targets of the inputs, `(n, *any)`.
        batch_size: number of samples in a batch.
    """
    data = TensorDataset(x, y)
    return DataLoader(data, batch_sampler=_NoLastOfOne(RandomSampler(data), batch_size))


class _NoLastOfOne(Sampler[list[int]]):
    """Batches of row numbers, with a last batch of one merged into the batch before it."""

    def __init__(self, rows: RandomSampler, batch_size: int) -> None:
        self._batches = BatchSampler(rows, batch_size, drop_last=False)

    def __len__(self) -> int:
        samples = len(self._batches.sampler)  # type: ignore[arg-type]  # a RandomSampler
        return len(self._batches) - (samples > self._size > 1 and samples % self._size == 1)

    def __iter__(self) -> Iterator[list[int]]:
        before: list[int] = []
        for batch in self._batches:
            if before and len(batch) == 1 < self._size:
                before = before + batch
                break
            if before:
                yield before
            before = batch
        if before:
            yield before

    @property
    def _size(self) -> int:
        return self._batches.batch_size
