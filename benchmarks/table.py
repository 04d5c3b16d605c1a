"""Table of all benchmarks: result and cost of each job for advkit and its peers, and limits.

    python -m pytest benchmarks --benchmark-json=bench.json
    python -m benchmarks.table bench.json

The first command ends with the table, the second prints it again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Relative difference in time between two runs of the same job on an idle machine.
TIME_TOLERANCE = 0.03
COLUMNS = ("success", "distance", "passes", "forward", "backward", "seconds", "mib")
HEADING = ("", "success", "distance", "passes", "forward", "backward", "time", "MiB", "comparison")


@dataclass(frozen=True)
class Figures:
    """Measurements of a job; `None` for a figure that does not apply.

    Attributes:
        success: attack success rate.
        distance: lower median over the inputs, infinite for a failure.
        passes: time in forward and backward passes of the same batch, timed in the same run.
        forward: forward passes of a sample, for each input.
        backward: backward passes of a sample, for each input.
        seconds: time of the whole job.
        mib: peak memory of tensors in MiB.
        overhead: share of the time outside the passes of the net.
    """

    success: float | None = None
    distance: float | None = None
    passes: float | None = None
    forward: float | None = None
    backward: float | None = None
    seconds: float | None = None
    mib: float | None = None
    overhead: float | None = None


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes:
        suite: name of the table.
        job: the job that was measured.
        name: implementation that was measured.
        ours: true for advkit, false for a peer.
        figures: the measurements.
        limits: the minimum of `success`, and the maxima of other figures.
        remark: further text for the table.
        chance: random variation of `success`.
    """

    suite: str
    job: str
    name: str
    ours: bool
    figures: Figures
    limits: Mapping[str, float] = field(default_factory=dict)
    remark: str = ""
    chance: float = 0.0

    @staticmethod
    def of(plain: Mapping[str, Any]) -> Entry:
        """Restore an entry from the result of `asdict`."""
        return Entry(**{**plain, "figures": Figures(**plain["figures"])})

    def missed(self) -> list[str]:
        """Describe the limits that are exceeded."""
        return [text for name, limit in self.limits.items() if (text := self._miss(name, limit))]

    def _miss(self, name: str, limit: float) -> str:
        value = getattr(self.figures, name)
        if value is None:
            return ""
        kept = value >= limit if name == "success" else value <= limit
        return "" if kept else f"{name} {cell(name, value)}, limit {cell(name, limit)}"


ENTRIES: list[Entry] = []  # entries of this run, for the table at its end


def record(benchmark: Any, entry: Entry) -> None:
    """Store the entry for the table and for --benchmark-json, and print its figures."""
    ENTRIES.append(entry)
    benchmark.extra_info.setdefault("entries", []).append(asdict(entry))
    shown = (f"{n} {cell(n, v)}" for n, v in asdict(entry.figures).items() if v is not None)
    print(f"\n{entry.job}: {', '.join(shown)}  {entry.name} {entry.remark}")


def check(entry: Entry) -> None:
    """Raise an `AssertionError` if a limit is exceeded."""
    missed = entry.missed()
    assert not missed, f"{entry.name}, {entry.job}: {'; '.join(missed)}"


def advantages(ours: Entry, peers: Iterable[Entry]) -> list[str]:
    """Describe in what the peers are better than `ours`; empty if they are better in nothing."""
    texts = []
    for peer in peers:
        if _stronger(peer, ours):
            texts.append(f"weaker than {peer.name}")
        a, b = _time(ours), _time(peer)
        if a is not None and b is not None and a > (1 + TIME_TOLERANCE) * b and not peer.remark:
            texts.append(f"{100 * (a / b - 1):.0f} % slower than {peer.name}")
    return texts


