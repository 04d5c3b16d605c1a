"""The files that a command writes, and which of them it has written."""

from __future__ import annotations

from pathlib import Path

_Stamp = tuple[int, int, int]


class Outputs:
    """Files that are about to be written. Text that says which of them are new.

    The files themselves are looked at, not what was done so far: between the end of a write and a
    note of it there is time for an interrupt.

    Example:
        >>> print(Outputs())
        nothing saved
    """

    def __init__(self) -> None:
        self._before: dict[Path, _Stamp | None] = {}

    def expect(self, *paths: Path) -> None:
        """Remember `paths` as they are now, just before they are written."""
        self._before = {path: _stamp(path) for path in paths}

    def __str__(self) -> str:
        new = [p for p, before in self._before.items() if _stamp(p) not in (before, None)]
        if not new:
            return "nothing saved"
        missing = [path for path in self._before if path not in new]
        return f"saved {_listed(new)}" + (f" but not {_listed(missing)}" if missing else "")


def _stamp(path: Path) -> _Stamp | None:
    """Return what differs between two states of a file, `None` for a missing file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _listed(paths: list[Path]) -> str:
    return " and ".join(map(str, paths))
