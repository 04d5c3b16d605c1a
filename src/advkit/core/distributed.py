"""Modules that run in several processes at once, and the parts that one process can run alone."""

from __future__ import annotations

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

_SHARDED_CLASSES = {"FullyShardedDataParallel", "FSDPModule"}  # names, since their import is slow


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside a `DistributedDataParallel`, compiled or not, or `module` itself.

    A pass of the wrapper waits for all processes, even in evaluation mode, where it sends buffers.
    """
    inside = dict(module.named_children()).get("_orig_mod", module)  # the module in torch.compile
    return unwrapped(inside.module) if isinstance(inside, DistributedDataParallel) else module


def local(module: nn.Module) -> nn.Module:
    """Return the part of `module` that this process can run without waiting for other processes.

    Raises:
        TypeError: its parameters are sharded over processes, or a submodule waits for processes.
    """
    module = unwrapped(module)
    for name, child in module.named_modules() if _in_use() else ():
        kind = type(child).__name__
        if _SHARDED_CLASSES & {base.__name__ for base in type(child).__mro__}:
            raise TypeError(
                f"`module` must have its parameters in one process, got {_at(kind, name)}, which "
                "shards them. Attack an unsharded copy with the weights that "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict gathers with "
                "full_state_dict=True."
            )
        if isinstance(child, DistributedDataParallel):
            raise TypeError(
                f"`module` must run in one process alone, got {_at(kind, name)}, which waits for "
                f"the other processes. Use the module inside it, `{name}.module`, in its place. "
                "For training, wrap the whole module in DistributedDataParallel."
            )
    return module


def check_alone(module: nn.Module) -> None:
    """Raise if a pass of `module`, with its current modes, waits for another process.

    Raises:
        ValueError: it has a `SyncBatchNorm` in training mode.
    """
    for name, child in module.named_modules() if _in_use() else ():
        if not isinstance(child, nn.SyncBatchNorm) or not child.training:
            continue
        if distributed.get_world_size(child.process_group) > 1:
            raise ValueError(
                f"`module` must have no SyncBatchNorm in training mode under mode='keep', got "
                f"{_at('one', name)}, which waits for the other processes at each pass. Put it in "
                "evaluation mode, or use mode='eval'."
            )


def _in_use() -> bool:
    """Return whether this process belongs to a process group; without one, no pass can wait."""
    return distributed.is_available() and distributed.is_initialized()


def _at(kind: str, name: str) -> str:
    return f"{kind} at {name!r}" if name else kind
