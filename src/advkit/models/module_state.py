"""Copies of the module state that a forward pass may change, from which it is restored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

# Dictionaries of hooks that torch keeps in a module, for all kinds of hooks.
_HOOKS = tuple(name for name in vars(nn.Module()) if "_hooks" in name)
_MAX_ATTEMPTS = 10  # an interrupt costs one attempt; as many in one step are not sent by hand
_ABSENT = object()
_EMPTY: dict[Any, Any] = {}  # most modules have no hooks; a copy for each kind takes longer
Value = TypeVar("Value")


class ModuleState:
    """Copy of the state of a module and its submodules.

    It holds the modes, the `requires_grad` of the parameters, the sets of hooks and buffers, the
    content of the buffers, and which buffers are persistent. It does not hold the content of
    parameters, the sets of parameters and submodules, hooks of tensors, or other attributes.

    Args:
        module: the module, which is not changed here.

    Raises:
        ValueError: the module has lazy parameters or buffers that are not initialized yet.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modes: list[tuple[nn.Module, bool | None, bool | None]] = []
        self._parameters: list[tuple[Tensor, bool]] = []
        self._mappings: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._persistence: list[tuple[set[str], set[str]]] = []
        self._contents: list[tuple[Tensor, Tensor, int | None]] = []
        for child in module.modules():
            self._add(child)

    def _add(self, child: nn.Module) -> None:
        own = vars(child)
        self._modes.append((child, training_of(child), own.get("_is_full_backward_hook")))
        for parameter in _tensors(child, "_parameters"):
            self._parameters.append((parameter, parameter.requires_grad))
        for name in (*_HOOKS, "_buffers"):
            mapping = own.get(name)
            if isinstance(mapping, dict):
                self._mappings.append((mapping, dict(mapping) if mapping else _EMPTY))
        transient = own.get("_non_persistent_buffers_set")
        if transient is not None:
            self._persistence.append((transient, set(transient)))
        for buffer in _tensors(child, "_buffers"):
            self._contents.append((buffer, buffer.clone(), _version_of(buffer)))

    def freeze(self) -> None:
        """Set `requires_grad` to False for all parameters for which torch allows it."""
        for parameter, requires_grad in self._parameters:
            if requires_grad and parameter.is_leaf and not parameter.is_inference():
                parameter.requires_grad_(False)

    def restore_steps(self) -> Iterator[Callable[[], None]]:
        """Yield the functions that restore the state when called; each of them may run twice."""
        for child, training, full in self._modes:
            if training_of(child) != training:
                yield partial(_restore_mode, child, training)
            if vars(child).get("_is_full_backward_hook") != full:
                yield partial(vars(child).__setitem__, "_is_full_backward_hook", full)
        yield self._restore_parameters
        yield self._restore_mappings
        yield self._restore_persistence
        for buffer, copy, version in self._contents:
            yield partial(_restore_content, buffer, copy, version)

    def _restore_parameters(self) -> None:
        for parameter, requires_grad in self._parameters:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)

    def _restore_mappings(self) -> None:
        for now, before in self._mappings:
            if now or before:
                _restore_mapping(now, before)

    def _restore_persistence(self) -> None:
        for now, before in self._persistence:
            if now != before:
                now |= before
                now &= before


def run_all(steps: Iterable[Callable[[], None]]) -> None:
    """Run every step, even if some of them raise, and raise the first error at the end.

    A step that raises, for example because of an interrupt, runs again, so it must be repeatable.
    """
    first: BaseException | None = None
    for step in list(steps):
        for _ in range(_MAX_ATTEMPTS):
            try:
                step()
                break
            except BaseException as error:  # noqa: BLE001 - raised below
                first = first or error
    if first is not None:
        raise first


def training_of(child: nn.Module) -> bool | None:
    """Return the mode of a module; `None` if it has none, like the result of `torch.jit.freeze`."""
    return getattr(child, "training", None)


def in_training_mode(module: nn.Module) -> bool:
    """Return True if a module or one of its submodules is in training mode."""
    return any(training_of(child) for child in module.modules())


def _restore_mode(child: nn.Module, training: bool | None) -> None:
    if training is None:
        vars(child).pop("training", None)  # an outer module has set the mode of all its submodules
    else:
        child.training = training


def _tensors(child: nn.Module, name: str) -> list[Tensor]:
    """Return the parameters or the buffers of a module, without those of its submodules."""
    own = vars(child).get(name)
    if isinstance(own, dict):
        tensors = [tensor for tensor in own.values() if tensor is not None]
    elif name == "_buffers":  # a scripted module stores them elsewhere
        tensors = [buffer for _, buffer in child.named_buffers(recurse=False)]
    else:
        tensors = [parameter for _, parameter in child.named_parameters(recurse=False)]
    if any(map(is_lazy, tensors)):
        raise ValueError(
            f"`module` must have initialized parameters, got {type(child).__name__} with lazy "
            "ones. Call the module with a dummy batch first."
        )
    return tensors


def _restore_mapping(now: dict[Any, Value], before: dict[Any, Value]) -> None:
    """Make `now` equal to `before`, in the same order; entries that are correct stay in place.

    Thus no thread finds a module without one of its buffers.
    """
    for key in [key for key in now if key not in before]:
        del now[key]
    for key, value in before.items():
        if now.get(key, _ABSENT) is not value:
            now[key] = value
    if list(now) != list(before):
        for key, value in before.items():
            del now[key]
            now[key] = value


def _restore_content(buffer: Tensor, copy: Tensor, version: int | None) -> None:
    """Restore the content of a buffer, but only if it has changed.

    A write to a buffer raises its version, after which torch can no longer differentiate a graph
    that was made before. Batch norm in training mode writes its statistics without raising the
    version. They are restored without raising it too, so that an earlier graph finds what it has
    saved.
    """
    if torch.equal(buffer, copy):
        return
    if (
        buffer.shape == copy.shape
        and ((buffer == copy) | (buffer != buffer) & (copy != copy)).all()
    ):
        return
    with torch.no_grad():
        same_version = version is not None and version == _version_of(buffer)
        if same_version and buffer.shape == copy.shape:
            buffer.data.copy_(copy)
        else:
            buffer.resize_(copy.shape).copy_(copy)


def _version_of(buffer: Tensor) -> int | None:
    """Return the number of writes to `buffer` that torch has counted; `None` if it counts none."""
    return None if buffer.is_inference() else buffer._version
