"""Tables as cells and as lines of text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from advkit.eval.accuracy import Rate

# Characters in a line of text, as in the source code.
WIDTH = 100
# Characters that the first column keeps for long names, at the expense of the other columns.
MIN_NAME_WIDTH = 32


class Table(NamedTuple):
    """Cells below a heading; line breaks within a cell are kept.

    Attributes:
        title: the kind of table, and the meaning of its figures.
        heading: a name for each column.
        rows: one for each attack.
        summary: rows over several attacks.
        baselines: rows of baselines without an attack, between `rows` and `summary`.
        note: a sentence below all rows.
    """

    title: str
    heading: tuple[str, ...]
    rows: list[tuple[str, ...]]
    summary: list[tuple[str, ...]]
    baselines: Sequence[tuple[str, ...]] = ()
    note: str = ""


def format_rate(rate: Rate) -> str:
    """Format a rate with its counts, `-` for a rate of no inputs."""
    return str(rate) if rate.total else "-"


def format_percent(rate: Rate) -> str:
    """Format a rate in percent, `-` for a rate of no inputs."""
    return f"{100 * float(rate):.2f}" if rate.total else "-"


def format_distance(distance: float | None) -> str:
    """Format a distance, `-` for `None`."""
    return "-" if distance is None else f"{distance:.4g}"


def format_mean(value: float | None) -> str:
    """Format a mean, `-` for `None`."""
    return "-" if value is None else f"{value:.1f}"


def format_score(score: float) -> str:
    """Format a score in [0, 1], `-` for NaN."""
    return "-" if math.isnan(score) else f"{score:.3f}"


def format_count(count: int, noun: str) -> str:
    """Format a count with its `noun`, given in the singular."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def format_mebibytes(size: int) -> str:
    """Format a number of bytes in MiB."""
    return f"{size / 2**20:.2f}"


def split(table: Table) -> list[Table]:
    """Split `table` into parts of all rows and some columns that fit the `WIDTH`.

    The first column is in each part.
    """
    widths = [max(_cell_width(row[i]) for row in _rows(table)) for i in range(len(table.heading))]
    available = WIDTH - min(widths[0], MIN_NAME_WIDTH)
    parts: list[list[int]] = [[]]
    for i, width in enumerate(widths[1:], 1):
        if parts[-1] and sum(2 + widths[j] for j in parts[-1]) + 2 + width > available:
            parts.append([])
        parts[-1].append(i)
    first, *others = (_select_columns(table, [0, *part]) for part in parts)
    return [first, *(part._replace(title=f"{table.title} (continued)") for part in others)]


def _select_columns(table: Table, columns: Sequence[int]) -> Table:
    def select(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        return [tuple(row[i] for i in columns) for row in rows]

    (heading,) = select([table.heading])
    return table._replace(
        heading=heading,
        rows=select(table.rows),
        summary=select(table.summary),
        baselines=select(table.baselines),
    )


def format_tables(tables: Sequence[Table]) -> list[str]:
    """Format tables one below the other, with columns of the same widths, as lines of text.

    The first column is aligned to the left, the others to the right. Names that would make the
    text wider than `WIDTH` are broken.
    """
    cells = [row for table in tables for row in _rows(table)]
    widths = [max(_cell_width(row[i]) for row in cells) for i in range(len(cells[0]))]
    available = WIDTH - sum(2 + width for width in widths[1:])
    widths[0] = min(widths[0], max(available, MIN_NAME_WIDTH))
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    lines = []
    for table in tables:
        lines += ["", table.title, *_format_row(table.heading, widths, align_bottom=True), rule]
        lines += [line for row in table.rows for line in _format_row(row, widths)]
        below = [*table.baselines, *table.summary]
        lines += [rule] * bool(below)
        lines += [line for row in below for line in _format_row(row, widths)]
        lines += textwrap.wrap(table.note, WIDTH)
    return lines[1:]


def separate(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Format tables with columns of their own widths, split where they are wide, and `notes`."""
    parts = [part for table in tables for part in split(table)]
    lines = [line for part in parts for line in ["", *format_tables([part])]]
    return "\n".join([*lines[1:], "", *wrap_notes(notes)])


def wrap_notes(notes: Sequence[str]) -> list[str]:
    """Break each of `notes` into lines of at most `WIDTH` characters."""
    return [textwrap.fill(note, WIDTH) for note in notes]


def _rows(table: Table) -> list[tuple[str, ...]]:
    return [table.heading, *table.rows, *table.baselines, *table.summary]


def _cell_width(cell: str) -> int:
    return max(map(len, cell.split("\n")))


def _format_row(
    row: tuple[str, ...], widths: list[int], *, align_bottom: bool = False
) -> list[str]:
    """Return the lines of a row; cells of fewer lines are at its top, or with `align_bottom` below.

    The first cell is broken into lines that fit its column.
    """
    name = textwrap.wrap(row[0], widths[0], subsequent_indent="    ", break_on_hyphens=False)
    columns = [name, *(cell.split("\n") for cell in row[1:])]
    height = max(map(len, columns))
    filled = [
        [""] * (height - len(cell)) + cell if align_bottom else cell + [""] * (height - len(cell))
        for cell in columns
    ]
    return [
        "  ".join(
            part.rjust(width) if i else part.ljust(width)
            for i, (part, width) in enumerate(zip(parts, widths, strict=True))
        ).rstrip()
        for parts in zip(*filled, strict=True)
    ]
