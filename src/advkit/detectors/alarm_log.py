"""The log of alarms: a line of JSON for each, in a file or in anything that text is written to."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from typing import Protocol

from advkit.detectors.alarm import Alarm

if sys.platform != "win32":
    import fcntl


class Writable(Protocol):
    """What lines of text can be written to."""

    def write(self, text: str, /) -> object:
        """Take `text`; return how many characters were taken, or `None` for all."""
        ...


class AlarmLog:
    """Lines of text that are appended to a file or written to an object.

    A line is whole once `append` returns. If it raises, a line that was cut is taken back, or the
    next line begins on a new one, so that no line continues a cut one.

    Args:
        target: a path, or an object with a `write` for text.

    Raises:
        TypeError: `target` is neither.
        OSError: nothing can be appended at the path.
    """

    def __init__(self, target: str | os.PathLike[str] | Writable) -> None:
        if isinstance(target, (str, os.PathLike)):
            self._lines: _FileLines | _ObjectLines = _FileLines(Path(target))
        elif callable(getattr(target, "write", None)):
            self._lines = _ObjectLines(target)
        else:
            raise TypeError(
                f"`log` must be a path or have write(text), got {type(target).__name__}"
            )

    def append(self, lines: Sequence[str]) -> None:
        """Write `lines` one by one: other processes may append lines to the same file.

        Raises:
            OSError: a line cannot be written whole; those before it are in the log.
        """
        if lines:
            self._lines.append(lines)


class _FileLines:
    """Lines of a file, which is opened for each request, so that it may be moved away.

    In a regular file, processes that append in this way wait for each other. They do not on
    Windows, where one may continue the line that another has cut.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened().close()  # fails here, not at the first alarm

    def append(self, lines: Sequence[str]) -> None:
        with self._opened() as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            if regular and sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
            try:
                for line in lines:
                    _append(file, line.encode(), regular=regular)
            except OSError as error:
                error.filename = str(self.path)
                raise

    def _opened(self) -> FileIO:
        special = self.path.exists() and not self.path.is_file()  # a pipe is not to be read
        return self.path.open("ab" if special else "ab+", buffering=0)


def _append(file: FileIO, line: bytes, *, regular: bool) -> None:
    """Append a line; where it cannot be written whole, cut off what was written of it.

    Raises:
        OSError: it was not written whole.
    """
    if regular and _ends_in_a_cut_line(file):
        line = b"\n" + line
    written = 0
    try:
        while written < len(line):
            count = file.write(line[written:])
            if not count:
                raise OSError(errno.EIO, "nothing was written")
            written += count
    except BaseException:
        if regular and file.tell() == os.fstat(file.fileno()).st_size:  # no other line follows
            file.truncate(file.tell() - written)
        raise


def _ends_in_a_cut_line(file: FileIO) -> bool:
    """Return True if a file that has content does not end in a newline."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


class _ObjectLines:
    """Lines that are written to an object, and flushed if it has a `flush`."""

    def __init__(self, target: Writable) -> None:
        self.target = target
        self.cut = False  # the last line may not be whole

    def append(self, lines: Sequence[str]) -> None:
        begin, self.cut = "\n" if self.cut else "", True
        for line in lines:
            self._write(begin + line)
            begin = ""
        flush = getattr(self.target, "flush", None)
        if callable(flush):
            flush()
        self.cut = False

    def _write(self, text: str) -> None:
        while text:
            count = self.target.write(text)
            if not isinstance(count, int) or isinstance(count, bool):
                return
            if count < 1:
                raise OSError(errno.EIO, f"log.write returned {count}, so nothing was written")
            text = text[count:]


def alarm_lines(alarm: Alarm, threshold: float, model: object, detector: object) -> list[str]:
    """Return a line of JSON for each input of an alarm."""
    about = {"threshold": threshold, "model": repr(model), "detector": type(detector).__name__}
    columns = (alarm.rows.tolist(), alarm.labels.tolist(), alarm.anomaly_score.tolist())
    time = datetime.now(timezone.utc).isoformat()
    return [
        json.dumps({"time": time, "row": r, "label": y, "anomaly_score": s, **about}) + "\n"
        for r, y, s in zip(*columns, strict=True)
    ]
