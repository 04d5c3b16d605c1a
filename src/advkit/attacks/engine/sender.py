"""Senders, which pass samples to a model with their numbers, or with their whole batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advkit.core import sample_rows
from advkit.models import Classifier
from advkit.models.batch_dependence import keeps_batch

Forward = Callable[[Tensor], Tensor]
_FAILED = (
    "The model failed on {} of the {} samples of the batch: {} (A module with a second input for "
    "each sample must select its rows with advkit.current_rows(). A module that needs the whole "
    'batch needs TorchClassifier(batch="whole").)'
)
_BATCH_SIZE_ERRORS = (
    "more than 1 value per channel",  # raised by a batch norm
    "Guard failed",  # raised by a module that was exported for one batch size
)


class Sender:
    """Sender of some of the `n` samples of an attack to a model, which may read their numbers."""

    whole = False

    def __init__(self, n: int) -> None:
        self._n = n

    def __call__(self, forward: Forward, x: Tensor, rows: Tensor) -> Tensor:
        """Return the output of `forward` for `x` `(m, *features)`, iterates of the samples `rows`.

        Raises:
            RuntimeError: the model fails on a part of the batch, for example because it has a
                second input.
        """
        with sample_rows.selected(rows, self._n):
            try:
                return forward(x)
            except Exception as error:
                if len(x) == self._n or not _may_need_whole_batch(error):
                    raise
                raise RuntimeError(_FAILED.format(len(x), self._n, error)) from error

    def part(self, rows: Tensor) -> Sender:
        """Return the sender of an attack on the samples `rows` alone."""
        return Sender(len(rows))

    def last_sent(self) -> Tensor | None:
        """Return the iterates of the last pass if their outputs depend on each other."""
        return None


class WholeSender(Sender):
    """Sender of all samples of a batch at each pass, in their original order.

    Samples that are not requested are sent as in the pass before. Several iterates of one sample
    may be requested at once; each further one takes another pass of the batch.

    Args:
        batch: all samples, `(N, *features)`.
        rows: rows of the attacked samples in the batch, `(n,)`.
        frame: numbers of the samples of the batch.
    """

    whole = True

    def __init__(self, batch: Tensor, rows: Tensor, frame: sample_rows.Frame | None) -> None:
        super().__init__(len(rows))
        self._batch = batch
        self._rows = rows
        self._frame = frame

    def __call__(self, forward: Forward, x: Tensor, rows: Tensor) -> Tensor:
        """Return the output of `forward` for iterates `x` `(m, *features)` of samples `rows`."""
        groups = _groups_without_repeats(rows)
        outputs = torch.cat([self._send(forward, x[group], rows[group]) for group in groups])
        return outputs[torch.cat(groups).argsort()] if len(groups) > 1 else outputs

    def part(self, rows: Tensor) -> Sender:
        """Return the sender of an attack on the samples `rows` alone."""
        return WholeSender(self._batch, self._rows[rows], self._frame)

    def last_sent(self) -> Tensor | None:
        """Return the iterates `(n, *features)` of the last pass."""
        return self._batch[self._rows]

    def _send(self, forward: Forward, x: Tensor, rows: Tensor) -> Tensor:
        rows_of_batch = self._rows[rows]
        batch = self._batch.index_copy(0, rows_of_batch, x)
        self._batch = batch.detach()
        with sample_rows.opened(self._frame):
            return forward(batch)[rows_of_batch]


def _may_need_whole_batch(error: Exception) -> bool:
    """Return whether `error` may have been caused by sending a part of the batch."""
    return type(error) is RuntimeError or any(text in str(error) for text in _BATCH_SIZE_ERRORS)


def sender_to(model: Classifier, x: Tensor) -> Sender:
    """Return the sender of an attack on `model` that starts from the samples `x`."""
    if not keeps_batch(model):
        return Sender(len(x))
    frame = sample_rows.surroundings(len(x))
    if frame is None or frame.batch is None:
        rows = torch.arange(len(x), device=x.device)
        return WholeSender(x, rows, sample_rows.current_frame())
    return WholeSender(frame.batch.to(x), frame.places(x.device), frame.outer)


def _groups_without_repeats(rows: Tensor) -> list[Tensor]:
    """Split indices into `rows` into groups in which each row occurs at most once."""
    if not len(rows):
        return []
    order = rows.argsort(stable=True)
    ordered = rows[order]
    first = torch.searchsorted(ordered, ordered)
    group = torch.arange(len(rows), device=rows.device) - first
    return [order[group == k].sort().values for k in range(int(group.max()) + 1)]
