"""The content of plain values, containers, arrays and tensors that a hash covers."""

from __future__ import annotations

import random
import types
import uuid
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from advkit.core.digests import array_digest, combine, tensor_digest
from advkit.core.sources import is_library


class Content(NamedTuple):
    """Parts of a value.

    Attributes:
        kind: what the value is, apart from its parts.
        parts: values inside, each with a label such as ".weight" or "[0]" that is hashed with it
            and follows the path of the value in errors.
        isolated: the order of the parts is arbitrary, or they were made for the hash alone. They
            are hashed in the order of their digests, and are not recognized when they come again.
    """

    kind: str
    parts: Iterable[tuple[str, object]]
    isolated: bool = False


Hashed = bytes | Content | None  # a digest, or parts, or `None` for what cannot be hashed
Handler = Callable[[Any], Hashed]

_BUILTINS = (
    *(bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict),
    *(OrderedDict, defaultdict, deque, types.MappingProxyType, range, slice),
)


def attributes_of(value: object) -> dict[str, object]:
    """Return the attributes of an object in its slots and its `__dict__`, by name.

    Values that a cached property keeps are left out, since they follow from the others.
    """
    found = {**dict(_slots(value)), **getattr(value, "__dict__", {})}
    return {
        name: part
        for name, part in found.items()
        if not isinstance(_defined(type(value), name), cached_property)
    }


