"""Cost of attacks: time in passes, and the memory of tensors.

A pass is one forward and backward pass of the batch to its input, timed in the same run. It is a
unit that makes nets and machines comparable.
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
    """Run one forward and backward pass of a batch to `x`; forward only without gradients.

    The pass is complete when the function returns, also on a device that works asynchronously.

    Args:
        model: a classifier.
        x: inputs `(n, *features)`.
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
    """Wait until `device` has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(job: Callable[[], object]) -> float:
    """Measure the time that `job` takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def peak_memory(job: Callable[[], Result]) -> tuple[Result, int]:
    """Run `job` and measure the most bytes that its tensors hold at once.

    Storages that operations of torch create during the run count with their initial size, on all
    devices. Not counted are the workspace of operations, the reserve of an allocator, and memory
    that NumPy or `torch.tensor` allocate.

    Returns:
        The result of `job`, and the peak in bytes.

    Example:
        >>> import torch
        >>> peak_memory(lambda: torch.ones(1000).add(1).sum().item())
        (2000.0, 8000)
    """
    with Storages() as storages:
        result = job()
    return result, storages.peak


class Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counter of the bytes in storages that operations of torch create.

    Attributes:
        current: bytes of the storages that are alive.
        peak: the most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        for value in tree_iter((args, kwargs)):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage(), created=False)
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage(), created=True)
        return out

    def _count(self, storage: torch.UntypedStorage, *, created: bool) -> None:
        """Count `storage`, unless it is known or older than this counter."""
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if created else 0
        self.current += size
        self.peak = max(self.peak, self.current)

        def release(_: object) -> None:
            self.current -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, release)
