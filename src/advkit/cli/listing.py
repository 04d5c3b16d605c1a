"""`advkit attacks`: all attacks with references and parameters, read from their classes."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import textwrap
from typing import Any

from advkit.cli.printing import show
from advkit.cli.specs import known_attacks, unwritable_attacks

_WIDTH = 96  # of the text, in characters
_NAME_WIDTH = 21  # of the longest parameter, init_gradient_queries


def run(_: argparse.Namespace) -> int:
    """Print the listing, and return the exit status."""
    show(listing())
    return 0


def listing() -> str:
    """Return the text of `advkit attacks`."""
    entries = [_entry(name, kind) for name, kind in known_attacks().items()]
    others = unwritable_attacks()
    if others:
        names = ", ".join(others)
        note = f"Only available from Python, since they need more than numbers and words: {names}"
        entries.append(textwrap.fill(note, _WIDTH))
    return "\n\n".join(entries)


def _entry(name: str, kind: type[Any]) -> str:
    doc = inspect.getdoc(kind) or ""
    descriptions = _arguments(doc)
    lines = [f"{name}: {doc.splitlines()[0]}"]
    for field in dataclasses.fields(kind):
        if field.init:
            lines += _parameter(field, descriptions.get(field.name, ""))
    return "\n".join(lines)


def _parameter(field: dataclasses.Field[Any], description: str) -> list[str]:
    required = field.default is dataclasses.MISSING
    default = "required" if required else str(field.default)
    head = f"  {field.name:<{_NAME_WIDTH}} {default:<13} "
    hang = " " * len(head)
    return textwrap.wrap(description, _WIDTH, initial_indent=head, subsequent_indent=hang) or [head]


def _arguments(doc: str) -> dict[str, str]:
    """Return the descriptions in the section `Args:` of a docstring, by name."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.S | re.M)
    body = textwrap.dedent(section.group(1)) if section else ""
    entries = re.findall(r"^(\w+): (.*?)(?=^\w|\Z)", body, re.S | re.M)
    return {name: " ".join(text.split()) for name, text in entries}
