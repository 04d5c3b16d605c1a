"""Files that are written whole or not at all: bytes, text and JSON."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

if sys.platform != "win32":
    import fcntl

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary file to write to, which replaces `path` at the end.

    At any moment, also after a kill, `path` is the complete old file or the complete new one. File
    and folder are synced, so the same holds after a power failure. On an error the temporary file
    is removed and the old file stays. The next write to `path` removes the temporary file of a
    killed process.

    As with `open(path, "w")`, symbolic links are followed, an existing file keeps its mode, and a
    new file gets the mode of the umask. If several threads or processes write to one path, the
    last file stays.

    Args:
        path: path of the file; missing folders are created.

    Raises:
        OSError: `path` is a folder, a device or another special file, or cannot be written.
    """
    target = target_of(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target)
    mode = _mode(target)
    created: list[Path] = []  # known before the file exists, so an interrupt leaves none
    try:
        with _create(target, 0o666 if mode is None else mode, created):
            temporary = created[-1]
            yield temporary
            if mode is not None:
                temporary.chmod(mode)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
    finally:
        for temporary in created:
            temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def target_of(path: str | os.PathLike[str]) -> Path:
    """Return the file that a write to `path` replaces, which is `path` with its links resolved.

    Raises:
        OSError: it exists and is not a regular file or is read-only, or the links form a loop.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return target
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
        raise OSError(
            f"{path} must be a regular file or not exist yet, got {kind}. Write to another path."
        )
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is read-only", str(path))
    return target


def save_bytes(path: str | Path, content: bytes | memoryview) -> Path:
    """Write `content` to `path`, whole or not at all."""
    path = Path(path)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return path


def save_text(path: str | Path, text: str) -> Path:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    return save_bytes(path, text.encode())


def save_json(path: str | Path, plain: Mapping[str, Any]) -> Path:
    """Write `plain` values to `path`, whole or not at all.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    return save_text(path, json.dumps(plain, indent=2, allow_nan=False) + "\n")


def _mode(target: Path) -> int | None:
    """Return the permissions of `target`, or `None` for a missing file."""
    try:
        return target.stat().st_mode & 0o777
    except FileNotFoundError:
        return None


def _create(target: Path, mode: int, created: list[Path]) -> BinaryIO:
    """Create a temporary file next to `target` with `mode` minus the umask, locked until closed.

    Its path is appended to `created` before the file exists.
    """
    while True:
        path = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        created.append(path)
        file = open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
        _hold(file)
        if path.exists():
            return file
        file.close()  # `_remove_stale` removed it between the creation and the lock


def _hold(file: BinaryIO) -> None:
    """Lock `file` until it is closed, so `_remove_stale` keeps it while its writer is alive."""
    if sys.platform == "win32":
        file.close()  # an open file cannot be renamed on Windows
    else:
        with suppress(OSError):  # without locks, `_remove_stale` removes nothing
            fcntl.flock(file, fcntl.LOCK_EX)


def _remove_stale(target: Path) -> None:
    """Remove the temporary files of writers of `target` that were killed."""
    if sys.platform == "win32":
        return
    temporary = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{16}}\.tmp")
    with suppress(PermissionError):  # a folder that may be written but not listed
        for name in filter(temporary.fullmatch, os.listdir(target.parent)):
            with suppress(OSError):  # it has a live writer, is another user's, or is gone by now
                _remove_unlocked(target.with_name(name))


def _remove_unlocked(path: Path) -> None:
    if sys.platform != "win32":
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Sync `folder`, so that the rename of a file in it survives a power failure."""
    if sys.platform == "win32":
        return  # Windows cannot sync folders
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return  # a folder that may be written but not listed
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(handle)
