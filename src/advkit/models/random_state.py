"""Torch's random state: draws are detected in the thread that makes them, and undone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
    _pop_mode,
    _push_mode,
)

# Arguments that switch the draws of an operation off.
_SWITCHES = ("train", "training", "dropout", "dropout_p")


class Draws:
    """Draws from torch's generators between `open` and `close`, in one thread.

    Torch has one generator for each device and does not record which thread has used it. Therefore
    the first pass is watched operation by operation. If it draws, `close` restores the random state
    of `open`. If it does not draw, the generators are not set, and other threads may draw in the
    meantime. The state is read at `open`, since a module may seed its own draws before it makes
    them.

    Args:
        modules: the modules that run. The generators of their devices are saved, in addition to
            that of the CPU.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._watch: _Watch | None = None
        self._saved: list[tuple[torch.Generator, Tensor]] = []
        self.drawn = False
        self.closed = False

    def open(self, key: Hashable) -> None:
        """Save the random state; until `close`, `find_open(key)` returns these draws."""
        generators = [torch.default_generator, *_cuda_generators(self._modules)]
        self._saved = [(generator, generator.get_state()) for generator in generators]
        _open.set({**_all_open(), key: self})

    def close(self) -> None:
        """Restore the random state if this thread has drawn. This method may run twice."""
        if self._watch is not None:
            self._watch.stop()
        for generator, state in self._saved if self.drawn else ():
            generator.set_state(state)
        self.closed = True
        _open.set(_all_open())

    def first_pass(self) -> AbstractContextManager[object]:
        """Return a context that watches what runs inside, if it is the first one since `open`."""
        if self._watch is not None:
            return nullcontext()
        self._watch = _Watch()  # type: ignore[no-untyped-call]
        return self._watch


_open: ContextVar[Mapping[Hashable, Draws]] = ContextVar("open", default={})  # noqa: B039


def find_open(key: Hashable) -> Draws | None:
    """Return the draws that are open under `key`; `None` if there are none."""
    draws = _open.get().get(key)
    return None if draws is None or draws.closed else draws


def _all_open() -> dict[Hashable, Draws]:
    return {key: draws for key, draws in _open.get().items() if not draws.closed}


class _Watch(TorchDispatchMode):
    """Dispatch mode that receives every operation of this thread and records those that draw.

    Entry and exit are one call into C each. The methods of the base class keep process-wide flags,
    and an interrupt can cut them short.
    """

    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Return True: `torch.compile` compiles below infrastructure, but not below other modes."""
        return True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: to skip it, torch would import its compiler at the first pass (seconds)."""
        return False

    def __enter__(self) -> _Watch:
        _push_mode(self)  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop watching. This method may be called twice."""
        if any(mode is self for mode in _get_current_dispatch_mode_stack()):
            _pop_mode()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, and record it if it draws."""
        kwargs = kwargs or {}
        tagged = _tagged.get(func)
        if tagged is None:
            tagged = _tagged[func] = _TAG in getattr(func, "tags", ())
        if tagged and _draws(func, args, kwargs):
            for draws in _all_open().values():
                draws.drawn = True
        return func(*args, **kwargs)


_TAG = torch.Tag.nondeterministic_seeded
_tagged: dict[Any, bool] = {}  # reading the tags of an operation takes longer than running it


def _draws(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return True if an operation that may draw does so in this call, from torch's generators."""
    values = {}
    for i, argument in enumerate(func._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        values[argument.name] = args[i] if i < len(args) else kwargs.get(argument.name, default)
    if values.get("generator") not in (None, torch.default_generator):
        return False
    return all(values.get(name, True) not in (False, 0) for name in _SWITCHES)


def _cuda_generators(modules: Sequence[nn.Module]) -> list[torch.Generator]:
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return []
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    devices = {t.device.index for t in tensors if t.device.type == "cuda"}
    return [torch.cuda.default_generators[i] for i in sorted(devices)]
