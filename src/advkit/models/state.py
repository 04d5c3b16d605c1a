"""Restoration of what a forward pass may change in a module or in the process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn

from advkit.core.distributed import check_alone
from advkit.models.module_state import ModuleState, in_training_mode, run_all
from advkit.models.random_state import Draws, find_open

_Key = tuple[int, bool]


class _SharedState:
    """State of a module that one or more users run in the same mode, in any thread."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.state = ModuleState(module)
        self.users: set[int] = set()


# The lock is reentrant, since a signal handler may use a model while its thread holds the lock.
# Each `with` stands on one line: an exception that a tracer raises between the last line of a body
# and the release of the lock would leave it locked.
_lock = threading.RLock()
_in_use: dict[_Key, _SharedState] = {}


class preserve_state(AbstractContextManager[None]):  # noqa: N801 - read as a verb
    """Context in which `modules` run freely; its exit restores their state and the random state.

    The exit restores, also if the body raises or is interrupted:

    - the mode of every submodule (a single `train()` at the end would unfreeze batch norms that a
      user has frozen) and `requires_grad` of every parameter;
    - hooks, the set of buffers, their content and their persistence;
    - the random state, if the first pass inside draws, see `Draws`.

    New parameters and submodules stay, as do changes of the content of parameters and of other
    attributes. Inside another `preserve_state` of the same modules and mode nothing is done, so
    that a random model draws new numbers from call to call.

    Several threads may use a module at once: the first one saves its state, and the last one
    restores it.

    If the context is entered without gradients enabled, no parameter requires a gradient inside.
    A caller who enables gradients there wants those of the input alone, but torch does not know
    this. A compiled module, or a function with a custom backward pass, would compute those of all
    parameters too.

    Args:
        modules: the modules.
        evaluate: whether to run them in evaluation mode; `False` leaves every mode unchanged.

    Raises:
        ValueError: a module has lazy parameters that are not initialized yet, or it keeps its mode
            and would wait for other processes.
        TypeError: a module has submodules in training mode and refuses `eval()`.
    """

    # Class attributes, so that `__del__` finds them if an interrupt has cut `__init__` short.
    _shared: Sequence[_SharedState] = ()
    _draws: Draws | None = None  # of this context, until its exit
    _outer: Draws | None = None  # of the surrounding context, or of this one

    def __init__(self, *modules: nn.Module, evaluate: bool) -> None:
        self._modules = modules
        self._evaluate = evaluate

    def __enter__(self) -> None:
        key = (tuple(map(id, self._modules)), self._evaluate)
        self._outer = find_open(key)
        if self._outer is not None:
            return
        try:
            if not self._evaluate:
                for module in self._modules:
                    check_alone(module)
            with _lock: self._share()  # fmt: skip  # noqa: E701
            self._outer = self._draws = Draws(self._modules)
            self._draws.open(key)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self._leave()
        except BaseException:
            self._leave()  # do what an interrupt has prevented
            raise

    def __del__(self) -> None:
        # An interrupt may come between the body and the first line of `__exit__`.
        self.__exit__()

    def first_pass(self) -> AbstractContextManager[object]:
        """Return a context that detects whether the modules draw, for the first pass inside."""
        assert self._outer is not None
        return self._outer.first_pass()

    def _share(self) -> None:
        """Copy the state of each module that is not in use, then change the modules."""
        shared = [
            _in_use.get(self._key(module)) or _SharedState(module) for module in self._modules
        ]
        self._shared = shared
        for item in shared:
            first = not item.users
            item.users.add(id(self))
            _in_use[self._key(item.module)] = item
            if self._evaluate and in_training_mode(item.module):
                _evaluate(item.module)
            if first and not torch.is_grad_enabled():
                item.state.freeze()

    def _leave(self) -> None:
        """Restore the modules of which this context is the last user. This method may run twice."""
        if self._shared or self._draws is not None:
            with _lock: self._restore()  # fmt: skip  # noqa: E701

    def _restore(self) -> None:
        for item in self._shared:
            item.users.discard(id(self))
        unused = [item for item in self._shared if not item.users and self._is_in_use(item)]
        steps = [step for item in unused for step in item.state.restore_steps()]
        try:
            run_all([*steps, *([] if self._draws is None else [self._draws.close])])
        finally:
            for item in unused:
                _in_use.pop(self._key(item.module), None)
            self._shared, self._draws = (), None

    def _is_in_use(self, item: _SharedState) -> bool:
        return _in_use.get(self._key(item.module)) is item

    def _key(self, module: nn.Module) -> _Key:
        return id(module), self._evaluate


def _evaluate(module: nn.Module) -> None:
    """Put `module` in evaluation mode.

    Raises:
        TypeError: the module refuses, as exported modules do.
    """
    try:
        module.eval()
    except Exception as error:
        raise TypeError(
            f"`module` must have an evaluation mode, got {type(module).__name__}, whose eval() "
            f"raises {type(error).__name__}: {error} If it was exported in evaluation mode, use "
            "TorchClassifier(module, mode='keep'), which runs it as it is."
        ) from error
