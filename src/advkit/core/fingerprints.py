"""Hashes that identify the content of models, attacks and settings across processes and machines.

`content_of` describes one value, and this module walks through the values inside. Every value
has a digest of its own that does not depend on where it stands: two equal layers count as much as
the same layer twice. A value that leads back to one around it holds the distance to that one.
"""

from __future__ import annotations

import sys
from typing import TypeVar

from torch import Tensor

from advkit.core.digests import combine
from advkit.core.hashed_objects import content_of
from advkit.core.hashed_values import Content
from advkit.core.sources import qualified_name

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def fingerprint(value: object, name: str, *, identity: str | None = None) -> str:
    """Return the SHA-256, in hexadecimal, that identifies the content of `value`.

    Equal content has the equal hash in every process, on every machine and on every device.
    A model is identified by its classes, weights, buffers and attributes, and a function by its
    name, its source and bytecode, its default arguments, the variables around it, and the code of
    the functions and classes of your own modules that it uses. The source of your own classes
    counts; Python, advkit and the libraries below it count by name, whatever their version.

    The mode of a module (`training`), gradients, counts of queries and caches are left out. So are
    global variables. Bytecode depends on the version of Python.

    Args:
        value: a model, an attack, a tensor, a function, or plain values that hold them.
        name: name of the argument, for errors.
        identity: text that stands for each part that cannot be hashed, such as a service; it must
            change whenever the part changes. `None` refuses such parts.

    Raises:
        TypeError: a part cannot be hashed and there is no `identity`, or that is not a str.
        ValueError: `value` is nested too deeply.
    """
    if identity is not None and not isinstance(identity, str):
        raise TypeError(f"`identity` must be a str, got {type(identity).__name__}.")
    try:
        return _Walk(identity).digest(value, name).hex()
    except RecursionError:
        raise ValueError(
            f"`{name}` must not be nested more deeply than Python's recursion limit allows, got "
            f"more levels than fit into {sys.getrecursionlimit()}. Pass a flatter value, or raise "
            "the limit with sys.setrecursionlimit."
        ) from None


def fingerprint_if_any(value: object, name: str, *, identity: str | None = None) -> str | None:
    """Return the `fingerprint` of `value`, `None` for a value that has none."""
    try:
        return fingerprint(value, name, identity=identity)
    except Exception:  # noqa: BLE001 - objects of any kind are evaluated, and may raise anything
        return None


class _Walk:
    """One pass through the parts of a value.

    Args:
        identity: text in place of parts that cannot be hashed, or `None`.
    """

    def __init__(self, identity: str | None) -> None:
        self._identity = identity
        self._open: dict[int, int] = {}  # depth of each value that is being hashed, by its id
        self._known: dict[int, tuple[object, bytes]] = {}  # values stay alive, so ids stay theirs

    def digest(self, value: object, path: str) -> bytes:
        """Return the digest of a value; `path` names it in errors."""
        if id(value) in self._known:
            return self._known[id(value)][1]
        if id(value) in self._open:
            return combine("cycle", str(len(self._open) - self._open[id(value)]))
        content = content_of(value)
        if content is None:
            return self._digest_of_identity(value, path)
        if isinstance(content, bytes):
            digest = content
        else:
            self._open[id(value)] = len(self._open)
            digest = self._combine(content, path)
            del self._open[id(value)]
        if isinstance(content, Content) or isinstance(value, Tensor):
            self._known[id(value)] = value, digest
        return digest

    def _combine(self, content: Content, path: str) -> bytes:
        digests = []
        for label, part in content.parts:
            known = len(self._known)
            digests.append(combine(label, self.digest(part, f"{path}{label}")))
            if content.isolated:
                _shorten(self._known, known)
        return combine(content.kind, *(sorted(digests) if content.isolated else digests))

    def _digest_of_identity(self, value: object, path: str) -> bytes:
        if self._identity is None:
            raise TypeError(
                f"`{path}` must have a content that can be hashed for `store`, got "
                f"{type(value).__name__}. Pass identity='...', a text that changes whenever "
                "that part changes."
            )
        return combine("identity", self._identity, qualified_name(type(value)))


def _shorten(entries: dict[_Key, _Value], length: int) -> None:
    """Remove the latest entries of a dictionary that has more than `length`."""
    while len(entries) > length:
        entries.popitem()
