"""Send samples of a batch to a model: with their numbers, and with their whole batch if need be."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advkit.core import sample_rows
from advkit.models import Classifier
from advkit.models.batch_dependence import keeps_batch

Forward = Callable[[Tensor], Tensor]
_FAILED = (
    "the model failed on {} of the {} samples of the batch: {} (A module with a second input for "
    "each sample must take the rows of it that advkit.current_rows() gives. A module that needs "
    'the whole batch needs TorchClassifier(batch="whole").)'
)
_OF_THE_BATCH = (  # errors of a batch norm, and of a module that was exported for one size
    "more than 1 value per channel",
    "Guard failed",
)


class Sender:
    """Sends some of the `n` samples of an attack to a model, which may read their numbers."""

    whole = False

    def __init__(self, n: int) -> None:
        self._n = n

    def __call__(self, ask: Forward, x: Tensor, rows: Tensor) -> Tensor:
        """Return what `ask` answers to `x` `(m, *features)`, iterates of the samples `rows`.

        Raises:
            RuntimeError: the model fails on a part of the batch, say since it has a second input.
        """
        with sample_rows.selected(rows, self._n):
            try:
                return ask(x)
            except Exception as error:
                if len(x) == self._n or not _may_need_whole_batch(error):
                    raise
                raise RuntimeError(_FAILED.format(len(x), self._n, error)) from error

    def part(self, rows: Tensor) -> Sender:
        """Return the sender of an attack on the samples `rows` alone."""
        return Sender(len(rows))

    def last_sent(self) -> Tensor | None:
        """Return the iterates of the last pass, if the answers to them depend on each other."""
        return None


class WholeSender(Sender):
    """Sends all samples of a batch at each pass, in their places.

    Samples that are not asked for are sent as they were sent last. An answer may be asked for
    several iterates of one sample: each further one takes another pass of the batch.

    Args:
        batch: `(N, *features)`, all samples.
        rows: `(n,)`, which of them the attack is on.
        frame: of the batch.
    """

    whole = True

    def __init__(self, batch: Tensor, rows: Tensor, frame: sample_rows.Frame | None) -> None:
        super().__init__(len(rows))
        self._batch = batch
        self._rows = rows
        self._frame = frame

    def __call__(self, ask: Forward, x: Tensor, rows: Tensor) -> Tensor:
        """Return what `ask` answers to `x` `(m, *features)`, iterates of the samples `rows`."""
        turns = _turns(rows)
        answers = torch.cat([self._send(ask, x[turn], rows[turn]) for turn in turns])
        return answers[torch.cat(turns).argsort()] if len(turns) > 1 else answers

    def part(self, rows: Tensor) -> Sender:
        """Return the sender of an attack on the samples `rows` alone."""
        return WholeSender(self._batch, self._rows[rows], self._frame)

    def last_sent(self) -> Tensor | None:
        """Return the iterates `(n, *features)` of the last pass."""
        return self._batch[self._rows]

    def _send(self, ask: Forward, x: Tensor, rows: Tensor) -> Tensor:
        places = self._rows[rows]
        batch = self._batch.index_copy(0, places, x)
        self._batch = batch.detach()
        with sample_rows.opened(self._frame):
            return ask(batch)[places]


def _may_need_whole_batch(error: Exception) -> bool:
    """Return whether a part of a batch may have been the cause of `error`."""
    return type(error) is RuntimeError or any(words in str(error) for words in _OF_THE_BATCH)


def sender_to(model: Classifier, x: Tensor) -> Sender:
    """Return the sender of an attack on `model` from the samples `x`."""
    if not keeps_batch(model):
        return Sender(len(x))
    frame = sample_rows.surroundings(len(x))
    if frame is None or frame.batch is None:
        rows = torch.arange(len(x), device=x.device)
        return WholeSender(x, rows, sample_rows.current_frame())
    return WholeSender(frame.batch.to(x), frame.places(x.device), frame.outer)


def _turns(rows: Tensor) -> list[Tensor]:
    """Return indices into `rows` in groups, in each of which a row comes once."""
    order = rows.argsort(stable=True)
    ordered = rows[order]
    first = torch.searchsorted(ordered, ordered)
    turn = torch.arange(len(rows), device=rows.device) - first
    return [order[turn == k].sort().values for k in range(int(turn.max()) + 1)] if len(rows) else []
