"""The output files of a command, with a record of those that are written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from advkit.cli.errors import UsageError

_Stamp = tuple[int, int, int]


class Outputs:
    """Output files of a command; its text names the files that are new.

    The text depends on the files themselves, not on a record of the writes, since an interrupt can
    come between a write and its record.

    Example:
        >>> print(Outputs())
        nothing saved
    """

    def __init__(self) -> None:
        self._before: dict[Path, _Stamp | None] = {}
        self._store: str | None = None

    def keep(self, store: str | None) -> None:
        """Name the store that keeps the results so far; `None` for no store."""
        self._store = store

    def expect(self, *paths: Path) -> None:
        """Store the states of `paths` just before they are written."""
        self._before = {path: _stamp(path) for path in paths}

    def __str__(self) -> str:
        new = [p for p, before in self._before.items() if _stamp(p) not in (before, None)]
        if not new and self._store is not None:
            return f"no report saved; {self._store} keeps the units of work that are complete"
        if not new:
            return "nothing saved"
        missing = [path for path in self._before if path not in new]
        return f"saved {listed(new)}" + (f" but not {listed(missing)}" if missing else "")


def check_apart(
    new: Iterable[tuple[str, Path]], read: Iterable[tuple[str, Path]], store: str | None = None
) -> None:
    """Raise if a file to write is one that is read, belongs to the store, or is written twice.

    Args:
        new: option and path of each file to write.
        read: option and path of each file that must stay.
        store: folder of the store, `None` for none.

    Raises:
        UsageError: the file would be lost.
    """
    known = {_real(path): option for option, path in read}
    for option, path in new:
        real = _real(path)
        inside = store is not None and Path(real).is_relative_to(_real(store))
        other = "the store" if inside else known.get(real)
        if other is not None:
            raise UsageError(f"{option} must be another file than that of {other}, got {path}.")
        known[real] = option


def _real(path: str | Path) -> str:
    """Return a path with its links resolved; one that cannot exist is returned as it is."""
    try:
        return os.path.realpath(path)
    except ValueError:  # of a null byte, which the check of its own option reports
        return str(path)


def _stamp(path: Path) -> _Stamp | None:
    """Return the data that identifies the state of a file, or `None` for a missing file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def listed(paths: Sequence[Path]) -> str:
    """Return the paths as text: "a", "a and b", or "a, b and c"."""
    *first, last = map(str, paths)
    return f"{', '.join(first)} and {last}" if first else last
