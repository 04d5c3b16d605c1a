"""The one training loop."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, SupportsFloat

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from advkit.core import checks
from advkit.core.batching import Batches
from advkit.training.checkpoints import Run, resume, save
from advkit.training.history import Epoch, History, heading, names_of, row

BatchLoss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Evaluation = Callable[[nn.Module], Mapping[str, SupportsFloat]]
Schedule = Literal["epoch", "batch"]
Precision = Literal["auto", "float32", "bfloat16"]


def fit(
    model: nn.Module,
    loader: Batches,
    *,
    loss: BatchLoss,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    scheduler: LRScheduler | None = None,
    schedule: Schedule = "epoch",
    ema: float | None = None,
    evaluate: Evaluation | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    precision: Precision = "auto",
    progress: bool = True,
) -> History:
    """Train `model` in place: for each epoch and batch one step down `loss(model, x, y)`.

    With a `checkpoint`, a run that was killed goes on from the last epoch that it finished, and
    ends bit for bit as if nothing had happened: call `fit` again with the same arguments. Weights,
    averages, optimizer, scheduler and history go on, and so do the random numbers of torch, NumPy,
    Python and the loader, on the same machine, with as many threads, and on a GPU as far as its
    kernels are deterministic. Only what else `loader` and `loss` may remember from epoch to epoch
    does not go on. The optimizer's options must be those of before; the scheduler's own are taken
    from the file, so that one planned for a number of epochs stays planned for that.

    Args:
        model: left in training mode while it learns and in evaluation mode afterwards, also after
            an error. To keep a part frozen, say a batch norm, override that part's `train`.
        loader: batches `(x, y)` of tensors, moved to the device of the model's first parameter;
            gone through once an epoch.
        loss: the scalar to go down; a training defense, or any function.
        optimizer: over parameters of `model`.
        epochs: passes over `loader` in all, at least 1; those of the checkpoint count.
        scheduler: of the learning rate of `optimizer`; any of torch's but `ReduceLROnPlateau`,
            which would have to be told what to watch.
        schedule: step the scheduler after each `"epoch"` or after each `"batch"`, as `OneCycleLR`
            wants it.
        ema: decay of an exponential moving average of the weights, in (0, 1), say 0.999; it begins
            with the weights after the first step and is moved by every later one. Buffers, such as
            the statistics of batch norms, are averaged with them, those of whole numbers copied.
            `evaluate` sees the average, and `model` ends with it.
        evaluate: called after each epoch with a model in evaluation mode, under `no_grad` and
            without autocast; gives numbers by name, for the history. What it draws at random is
            put back: training goes on as if it had not been asked. Use the model that it is given:
            with `ema` that is another one.
        checkpoint: path of a file that is replaced after each epoch; if it is there, training goes
            on from it, and at the end it is kept. Needs a loader without `persistent_workers`,
            whose random numbers nobody can put back.
        precision: of the loss, by autocast: `"float32"` is none, that is, the model's own dtype;
            `"bfloat16"`; `"auto"` takes bfloat16 on a GPU that has it, else float32. Weights and
            their gradients keep the model's own dtype.
        progress: write a line for each epoch to standard error, a row of the history. Lines and no
            moving bar: they need no extra, and stay readable in a log.

    Returns:
        The epochs, which print as a table.

    Raises:
        ValueError: an argument is out of its range, or does not fit to the others; the loss or a
            weight became NaN or infinite, of which no step and no checkpoint is made; `loader` is
            empty; the file at `checkpoint` is damaged, of another run, or has more than `epochs`
            behind it.
        TypeError: an argument has the wrong type; `loader` can be gone through only once, or gives
            no pairs of tensors.
        OSError: the checkpoint cannot be written or read.

    Example:
        >>> import torch
        >>> from torch.nn.functional import cross_entropy
        >>> from advkit import defenses
        >>> x = torch.rand(64, 5)
        >>> y = (x[:, 0] > 0.5).long()
        >>> net = torch.nn.Linear(5, 2)
        >>> history = defenses.fit(
        ...     net,
        ...     [(x[:32], y[:32]), (x[32:], y[32:])],
        ...     loss=lambda net, x, y: cross_entropy(net(x), y),
        ...     optimizer=torch.optim.Adam(net.parameters(), lr=0.1),
        ...     epochs=20,
        ...     evaluate=lambda net: {"clean": (net(x).argmax(1) == y).float().mean()},
        ...     progress=False,
        ... )
        >>> len(history.epochs), history.epochs[-1].evaluated["clean"] > 0.9
        (20, True)
    """
    checks.whole("epochs", epochs, at_least=1)
    checks.one_of("schedule", schedule, ("epoch", "batch"))
    checks.one_of("precision", precision, ("auto", "float32", "bfloat16"))
    checks.flag("progress", progress)
    _check_functions(loss, evaluate)
    _check_model(model, optimizer)
    _check_loader(loader, checkpoint)
    _check_scheduler(scheduler, schedule, optimizer)
    averaged = None if ema is None else _average(model, ema)
    device = next(model.parameters()).device
    run = Run(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        averaged=averaged,
        generators=tuple(_generators(loader)),
        device=device,
        setup=_setup(loader, optimizer, scheduler, schedule, ema),
    )
    training = _Training(
        run=run,
        loader=loader,
        loss=loss,
        averaged=averaged,
        every_batch=schedule == "batch",
        evaluate=evaluate,
        half=precision == "bfloat16" or (precision == "auto" and _has_bfloat16(device)),
        path=None if checkpoint is None else Path(checkpoint),
    )
    try:
        done = training.go(epochs, progress=progress)
    finally:
        model.eval()
    if averaged is not None:
        _copy(averaged.module, model)
    return History(tuple(done))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Training:
    """A run, and how it goes on."""

    run: Run
    loader: Batches
    loss: BatchLoss
    averaged: AveragedModel | None
    every_batch: bool
    evaluate: Evaluation | None
    half: bool
    path: Path | None

    def go(self, epochs: int, *, progress: bool) -> list[Epoch]:
        """All the epochs, those of the checkpoint among them."""
        done = self._begin(epochs)
        for number in range(len(done) + 1, epochs + 1):
            done.append(self._epoch(number))
            if self.path is not None:
                save(self.path, self.run, done)
            if progress:
                _show(done, epochs)
        return done

    def _begin(self, epochs: int) -> list[Epoch]:
        """The epochs of the checkpoint; the first one is written here.

        So a path that cannot be written, or a state that cannot be read again, costs no epoch, and
        a run that is killed in its first epoch begins anew with the same weights.
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
        return Epoch(epoch=number, loss=mean, seconds=seconds, lr=lr, evaluated=self._evaluated())

    def _pass(self, number: int) -> float:
        """Go through the data once; the mean loss of a sample."""
        total, samples = 0.0, 0
        for i, batch in enumerate(self.loader, 1):
            x, y = _pair(batch, i)
            x = x.to(self.run.device, non_blocking=True)
            y = y.to(self.run.device, non_blocking=True)
            total += len(x) * self._step(x, y, number, i)
            samples += len(x)
        if not samples:
            raise ValueError(f"loader must give at least one batch, gave none in epoch {number}")
        return total / samples

    def _step(self, x: Tensor, y: Tensor, number: int, i: int) -> float:
        loss = self._loss(x, y, number, i)
        value = _scalar(loss)
        if not math.isfinite(value):
            where = f"in epoch {number}, batch {i}"
            raise ValueError(f"the loss became {value} {where}{self._kept(number)}")
        self.run.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.run.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.run.model)
        if self.run.scheduler is not None and self.every_batch:
            self.run.scheduler.step()
        return value

    def _loss(self, x: Tensor, y: Tensor, number: int, i: int) -> Tensor:
        half = torch.autocast(self.run.device.type, torch.bfloat16, enabled=self.half)
        try:
            with torch.enable_grad(), half:
                return self.loss(self.run.model, x, y)
        except ValueError as error:  # an attack, say, that met logits which are NaN
            where = f"in epoch {number}, batch {i}"
            raise ValueError(f"{where}: {error}{self._kept(number)}") from error

    def _check_weights(self, number: int) -> None:
        """Raise if the last step spoilt the weights, which no later loss would tell in time."""
        for name, parameter in self.run.model.named_parameters():
            if parameter.requires_grad and not parameter.isfinite().all():
                where = f"in epoch {number}"
                raise ValueError(f"{name} became NaN or infinite {where}{self._kept(number)}")

    def _kept(self, number: int) -> str:
        """What is left of the epochs before epoch `number`, to end a sentence with."""
        if self.path is None:
            return "; nothing was kept, as checkpoint=... would have" if number > 1 else ""
        when = f"after epoch {number - 1}" if number > 1 else "at its beginning"
        return f"; checkpoint {self.path} holds the run as it was {when}"

    def _evaluated(self) -> dict[str, float]:
        if self.evaluate is None:
            return {}
        model = self.run.model if self.averaged is None else self.averaged.module
        model.eval()
        with torch.no_grad(), self.run.undrawn():
            found = self.evaluate(model)
        if not isinstance(found, Mapping):
            raise TypeError(f"evaluate must give numbers by name, gave {type(found).__name__}")
        return {str(name): _number(name, value) for name, value in found.items()}


