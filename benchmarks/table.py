"""The one table: what each job cost us and the peers, how well it was done, and what it may cost.

    python -m pytest benchmarks --benchmark-json=bench.json
    python -m benchmarks.table bench.json

The first command ends with the table, the second prints it again.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Two runs of the same job on a quiet machine differ by as much in time.
CLOCK = 0.03
COLUMNS = ("success", "distance", "floors", "forward", "backward", "seconds", "mib")
HEADING = ("", "success", "distance", "floors", "forward", "backward", "time", "MiB", "verdict")


@dataclass(frozen=True)
class Figures:
    """What was measured of a job; `None` where it says nothing.

    Attributes:
        success: share of the inputs.
        distance: lower median over the inputs, infinite for a failure.
        floors: time in bare passes of the same batch.
        forward: samples sent forward, for each input.
        backward: samples sent backward, for each input.
        seconds: of the whole job.
        mib: most memory of tensors at once.
        besides: share of the time that is not spent in passes of the net.
    """

    success: float | None = None
    distance: float | None = None
    floors: float | None = None
    forward: float | None = None
    backward: float | None = None
    seconds: float | None = None
    mib: float | None = None
    besides: float | None = None


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes:
        suite: the room.
        job: what was to be done.
        who: did it.
        ours: whether that is advkit.
        figures: what was measured.
        limits: what `success` must at least be, and what the other figures may at most be.
        remark: what else is to be said.
        chance: how much of `success` is luck.
    """

    suite: str
    job: str
    who: str
    ours: bool
    figures: Figures
    limits: Mapping[str, float] = field(default_factory=dict)
    remark: str = ""
    chance: float = 0.0

    @staticmethod
    def of(plain: Mapping[str, Any]) -> Entry:
        """From what `asdict` made of it."""
        return Entry(**{**plain, "figures": Figures(**plain["figures"])})

    def missed(self) -> list[str]:
        """The limits that are not kept, in words."""
        return [words for name, limit in self.limits.items() if (words := self._miss(name, limit))]

    def _miss(self, name: str, limit: float) -> str:
        value = getattr(self.figures, name)
        if value is None:
            return ""
        kept = value >= limit if name == "success" else value <= limit
        return "" if kept else f"{name} {cell(name, value)}, limit {cell(name, limit)}"


ENTRIES: list[Entry] = []  # of this run, for the table at its end


def record(benchmark: Any, entry: Entry) -> None:
    """Keep the entry for the table and for --benchmark-json, and print its figures."""
    ENTRIES.append(entry)
    benchmark.extra_info.setdefault("entries", []).append(asdict(entry))
    said = (f"{n} {cell(n, v)}" for n, v in asdict(entry.figures).items() if v is not None)
    print(f"\n{entry.job}: {', '.join(said)}  {entry.who} {entry.remark}")


def check(entry: Entry) -> None:
    """Raise if a limit is missed."""
    missed = entry.missed()
    assert not missed, f"{entry.who}, {entry.job}: {'; '.join(missed)}"


def beaten(ours: Entry, peers: Iterable[Entry]) -> list[str]:
    """In what the peers are ahead, in words; nothing if they are in nothing."""
    found = []
    for peer in peers:
        if _stronger(peer, ours):
            found.append(f"weaker than {peer.who}")
        a, b = _time(ours), _time(peer)
        if a is not None and b is not None and a > (1 + CLOCK) * b and not peer.remark:
            found.append(f"{100 * (a / b - 1):.0f} % slower than {peer.who}")
    return found


def _stronger(peer: Entry, ours: Entry) -> bool:
    """Whether `peer` succeeds more often, or as often and nearer, to the digits that are shown."""
    theirs, mine = peer.figures.success, ours.figures.success
    if theirs is not None and mine is not None and round(theirs, 3) != round(mine, 3):
        return theirs > mine + ours.chance
    near, far = peer.figures.distance, ours.figures.distance
    return near is not None and far is not None and float(f"{near:.3g}") < float(f"{far:.3g}")


def _time(entry: Entry) -> float | None:
    figures = entry.figures
    return figures.seconds if figures.floors is None else figures.floors


def cell(name: str, value: float | None) -> str:
    """A figure as the table shows it."""
    if value is None:
        return ""
    if math.isinf(value):
        return "inf"
    if name == "success":
        return f"{value:.3f}"
    if name == "besides":
        return f"{100 * value:.1f} %"
    if name == "seconds":
        return duration(value)
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:,.0f} s"


def tables(entries: Sequence[Entry]) -> str:
    """All entries in Markdown: a table for each suite, a block of lines for each job."""
    suites = dict.fromkeys(entry.suite for entry in entries)
    parts = [_suite(name, [e for e in entries if e.suite == name]) for name in suites]
    return "\n\n".join([*parts, *_summary(entries)])


def _suite(name: str, entries: Sequence[Entry]) -> str:
    rows = [HEADING, tuple("---" for _ in HEADING)]
    for job in dict.fromkeys(entry.job for entry in entries):
        rows += _block(job, [entry for entry in entries if entry.job == job])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)
    return "\n".join([f"### {name}", "", *lines])


def _block(job: str, entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """A line that names the job, then ours, then the peers from the fastest on."""
    ours = [entry for entry in entries if entry.ours]
    peers = sorted((e for e in entries if not e.ours), key=lambda e: _time(e) or math.inf)
    lines = [(f"**{job}**", *[""] * (len(HEADING) - 1))]
    lines += [_line(entry, verdict(entry, peers)) for entry in ours]
    return lines + [_line(entry, entry.remark) for entry in peers]


def _line(entry: Entry, said: str) -> tuple[str, ...]:
    figures = (cell(name, getattr(entry.figures, name)) for name in COLUMNS)
    return (entry.who, *figures, said)


def verdict(ours: Entry, peers: Sequence[Entry]) -> str:
    """Whether the limits are kept and the peers are left behind."""
    parts, missed = [], ours.missed()
    if missed:
        parts.append(f"MISSED: {'; '.join(missed)}")
    elif ours.limits:
        limits = ", ".join(f"{name} {cell(name, limit)}" for name, limit in ours.limits.items())
        parts.append(f"limits kept ({limits})")
    if peers:
        parts += beaten(ours, peers) or ["no peer stronger or faster"]
    return "; ".join([*parts, *([ours.remark] if ours.remark else [])])


def _summary(entries: Sequence[Entry]) -> list[str]:
    """One sentence on the limits and one on the peers."""
    ours = [entry for entry in entries if entry.ours]
    held = [entry for entry in ours if entry.limits]
    kept = sum(not entry.missed() for entry in held)
    peers = {e.job: [p for p in entries if p.job == e.job and not p.ours] for e in ours}
    met = [entry for entry in ours if peers[entry.job]]
    ahead = sum(not beaten(entry, peers[entry.job]) for entry in met)
    said = []
    if held:
        said.append(f"{kept} of {len(held)} jobs with limits keep them.")
    if met:
        said.append(
            f"In {ahead} of {len(met)} jobs that peers do as well, none of them is stronger or "
            "faster."
        )
    return [" ".join(said)] if said else []


def main(path: str) -> None:
    """Print the table of a file that --benchmark-json has written."""
    found = json.loads(Path(path).read_text(encoding="utf-8"))["benchmarks"]
    entries = [e for bench in found for e in bench["extra_info"].get("entries", [])]
    print(tables([Entry.of(entry) for entry in entries]))


if __name__ == "__main__":
    main(sys.argv[1])
