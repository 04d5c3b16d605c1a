"""Modules that a classifier runs in training mode: they are refused, or run in one thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn

from advkit.models.inner_model import innermost
from advkit.models.module_state import in_training_mode
from advkit.models.protocols import HasEvaluating, evaluating
from advkit.models.torch import TorchClassifier

# The random state, and the buffers of a module in training mode, belong to all threads. One lock
# for all modules is enough, since few run in training mode. It is reentrant, since a context for
# many calls may hold it around each call.
_lock = threading.RLock()


def one_thread(model: object) -> AbstractContextManager[object]:
    """Return a context for one thread at a time if `model` runs a module in training mode.

    This holds for `TorchClassifier(mode="keep")`, also inside other classifiers. For all other
    models the context does nothing.
    """
    return _lock if runs_in_training_mode(model) else nullcontext()


def runs_in_training_mode(model: object) -> bool:
    """Return True if `model`, or one that it wraps, runs a module in training mode."""
    parts = (part for part in innermost(model) if isinstance(part, TorchClassifier))
    return any(part.runs_in_training_mode for part in parts)


@contextmanager
def evaluating_in_one_thread(model: object) -> Iterator[None]:
    """Return the context of `evaluating(model)`, for one thread at a time where `one_thread` is."""
    with one_thread(model), evaluating(model):
        yield


def check_evaluation_mode(name: str, obj: object) -> None:
    """Raise if `obj` is a module in training mode that does not save its own state.

    Args:
        name: name of the argument, for the error.
        obj: a detector, or a classifier, for which the classifiers inside it are checked, too.

    Raises:
        ValueError: it is, or wraps, such a module.
    """
    for part in innermost(obj):
        is_own = part is obj or callable(getattr(part, "predict", None))
        unsafe = isinstance(part, nn.Module) and is_own and not isinstance(part, HasEvaluating)
        if unsafe and in_training_mode(part):
            raise ValueError(
                f"`{name}` must be in evaluation mode, got {type(part).__name__} in training mode. "
                "Call its eval() first."
            )
