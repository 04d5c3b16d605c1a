"""What attacks cost: time in floors, and the memory of tensors.

The floor is one bare pass of a batch, forward and backward, to the input alone: a unit that means
the same for every net and machine.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from advkit.core.differentiation import differentiating
from advkit.models import Classifier, has_gradients

Result = TypeVar("Result")


def bare_pass(model: Classifier, x: Tensor, y: Tensor) -> None:
    """One pass of a batch: forward and backward to `x`; forward alone without gradients to take.

    It has ended when this returns, also on a device that works on its own.

    Args:
        model: a classifier.
        x: `(n, *features)`.
        y: labels `(n,)`.
    """
    if has_gradients(model):
        with torch.inference_mode(False), torch.enable_grad(), differentiating(model):
            leaf = x.detach().clone().requires_grad_()
            torch.autograd.grad(F.cross_entropy(model.logits(leaf), y), leaf)
    else:
        model.predict(x)
    synchronize(x.device)


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(job: Callable[[], object]) -> float:
    """How long `job` takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def peak_memory(job: Callable[[], Result]) -> tuple[Result, int]:
    """What `job` returns, and the most bytes that it has in tensors at once.

    Counted are the storages that torch's operations make while it runs, on all devices, each with
    the size that it is made with. Not counted are what operations work with inside, what an
    allocator holds in reserve, and what NumPy or `torch.tensor` bring in.

    Example:
        >>> import torch
        >>> peak_memory(lambda: torch.ones(1000).add(1).sum().item())
        (2000.0, 8000)
    """
    with Storages() as storages:
        result = job()
    return result, storages.most


class Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches every operation of torch and counts the bytes of the storages that it makes.

    Attributes:
        now: bytes of those that are alive.
        most: the most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        for value in tree_iter((args, kwargs)):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage(), made=False)
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage(), made=True)
        return out

    def _note(self, storage: torch.UntypedStorage, *, made: bool) -> None:
        """Count `storage`, unless it is known or was there before."""
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if made else 0
        self.now += size
        self.most = max(self.most, self.now)

        def gone(_: object) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
