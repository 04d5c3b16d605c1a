"""The content of models and other objects that a hash covers, by their classes and attributes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import Enum
from functools import singledispatch
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from advkit.core.digests import combine
from advkit.core.hashed_code import CODE
from advkit.core.hashed_values import VALUES, Content, Hashed, attributes_of, labeled
from advkit.core.sources import qualified_name

# Attributes of a module that do not decide about its outputs, or are parts of their own.
_MODULE_STATE = {
    *("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
    *("_is_full_backward_hook", "_compiled_call_impl", "_is_torch_compile"),
    *(name for name in vars(nn.Module()) if "_hooks" in name),
}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_REDUCIBLE = {"numpy", "scipy", "sklearn", "torch"}  # libraries whose objects state their parts
_OF_ONE_PROCESS = (
    *(type(threading.Lock()), type(threading.RLock())),
    *(weakref.ref, weakref.WeakSet, weakref.WeakKeyDictionary, weakref.WeakValueDictionary),
)
_REDUCED = (".__class__", ".args", "", ".items", ".pairs", ".setter")  # parts of __reduce_ex__
_CYTHON_FUNCTIONS = {"cython_function_or_method", "fused_cython_function"}


@runtime_checkable
class HashedByAttributes(Protocol):
    """Object of advkit that selects what identifies it, for example without counts of queries."""

    def hashed_attributes(self) -> dict[str, object]:
        """Return all that decides about the results, by name; nothing for a log or a count."""
        ...


def content_of(value: object) -> Hashed:
    """Return the content of `value`, without the content of its parts; `None` if it has none."""
    if isinstance(value, Enum):  # before the int or the str that it may be too
        return Content(f"enum {qualified_name(type(value))} {value.name}", [("", value.value)])
    return _content(value)


@singledispatch
def _content(value: object) -> Hashed:
    cls = type(value)
    package = cls.__module__.partition(".")[0]
    if _is_of_advkit(cls):
        return _object(value, _advkit_attributes(value))
    if is_dataclass(cls) or _is_estimator(cls):
        return _object(value, attributes_of(value))
    if cls.__name__ == "Booster" and package in ("lightgbm", "xgboost"):
        return _booster(value)
    if cls.__name__ in _CYTHON_FUNCTIONS:
        return combine(f"builtin {qualified_name(value)}")
    if package in _REDUCIBLE:
        return _reduced(value)
    return combine("object") if cls is object else None


for _cls, _handler in {**VALUES, **CODE}.items():
    _content.register(_cls, _handler)


def _object(value: object, attributes: dict[str, object]) -> Content:
    return Content("object", [(".__class__", type(value)), *labeled(attributes)])


def _advkit_attributes(value: object) -> dict[str, object]:
    """Return the attributes of an object of advkit that have a content other than `None`."""
    if isinstance(value, HashedByAttributes):
        found = value.hashed_attributes()
    else:
        found = attributes_of(value)
    return {name: part for name, part in found.items() if not _is_empty(part)}


def _is_empty(part: object) -> bool:
    """Return whether an attribute is `None`, belongs to one process, or records what happens."""
    if part is None or isinstance(part, _OF_ONE_PROCESS):
        return True
    if not (_is_of_advkit(type(part)) and isinstance(part, HashedByAttributes)):
        return False
    return not part.hashed_attributes()


def _is_of_advkit(cls: type) -> bool:
    return any(base.__module__.partition(".")[0] == "advkit" for base in cls.__mro__)


def _is_estimator(cls: type) -> bool:
    return callable(getattr(cls, "get_params", None)) and callable(getattr(cls, "fit", None))


@_content.register(nn.Module)
def _module(value: nn.Module) -> Hashed:
    if isinstance(value, torch.jit.ScriptModule):
        return None
    inside = _inside(value)
    if inside is not None:
        return content_of(inside)
    own = {name: part for name, part in attributes_of(value).items() if name not in _MODULE_STATE}
    parts = [(".__class__", type(value)), *labeled(own), *_hooks(value)]
    for kind in ("_parameters", "_buffers", "_modules"):  # in their order, as Sequential runs them
        parts += [(f".{name}", part) for name, part in vars(value)[kind].items()]
    return Content("module", parts)


def _inside(module: nn.Module) -> nn.Module | None:
    """Return the module that torch.compile or a parallel wrapper runs, or `None`."""
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        inside: nn.Module = module.module
        return inside
    compiled = type(module).__name__ == "OptimizedModule"
    return vars(module)["_modules"].get("_orig_mod") if compiled else None


def _hooks(module: nn.Module) -> Iterator[tuple[str, object]]:
    for name in _HOOKS:  # their keys count all hooks of the process
        for i, hook in enumerate(vars(module).get(name, {}).values()):
            yield f".{name}[{i}]", hook


def _booster(value: Any) -> Hashed:
    """Return the digest of the trees of LightGBM or XGBoost, in their own text or bytes."""
    if type(value).__module__.startswith("lightgbm"):
        text = value.model_to_string(num_iteration=-1)
        return combine("lightgbm", text, str(max(0, value.best_iteration)))
    return combine("xgboost", bytes(value.save_raw("ubj")))


def _reduced(value: object) -> Hashed:
    """Return what an object of a library states when it is copied, without pickling it."""
    if type(value).__name__.startswith(("KDTree", "BallTree")):  # which count their queries
        arrays: object = value.get_arrays()  # type: ignore[attr-defined]
        return Content("neighbors", [(".__class__", type(value)), (".arrays", arrays)], True)
    try:
        reduced = value.__reduce_ex__(2)
    except Exception:  # noqa: BLE001 - an object that cannot be copied may raise anything
        return None
    if not isinstance(reduced, tuple):  # the name of a global variable
        return None
    parts = (list(part) if hasattr(part, "__next__") else part for part in reduced)
    return Content("reduced", list(zip(_REDUCED, parts, strict=False)), True)
