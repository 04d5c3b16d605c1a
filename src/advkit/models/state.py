"""Leave no trace: what a forward pass may change in a module or in the process is put back."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn

from advkit.core.distributed import check_alone
from advkit.models.module_state import ModuleState, run_all, training_of
from advkit.models.random_state import Draws, opened

_Key = tuple[int, bool]


class _Shared:
    """The state of a module that one or more are using, by one mode, in whatever thread."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.state = ModuleState(module)
        self.users: set[int] = set()


# A signal handler may use a model while its thread is in here, so the lock may be taken twice. Each
# `with` stands on one line: an exception that a tracer raises between the last line of a body and
# the release of the lock would leave it taken.
_lock = threading.RLock()
_in_use: dict[_Key, _Shared] = {}


class preserve_state(AbstractContextManager[None]):  # noqa: N801 - read as a verb
    """Run `modules` freely inside; afterwards they and the random state are what they were.

    Restored, also when the body raises or an interrupt comes: the mode of every submodule (a single
    `train()` at the end would wake the batch norms that a user has frozen), `requires_grad` of
    every parameter, hooks, which buffers there are, their content and their persistence. New
    parameters and submodules stay, as does what is written to parameters and other attributes. The
    random state is put back if the first pass inside draws, see `Draws`. Inside another
    `preserve_state` of the same modules and mode nothing is done, so that a random model draws new
    numbers from call to call there.

    Threads may use a module at once: the first one saves its state, and the last one restores it.

    Entered without gradients enabled, no parameter asks for one inside. Who enables them there
    wants those of the input alone, but torch does not know: a compiled module and a function with
    a backward pass of its own would compute those of all parameters too.

    Args:
        modules: the modules.
        evaluate: whether to run in evaluation mode; `False` leaves every mode as it is.

    Raises:
        ValueError: a module has lazy parameters that are not initialized yet, or it is to run in
            the mode that it has and would wait for other processes.
        TypeError: a module has submodules in training mode and refuses `eval()`.
    """

    # Of the class, so that `__del__` finds them where an interrupt cut `__init__` short.
    _shared: Sequence[_Shared] = ()
    _draws: Draws | None = None  # of this one, until it has been left
    _outer: Draws | None = None  # of the one around, or of this one

    def __init__(self, *modules: nn.Module, evaluate: bool) -> None:
        self._modules = modules
        self._evaluate = evaluate

    def __enter__(self) -> None:
        key = (tuple(map(id, self._modules)), self._evaluate)
        self._outer = opened(key)
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
            self._leave()  # what an interrupt has left undone
            raise

    def __del__(self) -> None:
        # An interrupt may come between the body and the first line of `__exit__`.
        self.__exit__()

    def first_pass(self) -> AbstractContextManager[object]:
        """Notice inside whether the modules draw, if this is the first pass since the entry."""
        assert self._outer is not None
        return self._outer.first_pass()

    def _share(self) -> None:
        """Copy the state of each module that is not in use; then change the modules."""
        shared = [_in_use.get(self._key(module)) or _Shared(module) for module in self._modules]
        self._shared = shared
        for one in shared:
            first = not one.users
            one.users.add(id(self))
            _in_use[self._key(one.module)] = one
            if self._evaluate and any(training_of(child) for child in one.module.modules()):
                _evaluate(one.module)
            if first and not torch.is_grad_enabled():
                one.state.freeze()

    def _leave(self) -> None:
        """Restore what this one is the last to use; may run twice."""
        if self._shared or self._draws is not None:
            with _lock: self._restore()  # fmt: skip  # noqa: E701

    def _restore(self) -> None:
        for one in self._shared:
            one.users.discard(id(self))
        mine = [one for one in self._shared if not one.users and self._is_in_use(one)]
        steps = [step for one in mine for step in one.state.steps()]
        try:
            run_all([*steps, *([] if self._draws is None else [self._draws.close])])
        finally:
            for one in mine:
                _in_use.pop(self._key(one.module), None)
            self._shared, self._draws = (), None

    def _is_in_use(self, one: _Shared) -> bool:
        return _in_use.get(self._key(one.module)) is one

    def _key(self, module: nn.Module) -> _Key:
        return id(module), self._evaluate


def _evaluate(module: nn.Module) -> None:
    """Put `module` in evaluation mode.

    Raises:
        TypeError: it refuses, as exported modules do.
    """
    try:
        module.eval()
    except Exception as error:
        raise TypeError(
            f"`module` must have an evaluation mode, got {type(module).__name__}, whose eval() "
            f"raises {type(error).__name__}: {error} If it was exported in evaluation mode, use "
            "TorchClassifier(module, mode='keep'), which runs it as it is."
        ) from error
