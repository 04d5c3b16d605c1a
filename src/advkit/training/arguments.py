"""The arguments of `fit`: their types, and checks of those that depend on each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, SupportsFloat

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from advkit.core.batching import Batches

BatchLoss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Evaluation = Callable[[nn.Module], Mapping[str, SupportsFloat]]
Schedule = Literal["epoch", "batch"]
Precision = Literal["auto", "float32", "bfloat16"]


def check_functions(loss: BatchLoss, evaluate: Evaluation | None) -> None:
    """Raise unless the loss and the evaluation, if there is one, can be called."""
    if not callable(loss):
        raise TypeError(f"`loss` must be a function of (model, x, y), got {type(loss).__name__}")
    if evaluate is not None and not callable(evaluate):
        raise TypeError(f"`evaluate` must be a function of a model, got {type(evaluate).__name__}")


def check_model(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise unless `model` is a module of which `optimizer` has a parameter."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"`optimizer` must be a torch optimizer, got {type(optimizer).__name__}")
    own = set(map(id, model.parameters()))
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("`optimizer` must be over parameters of model, has none of them")


def check_modes(model: nn.Module) -> None:
    """Put `model` in training mode, and raise if it refuses, as exported modules do."""
    try:
        model.train()
    except Exception as error:
        raise TypeError(
            f"`model` must have a training mode, got {type(model).__name__}, whose train() raises "
            f"{type(error).__name__}: {error} Train the module that it was made from."
        ) from error


def check_loader(loader: Batches, checkpoint: str | os.PathLike[str] | None) -> None:
    """Raise unless `loader` can be iterated once an epoch, and resumed from a checkpoint."""
    if isinstance(loader, Iterator):
        raise TypeError(
            "`loader` must be iterable once an epoch (a list, a DataLoader), not a generator"
        )
    if checkpoint is not None and getattr(loader, "persistent_workers", False):
        raise ValueError(
            "`loader` must have persistent_workers=False with a checkpoint: the random numbers of "
            "such workers could not be put back"
        )


def check_scheduler(
    scheduler: LRScheduler | None, schedule: Schedule, optimizer: torch.optim.Optimizer
) -> None:
    """Raise unless `scheduler` fits to `schedule` and to `optimizer`."""
    if scheduler is None:
        if schedule == "batch":
            raise ValueError("schedule='batch' needs a scheduler, got none")
        return
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(f"`scheduler` must be a torch LRScheduler, got {type(scheduler).__name__}")
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError("`scheduler` must not be ReduceLROnPlateau: fit cannot know what to watch")
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:  # not all of them tell
        raise ValueError("`scheduler` must be of the optimizer given, is of another one")
