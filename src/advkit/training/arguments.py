"""Types of the arguments of `fit`, and checks of arguments that depend on each other."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, SupportsFloat

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import TensorDataset

from advkit.core import conversions
from advkit.core.batching import Batches, is_pair

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
    _check_step("optimizer", optimizer, "Adam or SGD")
    own = set(map(id, model.parameters()))
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("`optimizer` must hold parameters of `model`, got none of them.")


def _check_step(name: str, stepped: torch.optim.Optimizer | LRScheduler, alternatives: str) -> None:
    """Raise if `step` requires arguments, such as a closure that evaluates the loss again."""
    try:  # of the class, since schedulers replace the method of the optimizer
        _, *parameters = inspect.signature(type(stepped).step).parameters.values()
    except (TypeError, ValueError):  # not every callable has a signature
        return
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
    if required:
        raise ValueError(
            f"`{name}` must have a step() without arguments, got {type(stepped).__name__}, whose "
            f"step needs {', '.join(required)}. Use another one, such as {alternatives}."
        )


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
    check_batches(loader)
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


def check_batches(loader: Batches) -> None:
    """Raise unless `loader` is iterable, and not data in place of batches."""
    single = isinstance(loader, (Tensor, TensorDataset)) or is_pair(loader)
    if single or conversions.is_data(loader) or not _is_iterable(loader):
        raise TypeError(
            "`loader` must be an iterable of batches (x, y) of tensors, got "
            f"{conversions.describe(loader)}. Pass a DataLoader of a TensorDataset(x, y)."
        )


def _is_iterable(loader: object) -> bool:
    """Return True for objects with `__iter__`, or with `__getitem__` alone, as old loaders."""
    return isinstance(loader, Iterable) or hasattr(loader, "__getitem__")


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
    _check_step("scheduler", scheduler, "CosineAnnealingLR or OneCycleLR")
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:  # not all have the attribute
        raise ValueError("`scheduler` must belong to `optimizer`, got one of another optimizer.")
