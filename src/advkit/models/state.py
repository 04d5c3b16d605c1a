"""Leave no trace: what a forward pass may change in a module or in the process is put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

# What is held now: modules by id, and whether in evaluation mode.
_held: ContextVar[frozenset[tuple[int, bool]]] = ContextVar("held", default=frozenset())


@contextmanager
def undisturbed(module: nn.Module, *, evaluate: bool) -> Iterator[None]:
    """Run `module` freely inside; afterwards it and the random state are what they were.

    Restored, also when the body raises: the mode of every submodule (a single `train()` at the end
    would wake the batch norms that a user has frozen), every buffer and the random state of the CPU
    and of the module's devices. Inside another `undisturbed` of the same module and mode nothing is
    done, so that a random model draws new numbers from call to call there.

    Entered without gradients enabled, no parameter asks for one inside. Who enables them there
    wants those of the input alone, but torch does not know: a compiled module and a function with
    a backward pass of its own would compute those of all parameters too.

    Args:
        module: the module.
        evaluate: whether to run in evaluation mode; `False` leaves every mode as it is.
    """
    held = _held.get()
    if (id(module), evaluate) in held:
        yield
        return
    token = _held.set(held | {(id(module), evaluate)})
    modes = [(child, child.training) for child in module.modules()]
    trainable = [] if torch.is_grad_enabled() else _trainable(module)
    buffers = [(child, _own(child), _copies(child)) for child in module.modules()]
    try:
        with torch.random.fork_rng(devices=_cuda_devices(module)):
            if evaluate:
                module.eval()
            for parameter in trainable:
                parameter.requires_grad_(False)
            yield
    finally:
        _held.reset(token)
        for child, training in modes:
            child.training = training
        for parameter in trainable:
            parameter.requires_grad_()
        for child, own, copies in buffers:
            if own is not None:
                child._buffers.clear()
                child._buffers.update(own)
            for buffer, copy in copies:
                _restore(buffer, copy)


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that ask for gradients, as far as they may stop asking."""
    return [
        p for p in module.parameters() if p.requires_grad and p.is_leaf and not p.is_inference()
    ]


def _own(child: nn.Module) -> dict[str, Tensor | None] | None:
    """The buffers by name; `None` for a compiled module, which cannot get or lose any."""
    return dict(child._buffers) if isinstance(child._buffers, dict) else None


def _copies(child: nn.Module) -> list[tuple[Tensor, Tensor]]:
    buffers = [buffer for _, buffer in child.named_buffers(recurse=False)]
    return [(buffer, buffer.clone()) for buffer in buffers]


def _restore(buffer: Tensor, copy: Tensor) -> None:
    """Put back the content, and only if it has changed.

    Writing to an unchanged buffer would invalidate a graph that the caller still wants to
    differentiate.
    """
    if (
        buffer.shape == copy.shape
        and ((buffer == copy) | (buffer != buffer) & (copy != copy)).all()
    ):
        return
    with torch.no_grad():
        buffer.resize_(copy.shape).copy_(copy)


def _cuda_devices(module: nn.Module) -> list[torch.device]:
    tensors = [*module.parameters(), *module.buffers()]
    return sorted({t.device for t in tensors if t.device.type == "cuda"}, key=str)
