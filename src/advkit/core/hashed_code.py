"""The content of functions and classes that a hash covers: names, sources and variables."""

from __future__ import annotations

import types
import weakref
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cached_property, lru_cache, partial, partialmethod
from logging import Logger
from typing import Any

import numpy as np

from advkit.core.digests import combine
from advkit.core.hashed_values import Content, Handler, Hashed, attributes_of, labeled
from advkit.core.helper_code import helper_code
from advkit.core.sources import is_library, qualified_name, source_of

_FIELD_OF_NAMED_TUPLE: type = type(vars(namedtuple("_Row", "field"))["field"])
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType, _FIELD_OF_NAMED_TUPLE)
_METHODS = (types.FunctionType, staticmethod, classmethod, property)
_IGNORED_MEMBERS = {
    *("_abc_impl", "__repr__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"),
    *("__hash__", "__setattr__", "__delattr__", "__getstate__", "__setstate__", "__replace__"),
}  # a dataclass generates them; those that a user writes stand in the source of the class
_NESTED_CODE = ("co_consts", "co_names", "co_varnames", "co_freevars", "co_cellvars")
_NUMBERS_OF_CODE = ("co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_flags")


def _function(value: types.FunctionType) -> Hashed:
    compiled = vars(value).get("_torchdynamo_orig_callable")  # the function in torch.compile
    if isinstance(compiled, types.FunctionType):
        return _function(compiled)
    kind = f"function {qualified_name(value)}"
    variables = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    parts: list[tuple[str, object]] = [(".__defaults__", value.__defaults__)]
    parts += [(".__kwdefaults__", value.__kwdefaults__)]
    parts += [(f".{name}", cell) for name, cell in variables]
    if not is_library(value.__module__ or "") or "<" in value.__qualname__:
        parts += [(".__code__", value.__code__)]
        parts += [(f".{name}", code) for name, code in helper_code(value)]
    return Content(kind, parts)


def _code(value: types.CodeType) -> Hashed:
    """Return the bytecode, which runs, and the source, which a later edit may have changed."""
    content = [(f".{name}", getattr(value, name)) for name in (*_NESTED_CODE, *_NUMBERS_OF_CODE)]
    source = source_of(value)
    if source is not None and (value.co_name != "<lambda>" or source.count("lambda") == 1):
        content += [(".source", source)]
    return Content("code", [(".co_code", value.co_code), *content])


def _cell(value: types.CellType) -> Hashed:
    try:
        return Content("variable", [("", value.cell_contents)])
    except ValueError:
        return combine("variable without a value")


def _class(value: type) -> Hashed:
    kind = f"class {qualified_name(value)}"
    if all(is_library(base.__module__) for base in value.__mro__):
        return combine(kind)
    parts: list[tuple[str, object]] = [(".__bases__", value.__bases__)]
    if not is_library(value.__module__):
        parts += [(".__source__", source_of(value)), *labeled(dict(_members(value)))]
    return Content(kind, parts)


def _members(cls: type) -> Iterator[tuple[str, object]]:
    """Yield what the source of a class may not show: methods and values that were set later."""
    for name, member in vars(cls).items():
        special = name.startswith("__") and name.endswith("__")
        if name in _IGNORED_MEMBERS or isinstance(member, _DESCRIPTORS):
            continue
        if special and (not isinstance(member, _METHODS) or _is_generated(cls, member)):
            continue
        yield name, member


def _is_generated(cls: type, member: object) -> bool:
    code = getattr(member, "__code__", None)
    return is_dataclass(cls) and code is not None and source_of(code) is None


def _method(value: types.MethodType) -> Hashed:
    return Content("method", [(".__func__", value.__func__), (".__self__", value.__self__)])


def _c_function(value: Any) -> Hashed:
    owner = getattr(value, "__self__", None)
    kind = f"builtin {qualified_name(value)}"
    if owner is None or isinstance(owner, types.ModuleType):
        return combine(kind)
    return Content(kind, [(".__self__", owner)])


def _partial(value: Any) -> Hashed:
    parts = [(".func", value.func), (".args", value.args), (".keywords", dict(value.keywords))]
    return Content(type(value).__name__, [*parts, *labeled(attributes_of(value))])


def _part(name: str) -> Handler:
    """Return the handler of objects that consist of the attribute `name`."""
    return lambda value: Content(type(value).__name__, [("", getattr(value, name))])


_C_FUNCTIONS = (
    *(types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType),
    *(types.MethodWrapperType, types.ClassMethodDescriptorType, types.GetSetDescriptorType),
    *(types.MemberDescriptorType, np.ufunc, type(np.mean)),
)

# Handlers of functions, classes and what classes consist of.
CODE: dict[type, Handler] = {
    types.FunctionType: _function,
    types.CodeType: _code,
    types.CellType: _cell,
    type: _class,
    types.MethodType: _method,
    **dict.fromkeys(_C_FUNCTIONS, _c_function),
    **dict.fromkeys((partial, partialmethod), _partial),
    **dict.fromkeys((staticmethod, classmethod), _part("__func__")),
    cached_property: _part("func"),
    type(lru_cache(len)): _part("__wrapped__"),
    property: lambda value: Content("property", [("", (value.fget, value.fset, value.fdel))], True),
    weakref.ref: lambda value: Content("reference", [("", value())]),
    types.ModuleType: lambda value: combine("module", value.__name__),
    Logger: lambda value: combine("logger", value.name),
}
