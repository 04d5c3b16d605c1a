"""Tables as cells and as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from advkit.eval.accuracy import Rate

WIDTH = 100  # of the text, in characters
_LEAST = 32  # of a first column that holds long names, whatever the others take


class Table(NamedTuple):
    """Cells under a heading; a line break in a cell stays one.

    Attributes:
        title: the kind, and what its figures say.
        heading: a name for each column.
        rows: one for each attack.
        summary: rows over several attacks.
        baselines: rows of what no attack did; they stand between the others.
        note: a sentence below all rows.
    """

    title: str
    heading: tuple[str, ...]
    rows: list[tuple[str, ...]]
    summary: list[tuple[str, ...]]
    baselines: Sequence[tuple[str, ...]] = ()
    note: str = ""


def share(rate: Rate) -> str:
    """A rate in words, `-` for a share of nothing."""
    return str(rate) if rate.total else "-"


def percent(rate: Rate) -> str:
    """A rate in percent, `-` for a share of nothing."""
    return f"{100 * float(rate):.2f}" if rate.total else "-"


def length(distance: float | None) -> str:
    """A distance in words, `-` for none."""
    return "-" if distance is None else f"{distance:.4g}"


def mean(value: float | None) -> str:
    """A mean in words, `-` for a mean of nothing."""
    return "-" if value is None else f"{value:.1f}"


def counted(count: int, word: str) -> str:
    """Return how many there are of what `word` names in the singular."""
    return f"{count:,} {word}" + "s" * (count != 1)


def mebibytes(size: int) -> str:
    """Return a number of bytes in MiB."""
    return f"{size / 2**20:.2f}"


def split(table: Table) -> list[Table]:
    """`table` in parts of all rows and some columns that fit the `WIDTH`; the first is in each."""
    widths = [max(_broad(row[i]) for row in _rows(table)) for i in range(len(table.heading))]
    room = WIDTH - min(widths[0], _LEAST)
    parts: list[list[int]] = [[]]
    for i, width in enumerate(widths[1:], 1):
        if parts[-1] and sum(2 + widths[j] for j in parts[-1]) + 2 + width > room:
            parts.append([])
        parts[-1].append(i)
    first, *others = (_columns(table, [0, *part]) for part in parts)
    return [first, *(part._replace(title=f"{table.title} (continued)") for part in others)]


def _columns(table: Table, wanted: Sequence[int]) -> Table:
    def cut(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        return [tuple(row[i] for i in wanted) for row in rows]

    (heading,) = cut([table.heading])
    return table._replace(
        heading=heading,
        rows=cut(table.rows),
        summary=cut(table.summary),
        baselines=cut(table.baselines),
    )


def lines(tables: Sequence[Table]) -> list[str]:
    """The tables one below the other, their columns of the same widths.

    The first column is to the left, the others are to the right. Names that would make the text
    wider than `WIDTH` are broken.
    """
    cells = [row for table in tables for row in _rows(table)]
    widths = [max(_broad(row[i]) for row in cells) for i in range(len(cells[0]))]
    room = WIDTH - sum(2 + width for width in widths[1:])
    widths[0] = min(widths[0], max(room, _LEAST))
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    found = []
    for table in tables:
        found += ["", table.title, *_set(table.heading, widths, last=True), rule]
        found += [line for row in table.rows for line in _set(row, widths)]
        below = [*table.baselines, *table.summary]
        found += [rule] * bool(below)
        found += [line for row in below for line in _set(row, widths)]
        found += textwrap.wrap(table.note, WIDTH)
    return found[1:]


def separate(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Text of tables whose columns need not match, split where they are wide, and of `notes`."""
    parts = [part for table in tables for part in split(table)]
    found = [line for part in parts for line in ["", *lines([part])]]
    return "\n".join([*found[1:], "", *wrapped(notes)])


def wrapped(notes: Sequence[str]) -> list[str]:
    """Each of `notes` broken into lines of at most `WIDTH` characters."""
    return [textwrap.fill(note, WIDTH) for note in notes]


def _rows(table: Table) -> list[tuple[str, ...]]:
    return [table.heading, *table.rows, *table.baselines, *table.summary]


def _broad(cell: str) -> int:
    return max(map(len, cell.split("\n")))


def _set(row: tuple[str, ...], widths: list[int], *, last: bool = False) -> list[str]:
    """The lines of a row: cells of fewer lines than others are at the first, or the `last`."""
    label = textwrap.wrap(row[0], widths[0], subsequent_indent="    ", break_on_hyphens=False)
    columns = [label, *(cell.split("\n") for cell in row[1:])]
    high = max(map(len, columns))
    filled = [[""] * (high - len(c)) + c if last else c + [""] * (high - len(c)) for c in columns]
    return [
        "  ".join(
            part.rjust(width) if i else part.ljust(width)
            for i, (part, width) in enumerate(zip(parts, widths, strict=True))
        ).rstrip()
        for parts in zip(*filled, strict=True)
    ]
