"""Leave no trace: what a forward pass may change in a module or in the process is put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_held: ContextVar[frozenset[int]] = ContextVar("held", default=frozenset())


@contextmanager
def undisturbed(module: nn.Module, *, evaluate: bool) -> Iterator[None]:
    """Run `module` freely inside; afterwards it and the random state are what they were.

    Restored, also when the body raises: the mode of every submodule (a single `train()` at the end
    would wake the batch norms that a user has frozen), every buffer and the random state of the CPU
    and of the module's devices. Inside another `undisturbed` of the same module nothing is done, so
    that a random model draws new numbers from call to call there.

    Args:
        module: the module.
        evaluate: whether to run in evaluation mode; `False` leaves every mode as it is.
    """
    held = _held.get()
    if id(module) in held:
        yield
        return
    token = _held.set(held | {id(module)})
    modes = [(child, child.training) for child in module.modules()]
    buffers = _buffers(module)
    try:
        with torch.random.fork_rng(devices=_cuda_devices(module)):
            if evaluate:
                module.eval()
            yield
    finally:
        for child, training in modes:
            child.training = training
        for owner, name, buffer, value in buffers:
            _restore(owner, name, buffer, value)
        _held.reset(token)


def _buffers(module: nn.Module) -> list[tuple[nn.Module, str, Tensor, Tensor]]:
    return [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]


def _restore(owner: nn.Module, name: str, buffer: Tensor, value: Tensor) -> None:
    """Put back the buffer itself, and its content only if that has changed.

    Writing to an unchanged buffer would invalidate a graph that the caller still wants to
    differentiate.
    """
    owner._buffers[name] = buffer
    if not torch.equal(buffer, value):
        with torch.no_grad():
            buffer.copy_(value)


def _cuda_devices(module: nn.Module) -> list[torch.device]:
    tensors = [*module.parameters(), *module.buffers()]
    return sorted({t.device for t in tensors if t.device.type == "cuda"}, key=str)
