"""Progress on standard error: a bar, or the status of a long evaluation."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TextIO

from advkit.core.extras import require

# Seconds before the first line in a log; shorter work prints nothing.
FIRST_LINE = 10.0
# Seconds between the first two lines. Each later pause is twice as long: the first minutes show
# whether the work runs at all, and a day of work leaves 300 lines in a log and not 3,000.
FIRST_PAUSE = 30.0
# Seconds of the longest pause between two lines.
MAX_PAUSE = 300.0
# Line on a terminal: a bar of ten characters, since the text needs most of the width.
_BAR = "{l_bar}{bar:10}| {elapsed}{postfix}"
_UNITS = (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))


@contextmanager
def progress_bar(label: str, total: int | None, show: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error if `show`, and give a function that advances it.

    Raises:
        ImportError: `show` is true and tqdm is missing. The message names the extra with it.
    """
    if not show:
        yield lambda _: None
        return
    tqdm = require("tqdm.auto", extra="report", needed_by="progress").tqdm
    with tqdm(total=total, desc=label) as bar:

        def advance(amount: int) -> None:
            bar.update(amount)

        yield advance


@contextmanager
def status_line(
    total: int | None,
    show: bool,
    *,
    label: str = "evaluate",
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Status]:
    """Show the status of long work on standard error if `show`, and give the object to update.

    A terminal shows one line, which is rewritten. Anything else, such as a log file, gets plain
    lines: the first one after `FIRST_LINE` seconds, then one after pauses that double from
    `FIRST_PAUSE` to `MAX_PAUSE` seconds, and one at the end. Work that ends before the first line
    prints nothing. Lines are written by `Status.update`, without a thread, so that a pause lasts
    until the first update after it. Each line is written in one call, so that the lines of several
    processes do not mix.

    The work never fails because of its status: after the first error of the stream, nothing more
    is shown.

    Args:
        total: number of inputs, `None` if unknown.
        show: whether anything is shown.
        label: beginning of each line, such as `"shard 0/4"`.
        stream: stream to write to; `None` for standard error.
        clock: function that returns the time in seconds and never goes back.

    Raises:
        ImportError: `show` is true, the stream is a terminal and tqdm is missing. The message
            names the extra with it. Plain lines need no extra.
    """
    stream = sys.stderr if stream is None else stream
    if not show or stream is None:  # standard error is None in a Windows process without a console
        yield Status(total, None, clock)
        return
    status = Status(total, _display(label, stream), clock)
    try:
        yield status
    finally:
        status.close()