def _check_functions(loss: BatchLoss, evaluate: Evaluation | None) -> None:
    if not callable(loss):
        raise TypeError(f"loss must be a function of (model, x, y), got {type(loss).__name__}")
    if evaluate is not None and not callable(evaluate):
        raise TypeError(f"evaluate must be a function of a model, got {type(evaluate).__name__}")


def _check_model(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch optimizer, got {type(optimizer).__name__}")
    own = set(map(id, model.parameters()))
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("optimizer must be over parameters of model, has none of them")


def _check_loader(loader: Batches, checkpoint: str | os.PathLike[str] | None) -> None:
    if isinstance(loader, Iterator):
        raise TypeError(
            "loader must be iterable once an epoch (a list, a DataLoader), not a generator"
        )
    if checkpoint is not None and getattr(loader, "persistent_workers", False):
        raise ValueError(
            "loader must have persistent_workers=False with a checkpoint: the random numbers of "
            "such workers could not be put back"
        )


def _check_scheduler(
    scheduler: LRScheduler | None, schedule: Schedule, optimizer: torch.optim.Optimizer
) -> None:
    if scheduler is None:
        if schedule == "batch":
            raise ValueError("schedule='batch' needs a scheduler, got none")
        return
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(f"scheduler must be a torch LRScheduler, got {type(scheduler).__name__}")
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError("scheduler must not be ReduceLROnPlateau: fit cannot know what to watch")
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:  # not all of them tell
        raise ValueError("scheduler must be of the optimizer given, is of another one")


def _average(model: nn.Module, decay: float) -> AveragedModel:
    """The moving average of `model`, to be moved after each step."""
    checks.number("ema", decay)
    if not 0 < decay < 1:
        raise ValueError(f"ema must lie between 0 and 1, got {decay}")

    @torch.no_grad()
    def move(averaged: Sequence[Tensor], current: Sequence[Tensor], _: object) -> None:
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point() or old.is_complex():
                old.lerp_(new, 1 - decay)
            else:  # counters and masks have no average
                old.copy_(new)

    return AveragedModel(model, multi_avg_fn=move, use_buffers=True)


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module) -> None:
    new = chain(source.parameters(), source.buffers())
    old = chain(target.parameters(), target.buffers())
    for to, value in zip(old, new, strict=True):
        to.copy_(value)


