"""The log of alarms: a line of JSON for each, in a file or in anything that text is written to."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from advkit.detectors.alarm import Alarm


class Writable(Protocol):
    """What lines of text can be written to."""

    def write(self, text: str, /) -> object:
        """Take `text`, a whole line."""
        ...


class AlarmLog:
    """Lines of text that are appended to a file or written to an object.

    Args:
        target: a path, or an object with a `write` for text.

    Raises:
        TypeError: `target` is neither.
        OSError: nothing can be appended at the path.
    """

    def __init__(self, target: str | os.PathLike[str] | Writable) -> None:
        self._target = _checked(target)

    def append(self, lines: Sequence[str]) -> None:
        """Write `lines` one by one: other processes may append lines to the same file."""
        if not lines:
            return
        if not isinstance(self._target, Path):
            for line in lines:
                self._target.write(line)
            return
        with self._target.open("ab", buffering=0) as file:
            for line in lines:
                file.write(line.encode())


def alarm_lines(alarm: Alarm, threshold: float, model: object, detector: object) -> list[str]:
    """Return a line of JSON for each input of an alarm."""
    about = {"threshold": threshold, "model": repr(model), "detector": type(detector).__name__}
    columns = (alarm.rows.tolist(), alarm.labels.tolist(), alarm.suspicion.tolist())
    time = datetime.now(timezone.utc).isoformat()
    return [
        json.dumps({"time": time, "row": r, "label": y, "suspicion": s, **about}) + "\n"
        for r, y, s in zip(*columns, strict=True)
    ]


def _checked(target: str | os.PathLike[str] | Writable) -> Path | Writable:
    """Return a path to which something can be appended, or the object as it is."""
    if isinstance(target, (str, os.PathLike)):
        path = Path(target)
        with path.open("ab"):  # fails here, not at the first alarm
            return path
    if not callable(getattr(target, "write", None)):
        raise TypeError(f"log must be a path or have write(text), got {type(target).__name__}")
    return target
