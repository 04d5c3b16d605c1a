"""The lock on a checkpoint."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from advkit.core import file_lock
from advkit.core.file_lock import locked

IN_USE = "`checkpoint` must belong to one run at a time, got .*net.pt, .* another checkpoint.$"


def take(path):
    with locked(path):
        pass


def tried_elsewhere(path):
    """The last line of the errors of another process that tries to lock `path`."""
    code = f"from advkit.core.file_lock import locked\nwith locked({str(path)!r}): pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stderr.strip().rpartition("\n")[2]


def test_a_lock_keeps_this_process_and_others_off_and_leaves_nothing(tmp_path):
    path = tmp_path / "new" / "net.pt"
    with locked(path):
        with pytest.raises(RuntimeError, match=IN_USE):
            take(path)
        assert tried_elsewhere(path).startswith("RuntimeError: `checkpoint` must")
        take(path.with_name("other.pt"))
    assert list(path.parent.iterdir()) == []
    take(path)
    assert tried_elsewhere(path) == ""


def test_a_lock_is_given_back_after_an_error(tmp_path):
    def fail():
        with locked(tmp_path / "net.pt"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    take(tmp_path / "net.pt")


def test_names_of_one_file_have_one_lock(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("link.pt").symlink_to("net.pt")
    with locked("net.pt"):
        for name in ("link.pt", tmp_path / "net.pt"):
            with pytest.raises(RuntimeError, match="one run at a time"):
                take(name)


def test_without_a_path_nothing_is_locked():
    with locked(None), locked(None):
        pass


def test_special_files_are_refused():
    with pytest.raises(OSError, match="/dev/null must be a regular file"):
        take("/dev/null")


def test_a_lock_that_its_last_holder_removes_meanwhile_is_not_taken(tmp_path, monkeypatch):
    """The file is opened, its holder removes it and goes, and the lock would be on no name."""
    lock, real = tmp_path / ".net.pt.lock", os.open
    gone = []

    def slow(path, *args):
        handle = real(path, *args)
        if Path(path) == lock and not gone:
            gone.append(lock.unlink())
        return handle

    monkeypatch.setattr(os, "open", slow)
    with locked(tmp_path / "net.pt"):
        assert gone
        assert lock.exists()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def unsupported(handle):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(file_lock, "_lock", unsupported)
    with pytest.warns(UserWarning, match="net.pt cannot be locked .No locks available.. Make sure"):
        take(tmp_path / "net.pt")
