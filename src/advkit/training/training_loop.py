"""The training loop: epochs, batches and steps, with checks of the values in them."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsFloat

import torch
from torch import Tensor

from advkit.core import conversions
from advkit.core.batching import Batches, split_batch
from advkit.core.differentiation import differentiating
from advkit.core.distributed import unwrapped
from advkit.training.arguments import BatchLoss, Evaluation, check_modes
from advkit.training.checkpoints import Run, resume, save
from advkit.training.history import Epoch, heading, names_of, row


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingLoop:
    """Loop over the epochs of a run.

    Attributes:
        run: state of the training.
        loader: batches `(x, y)`.
        loss: function that returns the scalar to minimize.
        every_batch: step the scheduler after each batch instead of each epoch.
        evaluate: function that is called after each epoch.
        half: compute the loss under autocast to bfloat16.
        path: path of the checkpoint.
    """

    run: Run
    loader: Batches
    loss: BatchLoss
    every_batch: bool
    evaluate: Evaluation | None
    half: bool
    path: Path | None

    def go(self, epochs: int, *, progress: bool) -> list[Epoch]:
        """Train, and return all epochs with those of the checkpoint; end in evaluation mode."""
        check_modes(self.run.model)
        try:
            return self._go(epochs, progress)
        finally:
            self.run.model.eval()

    def _go(self, epochs: int, progress: bool) -> list[Epoch]:
        done = self._begin(epochs)
        for number in range(len(done) + 1, epochs + 1):
            done.append(self._epoch(number))
            if self.path is not None:
                save(self.path, self.run, done)
            if progress:
                _show(done, epochs)
        return done

    def _begin(self, epochs: int) -> list[Epoch]:
        """Return the epochs of the checkpoint, and write one if there is none.

        A path that cannot be written, or a state that cannot be read, then raises before the first
        epoch. A run that is killed in its first epoch starts again with the same weights.
        """
        if self.path is None:
            return []
        if self.path.exists():
            return resume(self.path, self.run, epochs)
        save(self.path, self.run, [])
        return []

    def _epoch(self, number: int) -> Epoch:
        lr = float(self.run.optimizer.param_groups[0]["lr"])
        begin = time.perf_counter()
        self.run.model.train()
        mean = self._pass(number)
        self._check_weights(number)
        if self.run.scheduler is not None and not self.every_batch:
            self.run.scheduler.step()
        seconds = time.perf_counter() - begin
        return Epoch(epoch=number, loss=mean, seconds=seconds, lr=lr, metrics=self._metrics())

    def _pass(self, number: int) -> float:
        """Train on all batches once, and return the mean loss of a sample."""
        total, samples = 0.0, 0
        for i, batch in enumerate(self.loader, 1):
            x, y = _pair(batch, i)
            # Copies, since the model and the loss may write to them and a list returns them again.
            x = x.to(self.run.device, non_blocking=True, copy=True)
            y = y.to(self.run.device, non_blocking=True, copy=True)
            total += len(x) * self._step(x, y, number, i)
            samples += len(x)
        if not samples:
            raise ValueError(
                f"`loader` must give at least one sample per epoch, got none in epoch {number}."
            )
        return total / samples

    def _step(self, x: Tensor, y: Tensor, number: int, i: int) -> float:
        loss = self._loss(x, y, number, i)
        value = _scalar(loss)
        if not math.isfinite(value):
            where = f"in epoch {number}, batch {i}"
            raise ValueError(
                f"`loss` must return a finite value, got {value} {where}.{self._preserved(number)}"
            )
        self.run.optimizer.zero_grad()
        with differentiating(self.run.model):
            torch.autograd.backward(loss)
        self.run.optimizer.step()
        if self.run.averaged is not None:
            self.run.averaged.update_parameters(self.run.model)
        if self.run.scheduler is not None and self.every_batch:
            self.run.scheduler.step()
        return value

    def _loss(self, x: Tensor, y: Tensor, number: int, i: int) -> Tensor:
        half = torch.autocast(self.run.device.type, torch.bfloat16, enabled=self.half)
        try:
            with torch.enable_grad(), half:
                return self.loss(self.run.model, x, y)
        except ValueError as error:  # for example from an attack that met NaN logits
            where = f"in epoch {number}, batch {i}"
            preserved = self._preserved(number)
            stop = "." if preserved and not str(error).endswith(".") else ""
            raise ValueError(f"{where}: {error}{stop}{preserved}") from error

    def _check_weights(self, number: int) -> None:
        """Raise if the last step made a weight NaN or infinite, before a checkpoint is written."""
        for name, parameter in self.run.model.named_parameters():
            if parameter.requires_grad and not parameter.isfinite().all():
                where = f"in epoch {number}"
                raise ValueError(
                    f"`model` must keep finite weights, got NaN or infinity in {name!r} {where}."
                    f"{self._preserved(number)}"
                )

    def _preserved(self, number: int) -> str:
        """Return the sentence for errors on what is left of the epochs before epoch `number`."""
        if self.path is None:
            return " No epoch was saved. Pass `checkpoint` to save them." if number > 1 else ""
        when = f"after epoch {number - 1}" if number > 1 else "before the first epoch"
        return f" Checkpoint {self.path} holds the run {when}."

    def _metrics(self) -> dict[str, float]:
        if self.evaluate is None:
            return {}
        model = self.run.model if self.run.averaged is None else self.run.averaged.module
        model = unwrapped(model)  # one process may evaluate alone
        model.eval()
        with torch.no_grad(), self.run.preserve_rng():
            result = self.evaluate(model)
        if not isinstance(result, Mapping):
            raise TypeError(
                f"`evaluate` must return a mapping of numbers, got {type(result).__name__}."
            )
        return {str(name): _number(name, value) for name, value in result.items()}


def _pair(batch: object, i: int) -> tuple[Tensor, Tensor]:
    x, y = split_batch(batch, "loader", i)
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        kinds = f"{conversions.describe(x)}, {conversions.describe(y)}"
        hint = conversions.remedy("x", x, ".float()") or conversions.remedy("y", y)
        raise TypeError(
            f"`loader` must give batches (x, y) of tensors, got ({kinds}) (batch {i}).{hint}"
        )
    if not x.ndim or not y.ndim or len(x) != len(y):
        raise ValueError(
            "`loader` must give as many labels as inputs, got x of shape "
            f"{tuple(x.shape)} and y of shape {tuple(y.shape)} as batch {i}."
        )
    return x, y


def _scalar(loss: Tensor) -> float:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"`loss` must return a scalar tensor, got {got}.")
    return float(loss.item())


def _number(name: object, value: object) -> float:
    if not isinstance(value, SupportsFloat):
        raise TypeError(
            f"`evaluate` must return a mapping of numbers, got {type(value).__name__} as {name!r}."
        )
    return float(value)


def _show(done: Sequence[Epoch], epochs: int) -> None:
    """Write a row for the last epoch, below the header of the table where it changes."""
    last = done[-1]
    names = names_of([last])
    if last.epoch == 1 or names != names_of(done[-2:-1]):
        sys.stderr.write(f"{heading(names)}\n")
    sys.stderr.write(f"{row(last, epochs, names)}\n")
    sys.stderr.flush()