def labeled(attributes: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the parts of a `Content` for attributes, sorted by name."""
    return ((f".{name}", attributes[name]) for name in sorted(attributes))


def _slots(value: object) -> Iterator[tuple[str, object]]:
    for cls in type(value).__mro__:
        members = vars(cls).items() if "__slots__" in vars(cls) else ()
        for name, member in members:
            if isinstance(member, types.MemberDescriptorType) and hasattr(value, member.__name__):
                yield name, member.__get__(value)


def _defined(cls: type, name: str) -> object:
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _with_class(value: object, content: Content) -> Content:
    """Add class and attributes to the content of a value whose class derives from a builtin one."""
    cls = type(value)
    if cls in _BUILTINS:
        return content
    attributes = {} if is_library(cls.__module__) else attributes_of(value)  # Bunch loses its own
    own = [(".__class__", cls), *labeled(attributes)]
    return content._replace(parts=[*own, *content.parts])


def _plain(cls: type, text: Callable[[Any], bytes | str] | None = None) -> Handler:
    """Return the handler of values of `cls` that their repr or `text` describes completely."""
    describe = text or (cls.__repr__ if cls in _BUILTINS else repr)

    def content(value: object) -> Hashed:
        digest = combine(cls.__name__, describe(value))
        if type(value) is cls or cls not in _BUILTINS:
            return digest
        return _with_class(value, Content(f"derived {digest.hex()}", []))

    return content


def _sequence(value: Any) -> Hashed:
    kind = next(cls for cls in (list, tuple, deque) if isinstance(value, cls)).__name__
    return _with_class(value, Content(kind, [(f"[{i}]", part) for i, part in enumerate(value)]))


def _set(value: Any) -> Hashed:
    return _with_class(value, Content("set", [("{...}", part) for part in value], isolated=True))


def _mapping(value: Any) -> Hashed:
    if isinstance(value, defaultdict):
        inner = Content("defaultdict", [(".default_factory", value.default_factory)])
        return _with_class(value, inner._replace(parts=[*inner.parts, ("", dict(value))]))
    ordered = isinstance(value, OrderedDict)
    kind = "ordered" if ordered else "dict"
    if any(type(key) is not str for key in value):
        pairs = [(f"[{_shown(key)}]", pair) for key, pair in zip(value, value.items(), strict=True)]
        return _with_class(value, Content(f"{kind} of pairs", pairs, isolated=not ordered))
    keys = list(value) if ordered else sorted(value)
    return _with_class(value, Content(kind, [(f"[{key!r}]", value[key]) for key in keys]))


def _shown(key: object) -> str:
    return repr(key) if type(key) in (int, str, bool, float) else "..."


def _array(value: Any) -> Hashed:
    if isinstance(value, np.ma.MaskedArray):
        filled = np.where(np.ma.getmaskarray(value), np.zeros((), value.dtype), value.data)
        return Content("masked", [(".data", filled), (".mask", np.ma.getmaskarray(value))], True)
    array = np.asarray(value)
    digest = array_digest(array)
    if digest is not None or array.dtype.names is not None:
        return digest
    if array.dtype.kind in "OT":
        parts = [(f"[{i}]", part) for i, part in enumerate(array.ravel().tolist())]
        return Content(f"array {array.dtype.kind} {array.shape}", parts, True)
    return None


def _tensor(value: Tensor) -> Hashed:
    custom = type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__
    if custom or value.is_meta or value.is_nested or torch.nn.parameter.is_lazy(value):
        return None
    value = value.detach()
    if value.is_quantized:
        return Content(f"tensor {value.dtype} {value.qscheme()}", _quantized(value), True)
    if value.layout is torch.strided:
        return tensor_digest(value)
    names = _COMPONENTS.get(value.layout)
    if names is None:
        return None
    value = value.coalesce() if value.layout is torch.sparse_coo else value
    parts = [(f".{name}", getattr(value, name)()) for name in names]
    return Content(f"tensor {value.layout} {tuple(value.shape)}", parts, True)


_COMPONENTS = {
    torch.sparse_coo: ("indices", "values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def _quantized(value: Tensor) -> list[tuple[str, object]]:
    if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        scales: tuple[object, ...] = (value.q_scale(), value.q_zero_point())
    else:
        scales = (
            value.q_per_channel_scales(),
            value.q_per_channel_zero_points(),
            value.q_per_channel_axis(),
        )
    return [(".int_repr", value.int_repr()), (".scales", scales)]


def _torch_generator(value: torch.Generator) -> Hashed:
    return Content(f"generator {value.device.type}", [(".state", value.get_state())], True)


def _random_state(value: Any) -> Hashed:
    if isinstance(value, np.random.RandomState):
        state: object = value.get_state(legacy=False)
    elif isinstance(value, random.Random):
        state = value.getstate()
    else:
        generator = value.bit_generator if isinstance(value, np.random.Generator) else value
        state = generator.state
    return Content(f"random {type(value).__name__}", [(".state", state)], True)


_REPRESENTED = (
    *(type(None), int, bool, float, complex, range, type(Ellipsis), type(NotImplemented)),
    *(Decimal, Fraction, date, time, timedelta, uuid.UUID),
    *(torch.dtype, torch.layout, torch.memory_format, torch.qscheme),
)

# Handlers of values by their class.
VALUES: dict[type, Handler] = {
    **{cls: _plain(cls) for cls in _REPRESENTED},
    str: _plain(str, str.__str__),
    bytes: _plain(bytes, bytes),
    bytearray: _plain(bytearray, bytes),
    PurePath: _plain(PurePath, PurePath.as_posix),
    torch.device: _plain(torch.device, lambda device: device.type),
    np.dtype: _plain(np.dtype, lambda dtype: repr(dtype.descr if dtype.names else dtype.str)),
    slice: lambda value: Content("slice", [("", (value.start, value.stop, value.step))], True),
    **dict.fromkeys((list, tuple, deque), _sequence),
    **dict.fromkeys((set, frozenset), _set),
    **dict.fromkeys((dict, types.MappingProxyType), _mapping),
    **dict.fromkeys((np.ndarray, np.generic), _array),
    Tensor: _tensor,
    torch.Generator: _torch_generator,
    **dict.fromkeys(
        (np.random.RandomState, np.random.Generator, np.random.BitGenerator,
         np.random.SeedSequence, random.Random),
        _random_state,
    ),
}  # fmt: skip
