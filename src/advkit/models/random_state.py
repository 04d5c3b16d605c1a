"""Torch's random state: draws are noticed in the thread that makes them, and taken back."""

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

# Arguments by which a function that may draw is told not to.
_SWITCHES = ("train", "training", "dropout", "dropout_p")


class Draws:
    """The draws from torch's generators between `open` and `close`, in one thread.

    Torch has one generator for each device and no way to ask which thread has used it. So the
    first pass is watched, operation by operation. If it draws, `close` puts back the random state
    of `open`. If it does not, the generators are not set, and other threads may draw meanwhile. The
    state is read at `open`, since a module may seed its own draws before it makes them.

    Args:
        modules: those that run; besides that of the CPU, the generators of their devices are saved.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._watch: _Watch | None = None
        self._saved: list[tuple[torch.Generator, Tensor]] = []
        self.drawn = False
        self.closed = False

    def open(self, key: Hashable) -> None:
        """Begin; until `close`, `opened` finds these draws under `key`."""
        generators = [torch.default_generator, *_cuda_generators(self._modules)]
        self._saved = [(generator, generator.get_state()) for generator in generators]
        _open.set({**_still_open(), key: self})

    def close(self) -> None:
        """Put the random state back if this thread was seen to draw; may run twice."""
        if self._watch is not None:
            self._watch.stop()
        for generator, state in self._saved if self.drawn else ():
            generator.set_state(state)
        self.closed = True
        _open.set(_still_open())

    def first_pass(self) -> AbstractContextManager[object]:
        """Watch what runs inside, if nothing was watched since `open`."""
        if self._watch is not None:
            return nullcontext()
        self._watch = _Watch()  # type: ignore[no-untyped-call]
        return self._watch


_open: ContextVar[Mapping[Hashable, Draws]] = ContextVar("open", default={})  # noqa: B039


def opened(key: Hashable) -> Draws | None:
    """Return the draws that were opened under `key` and are not closed, if there are any."""
    draws = _open.get().get(key)
    return None if draws is None or draws.closed else draws


def _still_open() -> dict[Hashable, Draws]:
    return {key: draws for key, draws in _open.get().items() if not draws.closed}


class _Watch(TorchDispatchMode):
    """Every operation of this thread goes through here; one that draws is noted.

    Entered and left by one call into C each: the methods of the base keep process-wide flags, and
    an interrupt can cut them short.
    """

    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Return `True`: `torch.compile` compiles below infrastructure, not below other modes."""
        return True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return `False`: to skip it, torch imports its compiler at the first pass, for seconds."""
        return False

    def __enter__(self) -> _Watch:
        _push_mode(self)  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Watch no longer; may be called twice."""
        if any(mode is self for mode in _get_current_dispatch_mode_stack()):
            _pop_mode()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, and note it if it draws."""
        kwargs = kwargs or {}
        tagged = _tagged.get(func)
        if tagged is None:
            tagged = _tagged[func] = _TAG in getattr(func, "tags", ())
        if tagged and _draws(func, args, kwargs):
            for draws in _still_open().values():
                draws.drawn = True
        return func(*args, **kwargs)


_TAG = torch.Tag.nondeterministic_seeded
_tagged: dict[Any, bool] = {}  # reading the tags of an operation takes longer than running it


def _draws(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return True if an operation that may draw does so here, from a generator of torch."""
    given = {}
    for i, argument in enumerate(func._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        given[argument.name] = args[i] if i < len(args) else kwargs.get(argument.name, default)
    if given.get("generator") not in (None, torch.default_generator):
        return False
    return all(given.get(name, True) not in (False, 0) for name in _SWITCHES)


def _cuda_generators(modules: Sequence[nn.Module]) -> list[torch.Generator]:
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return []
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    found = {t.device.index for t in tensors if t.device.type == "cuda"}
    return [torch.cuda.default_generators[i] for i in sorted(found)]
