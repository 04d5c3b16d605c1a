"""`fit`, the function that trains models."""

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
    """Train `model` in place, with one step that decreases `loss(model, x, y)` for each batch.

    With a `checkpoint`, a run that was killed can be resumed: call `fit` again with the same
    arguments. It continues after its last finished epoch and gives bitwise the same result as an
    uninterrupted run. Weights, averages, optimizer, scheduler, history and the random states of
    torch, NumPy, Python and the loader are restored.

    This holds on the same machine, with the same number of threads, and on a GPU if its kernels are
    deterministic. Other state that `loader` and `loss` may have between epochs is not restored. The
    optimizer's options must be those of the first run. The scheduler's options are read from the
    file, so that a schedule for a number of epochs keeps that number.

    Args:
        model: the model to train. It is in training mode during training and in evaluation mode
            afterwards, also after an error. To freeze a part, such as a batch norm, override
            `train` of that part.
        loader: batches `(x, y)` of tensors, iterated once per epoch. They are moved to the device
            of the model's first parameter.
        loss: function that returns the scalar to minimize: a training defense, or your own.
        optimizer: optimizer of parameters of `model`, whose `step` needs no closure. `LBFGS` needs
            one.
        epochs: total number of passes over `loader`, at least 1, including those of the checkpoint.
        scheduler: scheduler of the learning rate of `optimizer`. All schedulers of torch are
            possible except `ReduceLROnPlateau`, which needs a metric.
        schedule: step the scheduler after each `"epoch"` or after each `"batch"`. `OneCycleLR`
            needs `"batch"`.
        ema: decay of an exponential moving average of the weights, in (0, 1), for example 0.999. It
            starts at the weights after the first step and is updated after each later step. Buffers
            such as the statistics of batch norms are averaged as well, integer buffers are copied.
            `evaluate` gets the averaged model, and `model` has the averaged weights at the end.
        evaluate: function of a model that returns numbers by name, for the history. It is called
            after each epoch, in evaluation mode, under `no_grad` and without autocast. The random
            states are restored afterwards, so that it does not change the training. Evaluate the
            model in the argument: with `ema` it is the averaged one, and with a
            `DistributedDataParallel` the module inside, so that one process can evaluate alone.
        checkpoint: path of a file that is replaced after each epoch. If it exists, training resumes
            from it. It is kept at the end. Only one run at a time may use it. The loader must not
            have `persistent_workers`, whose random state cannot be restored.
        precision: precision of the loss. `"bfloat16"` uses autocast. `"float32"` uses no autocast,
            which means the model's own dtype. `"auto"` is bfloat16 on a GPU that supports it,
            otherwise float32. Weights and their gradients keep the model's own dtype.
        progress: write a line for each epoch to standard error, a row of the history. Lines need no
            extra, in contrast to a progress bar, and stay readable in a log.

    Returns:
        The epochs, which print as a table.

    Raises:
        ValueError: an argument is out of its range or inconsistent with the others; the loss or a
            weight became NaN or infinite, in which case no step and no checkpoint is made; `loader`
            is empty; the file at `checkpoint` is damaged, belongs to another run, or was written
            after more than `epochs` epochs.
        TypeError: an argument has the wrong type; `loader` can be iterated only once, or does not
            give pairs of tensors; `model` refuses `train()`, as exported modules do.
        RuntimeError: another run, in this process or another one, uses the checkpoint. `model` is
            unchanged.
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
        >>> len(history.epochs), history.epochs[-1].metrics["clean"] > 0.9
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
    """Return the state of the run before its first epoch."""
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
    """Return the random generators of a loader and its samplers, each once."""
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
    """Return the settings that a resumed run must share with the first one, as text by name."""
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