def _generators(loader: Batches) -> list[torch.Generator]:
    """The generators that a loader and its samplers hold, each once."""
    batches = getattr(loader, "batch_sampler", None)
    holders = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    held = (getattr(holder, "generator", None) for holder in holders)
    return list({id(g): g for g in held if isinstance(g, torch.Generator)}.values())


def _setup(
    loader: Batches,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None,
    schedule: Schedule,
    ema: float | None,
) -> dict[str, str]:
    """What a resumed run must have in common with the one before, as words by name."""
    return {
        "optimizer": type(optimizer).__name__,
        **{f"{name} of the optimizer": repr(v) for name, v in optimizer.defaults.items()},
        "tensors in the optimizer's groups": repr(
            [len(g["params"]) for g in optimizer.param_groups]
        ),
        "scheduler": "none" if scheduler is None else type(scheduler).__name__,
        "schedule": repr(schedule),
        "ema": repr(ema),
        "batches in an epoch": _length(loader),
        "generators in the loader": str(len(_generators(loader))),
    }


def _length(loader: Batches) -> str:
    try:
        return str(len(loader))  # type: ignore[arg-type]  # not every iterable has one
    except TypeError:
        return "unknown"


def _has_bfloat16(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _pair(batch: object, i: int) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)):
        raise TypeError(
            f"loader must give batches (x, y), gave {type(batch).__name__} as batch {i}"
        )
    if len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        kinds = ", ".join(type(part).__name__ for part in batch)
        raise TypeError(f"loader must give batches (x, y) of tensors, gave ({kinds}) as batch {i}")
    x, y = batch
    if not x.ndim or not y.ndim or len(x) != len(y):
        raise ValueError(
            "loader must give as many labels as inputs, gave x of shape "
            f"{tuple(x.shape)} and y of shape {tuple(y.shape)} as batch {i}"
        )
    return x, y


def _scalar(loss: Tensor) -> float:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"loss must give a scalar tensor, gave {got}")
    return float(loss.item())


def _number(name: object, value: object) -> float:
    if not isinstance(value, SupportsFloat):
        raise TypeError(
            f"evaluate must give numbers by name, gave {type(value).__name__} as {name!r}"
        )
    return float(value)


def _show(done: Sequence[Epoch], epochs: int) -> None:
    """A line for the last epoch, below the names of its columns where they are new."""
    last = done[-1]
    names = names_of([last])
    if last.epoch == 1 or names != names_of(done[-2:-1]):
        sys.stderr.write(f"{heading(names)}\n")
    sys.stderr.write(f"{row(last, epochs, names)}\n")
    sys.stderr.flush()