class Status:
    """Status of long work, shown as one line on a terminal or as plain lines in a log.

    Args:
        total: number of inputs, `None` if unknown.
        display: the display of each state; `None` shows nothing.
        clock: function that returns the time in seconds.
    """

    def __init__(
        self, total: int | None, display: _Display | None, clock: Callable[[], float]
    ) -> None:
        self._total, self._display, self._clock = total, display, clock
        self._begin = clock()
        self._first: tuple[float, float] | None = None  # time and share of the first known share
        self._latest: _State | None = None

    def update(self, done: int, *, share: float, text: str) -> None:
        """Show how far the work is.

        The time left is estimated from the work and the time since the first update with a known
        share. The first update of a resumed run therefore comes before any new work, with the
        share that was read from its file.

        Args:
            done: number of complete inputs.
            share: share of all work that is done, in [0, 1]; NaN if unknown.
            text: further text, such as the current attack and the robust accuracy so far.
        """
        if self._display is None:
            return
        now = self._clock()
        if self._first is None and not math.isnan(share):
            self._first = now, share
        self._latest = _State(
            self._inputs(done), text, share, now - self._begin, self._seconds_left(now, share)
        )
        self._display.show(self._latest)

    def close(self) -> None:
        """Show the last state, with the time that the work has taken."""
        if self._display is not None and self._latest is not None:
            elapsed = self._clock() - self._begin
            self._display.close(self._latest._replace(elapsed=elapsed))

    def _inputs(self, done: int) -> str:
        return f"{done:,} inputs" if self._total is None else f"{done:,} of {self._total:,} inputs"

    def _seconds_left(self, now: float, share: float) -> float | None:
        """Return the estimated time left, `None` if unknown; `share` may be NaN."""
        if self._first is None:
            return None
        begin, first = self._first
        if not (now > begin and share > first):
            return None
        return (now - begin) * (1 - share) / (share - first)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether `stream` is an open terminal, on which a line can be rewritten."""
    try:
        return stream is not None and stream.isatty()
    except Exception:  # noqa: BLE001 - a closed stream, or one of the user's own
        return False


def format_duration(seconds: float) -> str:
    """Format a duration in its two largest units, such as `"3 min 20 s"`."""
    whole = round(seconds)
    for unit, size, small_unit, small_size in _UNITS:
        if whole >= size:
            return f"{whole // size:,} {unit} {whole % size // small_size} {small_unit}"
    return f"{whole} s"


class _State(NamedTuple):
    """State of the work at an update.

    Attributes:
        inputs: number of complete inputs, in words.
        text: text of the caller.
        share: share of all work that is done; NaN if unknown.
        elapsed: seconds since the beginning.
        left: estimated seconds until the end, `None` if unknown.
    """

    inputs: str
    text: str
    share: float
    elapsed: float
    left: float | None

    @property
    def time_left(self) -> str:
        """Estimated time until the end, in words; empty if unknown."""
        return "" if self.left is None else f"{format_duration(self.left)} left"


class _Display(Protocol):
    def show(self, state: _State) -> None:
        """Show a state of the work."""

    def close(self, state: _State) -> None:
        """Show the last state of the work."""


def _display(label: str, stream: TextIO) -> _Display:
    """Return the display that suits `stream`."""
    if not is_terminal(stream):
        return _Lines(label, _SafeStream(stream))
    tqdm = require("tqdm.auto", extra="report", needed_by="progress").tqdm
    return _Bar(label, _SafeStream(stream), tqdm)


class _Lines:
    """Plain lines with pauses between them, for logs."""

    def __init__(self, label: str, stream: _SafeStream) -> None:
        self._label, self._stream = label, stream
        self._due, self._pause = FIRST_LINE, FIRST_PAUSE

    def show(self, state: _State) -> None:
        """Write a line if one is due; the last line, of complete work, is that of `close`."""
        if state.elapsed < self._due or state.share >= 1:
            return
        self._write(state.inputs, state.text, state.time_left)
        self._due = state.elapsed + self._pause
        self._pause = min(2 * self._pause, MAX_PAUSE)

    def close(self, state: _State) -> None:
        """Write the last line, unless the work was short."""
        if state.elapsed >= FIRST_LINE:
            self._write(state.inputs, state.text, f"after {format_duration(state.elapsed)}")

    def _write(self, *parts: str) -> None:
        self._stream.write(f"{self._label}: {_joined(*parts)}\n")
        self._stream.flush()


class _Bar:
    """Line of tqdm, which is rewritten.

    The time left stands in front of the longer texts, since tqdm cuts the end of a line that is
    wider than the terminal.
    """

    def __init__(self, label: str, stream: _SafeStream, tqdm: Callable[..., Any]) -> None:
        self._label, self._stream, self._tqdm = label, stream, tqdm
        self._bar: Any = None

    def show(self, state: _State) -> None:
        """Rewrite the line, which tqdm limits to ten times in a second."""
        share, total = (0.0, None) if math.isnan(state.share) else (state.share, 1.0)
        text = _joined(state.time_left, state.inputs, state.text)
        if self._bar is None:
            self._bar = self._create(share, total, text)
        self._bar.total = total
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(share - self._bar.n)

    def close(self, state: _State) -> None:
        """Rewrite the line for the last time, and leave it on the terminal."""
        self._bar.set_postfix_str(_joined(state.inputs, state.text), refresh=False)
        self._bar.close()

    def _create(self, share: float, total: float | None, text: str) -> Any:
        return self._tqdm(
            initial=share,
            total=total,
            postfix=text,
            desc=self._label,
            file=self._stream,
            bar_format=_BAR,
            dynamic_ncols=True,  # tqdm measures only standard error and output by itself
            miniters=0,  # also the text may have changed
        )


def _joined(*parts: str) -> str:
    """Join the parts that are not empty, in one line without control characters."""
    line = ", ".join(part for part in parts if part)
    return "".join(character if character.isprintable() else " " for character in line)


class _SafeStream:
    """Stream that drops everything after its first error.

    Args:
        stream: stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._broken = False
        self.encoding = getattr(stream, "encoding", None) or "ascii"  # tqdm draws the bar in it

    def write(self, text: str) -> None:
        """Write `text` in one call."""
        self._attempt(lambda: self._stream.write(text))

    def flush(self) -> None:
        """Flush the stream."""
        self._attempt(self._stream.flush)

    def fileno(self) -> int:
        """Return the file descriptor, of which tqdm reads the width of the terminal."""
        return self._stream.fileno()

    def _attempt(self, action: Callable[[], object]) -> None:
        if self._broken:
            return
        try:
            action()
        except Exception:  # noqa: BLE001 - work must not fail because of its status
            self._broken = True
