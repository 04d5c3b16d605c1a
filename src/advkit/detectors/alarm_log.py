"""Log of alarms: a line of JSON for each alarm, in a file or an object with `write`."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import threading
from collections.abc import Sequence
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from typing import Protocol

from torch import Tensor

from advkit.core.archives import digest_of_tensor
from advkit.detectors.alarm import Alarm

if sys.platform != "win32":
    import fcntl


class Writable(Protocol):
    """An object that lines of text can be written to."""

    def write(self, text: str, /) -> object:
        """Write `text`; return the number of characters written, or `None` for all of them."""
        ...


class AlarmLog:
    """Log that appends lines of text to a file or writes them to an object.

    Every line is whole once `append` returns. If `append` raises, an incomplete line is removed, or
    the next text starts on a new line, so that no line continues an incomplete one.

    Args:
        target: a path, or an object with `write(text)`.

    Raises:
        TypeError: `target` is neither.
        OSError: the path cannot be appended to.
    """

    def __init__(self, target: str | os.PathLike[str] | Writable) -> None:
        self._lock = threading.RLock()  # one thread at a time; a target may itself log an alarm
        if isinstance(target, (str, os.PathLike)):
            self._lines: _FileLines | _ObjectLines = _FileLines(Path(target))
        elif callable(getattr(target, "write", None)):
            self._lines = _ObjectLines(target)
        else:
            raise TypeError(
                f"`log` must be a path or have write(text), got {type(target).__name__}."
            )

    def append(self, lines: Sequence[str]) -> None:
        """Write `lines` one by one; other processes may append lines to the same file.

        Raises:
            OSError: a line cannot be written whole; the lines before it are in the log.
        """
        if lines:
            with self._lock:
                self._lines.append(lines)

    def hashed_attributes(self) -> dict[str, object]:
        """Return no attributes, for a hash of the guard: a log does not change predictions."""
        return {}

    def __getstate__(self) -> dict[str, object]:
        """Return all attributes but the lock, which a copy has of its own."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()


class _FileLines:
    """Lines of a file, which is opened for each request so that it may be moved.

    Processes that append to a regular file through this class wait for each other. On Windows they
    do not, and one may continue an incomplete line of another.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened().close()  # raise here rather than at the first alarm

    def append(self, lines: Sequence[str]) -> None:
        with self._opened() as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            if regular and sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            try:
                for line in lines:
                    _append(file, line.encode(), regular=regular)
            except OSError as error:
                error.filename = str(self.path)
                raise

    def _opened(self) -> FileIO:
        special = self.path.exists() and not self.path.is_file()  # a pipe must not be read
        return self.path.open("ab" if special else "ab+", buffering=0)


def _append(file: FileIO, line: bytes, *, regular: bool) -> None:
    """Append a line; if it cannot be written whole, remove the part that was written.

    Raises:
        OSError: the line was not written whole.
    """
    if regular and _ends_incomplete(file):
        line = b"\n" + line
    written = 0
    try:
        while written < len(line):
            count = file.write(line[written:])
            if not count:
                raise OSError(errno.EIO, "the file accepted no bytes")
            written += count
    except BaseException:
        if regular and file.tell() == os.fstat(file.fileno()).st_size:  # nothing was appended since
            file.truncate(file.tell() - written)
        raise


def _ends_incomplete(file: FileIO) -> bool:
    """Return True if the file is not empty and does not end in a newline."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


class _ObjectLines:
    """Lines that are written to an object, which is flushed if it has a `flush`."""

    def __init__(self, target: Writable) -> None:
        self.target = target
        self.incomplete = False  # True if the last line may not be whole

    def append(self, lines: Sequence[str]) -> None:
        begin, self.incomplete = "\n" if self.incomplete else "", True
        for line in lines:
            self._write(begin + line)
            begin = ""
        flush = getattr(self.target, "flush", None)
        if callable(flush):
            flush()
        self.incomplete = False

    def _write(self, text: str) -> None:
        while text:
            count = self.target.write(text)
            if not isinstance(count, int) or isinstance(count, bool):
                return
            if count < 1:
                raise OSError(errno.EIO, f"`log.write` must return a positive count, got {count}.")
            text = text[count:]


def alarm_lines(
    alarm: Alarm, x: Tensor, threshold: float, model: object, detector: object
) -> list[str]:
    """Return a line of JSON for each input of an alarm.

    Args:
        alarm: the `k` inputs that raised an alarm.
        x: the request `(n, *features)` as the caller passed it, for the digests.
        threshold: the greatest anomaly score that raises no alarm.
        model: the guarded model.
        detector: the detector of the guard.
    """
    request = {"time": datetime.now(timezone.utc).isoformat(), "request_id": alarm.request_id}
    about = {"threshold": threshold, "model": repr(model), "detector": type(detector).__name__}
    columns = (
        alarm.rows.tolist(),
        alarm.labels.tolist(),
        alarm.anomaly_score.tolist(),
        map(digest_of_tensor, x[alarm.rows]),
    )
    return [
        json.dumps({**request, "row": r, "label": y, "anomaly_score": s, "sha256": d, **about})
        + "\n"
        for r, y, s, d in zip(*columns, strict=True)
    ]
