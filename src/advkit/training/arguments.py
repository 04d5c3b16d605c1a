"""Types of the arguments of `fit`, and checks of arguments that depend on each other."""

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
    """Raise unless the loss is callable, and the evaluation as well if it is given."""
    if not callable(loss):
        raise TypeError(f"`loss` must be a function of (model, x, y), got {type(loss).__name__}.")
    if evaluate is not None and not callable(evaluate):
        raise TypeError(f"`evaluate` must be a function of a model, got {type(evaluate).__name__}.")


def check_model(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise unless `model` is a module and `optimizer` holds at least one of its parameters."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"`optimizer` must be a torch optimizer, got {type(optimizer).__name__}.")
    own = set(map(id, model.parameters()))
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("`optimizer` must hold parameters of `model`, got none of them.")


def check_modes(model: nn.Module) -> None:
    """Put `model` in training mode, and raise if it refuses, as exported modules do."""
    try:
        model.train()
    except Exception as error:
        raise TypeError(
            f"`model` must have a training mode, got {type(model).__name__}, whose train() raises "
            f"{type(error).__name__}: {error} Train the module that `model` was created from."
        ) from error


def check_loader(loader: Batches, checkpoint: str | os.PathLike[str] | None) -> None:
    """Raise unless `loader` can be iterated in each epoch, and resumed from a checkpoint."""
    if isinstance(loader, Iterator):
        raise TypeError(
            "`loader` must be iterable once per epoch (a list, a DataLoader), "
            f"got {type(loader).__name__}, which can be iterated only once."
        )
    if checkpoint is not None and getattr(loader, "persistent_workers", False):
        raise ValueError(
            "`loader` must have persistent_workers=False with a checkpoint, got True. The random "
            "state of persistent workers cannot be restored."
        )


def check_scheduler(
    scheduler: LRScheduler | None, schedule: Schedule, optimizer: torch.optim.Optimizer
) -> None:
    """Raise unless `scheduler` is consistent with `schedule` and `optimizer`."""
    if scheduler is None:
        if schedule == "batch":
            raise ValueError("`scheduler` must be given with schedule='batch', got None.")
        return
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(f"`scheduler` must be a torch LRScheduler, got {type(scheduler).__name__}.")
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError(
            "`scheduler` must not need a metric, got ReduceLROnPlateau. Use another scheduler."
        )
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:  # not all have the attribute
        raise ValueError("`scheduler` must belong to `optimizer`, got one of another optimizer.")
