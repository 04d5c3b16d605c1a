"""A lock on a file that two runs must not write alternately."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from advkit.core.files import target_of

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: int) -> None:
        # lockf, because a worker process of a loader keeps a flock after its parent was killed
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


_held: set[Path] = set()  # by this process; the system's lock does not distinguish its threads
_held_guard = threading.Lock()


@contextmanager
def locked(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Lock the checkpoint at `path` against all other runs; `None` locks nothing.

    It is a lock of the operating system on a file `.NAME.lock` in the folder of the checkpoint. It
    is released when the process ends, in whatever way.

    Raises:
        RuntimeError: another thread or process holds the lock.
        OSError: `path` is a special file, or the lock cannot be created.
    """
    if path is None:
        yield
        return
    target = target_of(path)
    lock = target.with_name(f".{target.name}.lock")
    with _held_guard:
        if lock in _held:
            raise _taken(path)
        _held.add(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = _open_locked(lock, path)
        try:
            yield
        finally:
            with suppress(OSError):  # Windows does not remove open files
                lock.unlink()
            os.close(handle)
    finally:
        with _held_guard:
            _held.remove(lock)


def _open_locked(lock: Path, path: str | os.PathLike[str]) -> int:
    """Open and lock the file `lock`; try again if its last holder has just removed the file."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _try_lock(handle, path)
            if lock.exists() and os.path.samestat(os.fstat(handle), lock.stat()):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _try_lock(handle: int, path: str | os.PathLike[str]) -> None:
    try:
        _lock(handle)
    except (BlockingIOError, PermissionError) as error:
        raise _taken(path) from error
    except OSError as error:
        warnings.warn(
            f"checkpoint {os.fspath(path)} cannot be locked ({error.strerror}). Make sure that no "
            "other run writes to it.",
            stacklevel=2,
        )


def _taken(path: str | os.PathLike[str]) -> RuntimeError:
    return RuntimeError(
        f"`checkpoint` must belong to one run at a time, got {os.fspath(path)}, which another run "
        "is writing. Wait for that run to end, or pass another checkpoint."
    )