def _stronger(peer: Entry, ours: Entry) -> bool:
    """Return true if `peer` has a higher success rate, or an equal one and a smaller distance.

    Figures are compared to the digits that the table shows.
    """
    theirs, mine = peer.figures.success, ours.figures.success
    if theirs is not None and mine is not None and round(theirs, 3) != round(mine, 3):
        return theirs > mine + ours.chance
    near, far = peer.figures.distance, ours.figures.distance
    return near is not None and far is not None and float(f"{near:.3g}") < float(f"{far:.3g}")


def _time(entry: Entry) -> float | None:
    figures = entry.figures
    return figures.seconds if figures.passes is None else figures.passes


def cell(name: str, value: float | None) -> str:
    """Format a figure for the table."""
    if value is None:
        return ""
    if math.isinf(value):
        return "inf"
    if name == "success":
        return f"{value:.3f}"
    if name == "overhead":
        return f"{100 * value:.1f} %"
    if name == "seconds":
        return duration(value)
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Format seconds in a suitable unit."""
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:,.0f} s"


def tables(entries: Sequence[Entry]) -> str:
    """Format entries in Markdown: a table for each suite, a block of lines for each job."""
    suites = dict.fromkeys(entry.suite for entry in entries)
    parts = [_suite(name, [e for e in entries if e.suite == name]) for name in suites]
    return "\n\n".join([*parts, *_totals(entries)])


def _suite(name: str, entries: Sequence[Entry]) -> str:
    rows = [HEADING, tuple("---" for _ in HEADING)]
    for job in dict.fromkeys(entry.job for entry in entries):
        rows += _block(job, [entry for entry in entries if entry.job == job])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)
    return "\n".join([f"### {name}", "", *lines])


def _block(job: str, entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """Return a line with the job, then those of advkit, then those of peers by time."""
    ours = [entry for entry in entries if entry.ours]
    peers = sorted((e for e in entries if not e.ours), key=lambda e: _time(e) or math.inf)
    lines = [(f"**{job}**", *[""] * (len(HEADING) - 1))]
    lines += [_line(entry, comparison(entry, peers)) for entry in ours]
    return lines + [_line(entry, entry.remark) for entry in peers]


def _line(entry: Entry, text: str) -> tuple[str, ...]:
    figures = (cell(name, getattr(entry.figures, name)) for name in COLUMNS)
    return (entry.name, *figures, text)


def comparison(ours: Entry, peers: Sequence[Entry]) -> str:
    """Describe whether limits are kept, and in what peers are better."""
    parts, missed = [], ours.missed()
    if missed:
        parts.append(f"MISSED: {'; '.join(missed)}")
    elif ours.limits:
        limits = ", ".join(f"{name} {cell(name, limit)}" for name, limit in ours.limits.items())
        parts.append(f"limits kept ({limits})")
    if peers:
        parts += advantages(ours, peers) or ["no peer is stronger or faster"]
    return "; ".join([*parts, *([ours.remark] if ours.remark else [])])


def _totals(entries: Sequence[Entry]) -> list[str]:
    """Return a sentence on the limits and one on the peers."""
    ours = [entry for entry in entries if entry.ours]
    limited = [entry for entry in ours if entry.limits]
    kept = sum(not entry.missed() for entry in limited)
    peers = {e.job: [p for p in entries if p.job == e.job and not p.ours] for e in ours}
    compared = [entry for entry in ours if peers[entry.job]]
    ahead = sum(not advantages(entry, peers[entry.job]) for entry in compared)
    sentences = []
    if limited:
        sentences.append(f"{kept} of {len(limited)} jobs with limits keep their limits.")
    if compared:
        sentences.append(
            f"In {ahead} of {len(compared)} jobs with peers, no peer is stronger or faster."
        )
    return [" ".join(sentences)] if sentences else []


def main() -> None:
    """Print the table of a file that --benchmark-json wrote."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, help="file that --benchmark-json wrote")
    benchmarks = json.loads(parser.parse_args().json.read_text(encoding="utf-8"))["benchmarks"]
    entries = [e for bench in benchmarks for e in bench["extra_info"].get("entries", [])]
    print(tables([Entry.of(entry) for entry in entries]))


if __name__ == "__main__":
    main()
