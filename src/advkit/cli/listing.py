"""`advkit attacks`: every attack with its reference and parameters, read off its class."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from typing import Any

from advkit.cli.specs import known_attacks, unwritable_attacks

_WIDTH = 96


def listing() -> str:
    """The text of `advkit attacks`."""
    entries = [_entry(name, kind) for name, kind in known_attacks().items()]
    others = unwritable_attacks()
    if others:
        names = ", ".join(others)
        told = f"From Python only, being made of more than words: {names}"
        entries.append(textwrap.fill(told, _WIDTH))
    return "\n\n".join(entries)


def _entry(name: str, kind: type[Any]) -> str:
    doc = inspect.getdoc(kind) or ""
    told = _arguments(doc)
    lines = [f"{name}: {doc.splitlines()[0]}"]
    for field in dataclasses.fields(kind):
        if field.init:
            lines += _parameter(field, told.get(field.name, ""))
    return "\n".join(lines)


def _parameter(field: dataclasses.Field[Any], told: str) -> list[str]:
    required = field.default is dataclasses.MISSING
    head = f"  {field.name:<13} {'required' if required else field.default!s:<13} "
    hang = " " * len(head)
    return textwrap.wrap(told, _WIDTH, initial_indent=head, subsequent_indent=hang) or [head]


def _arguments(doc: str) -> dict[str, str]:
    """The section `Args:` of a docstring, by name."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.S | re.M)
    body = textwrap.dedent(section.group(1)) if section else ""
    entries = re.findall(r"^(\w+): (.*?)(?=^\w|\Z)", body, re.S | re.M)
    return {name: " ".join(text.split()) for name, text in entries}
