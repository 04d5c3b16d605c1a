"""The one training loop."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from advkit.core import checks
from advkit.core.batching import Batches
from advkit.core.file_lock import locked
from advkit.training.arguments import (
    BatchLoss,
    Evaluation,
    Precision,
    Schedule,
    check_functions,
    check_loader,
    check_model,
    check_scheduler,
)
from advkit.training.checkpoints import Run
from advkit.training.history import History
from advkit.training.moving_average import copy_weights, moving_average
from advkit.training.training_loop import TrainingLoop


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
            with `ema` that is another one, and with a `DistributedDataParallel` the module inside,
            so that a process may evaluate alone.
        checkpoint: path of a file that is replaced after each epoch; if it is there, training goes
            on from it, and at the end it is kept. One run at a time may use it. Needs a loader
            without `persistent_workers`, whose random numbers cannot be put back.
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
            no pairs of tensors; `model` refuses `train()`, as exported modules do.
        RuntimeError: another run, in this process or another one, uses the checkpoint; `model` is
            left as it was.
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
    checks.integer("epochs", epochs, at_least=1)
    checks.one_of("schedule", schedule, ("epoch", "batch"))
    checks.one_of("precision", precision, ("auto", "float32", "bfloat16"))
    checks.boolean("progress", progress)
    check_functions(loss, evaluate)
    check_model(model, optimizer)
    check_loader(loader, checkpoint)
    check_scheduler(scheduler, schedule, optimizer)
    run = _run(model, loader, optimizer, scheduler, schedule, ema)
    loop = TrainingLoop(
        run=run,
        loader=loader,
        loss=loss,
        every_batch=schedule == "batch",
        evaluate=evaluate,
        half=precision == "bfloat16" or (precision == "auto" and _has_bfloat16(run.device)),
        path=None if checkpoint is None else Path(checkpoint),
    )
    with locked(checkpoint):
        done = loop.go(epochs, progress=progress)
    if run.averaged is not None:
        copy_weights(run.averaged.module, model)
    return History(tuple(done))


def _run(
    model: nn.Module,
    loader: Batches,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None,
    schedule: Schedule,
    ema: float | None,
) -> Run:
    """Return the run as it is before its first epoch."""
    return Run(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        averaged=None if ema is None else moving_average(model, ema),
        generators=tuple(_generators(loader)),
        device=next(model.parameters()).device,
        setup=_setup(loader, optimizer, scheduler, schedule, ema),
    )


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
