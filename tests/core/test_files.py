"""Files that are whole or absent."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from advkit.core import files
from advkit.core.files import atomic_write, save_bytes, save_json, save_text, target_of


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_appears_whole(tmp_path):
    target = tmp_path / "new" / "deep" / "report.json"
    with atomic_write(target) as temporary:
        temporary.write_text("done")
        assert not target.exists()
    assert target.read_text() == "done"
    assert names(target.parent) == ["report.json"]


def test_a_failure_leaves_the_old_one(tmp_path):
    target = tmp_path / "report.json"
    target.write_text("old")

    def fail():
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["report.json"]


def test_what_is_saved_is_what_was_given(tmp_path):
    path = tmp_path / "file"
    assert save_bytes(path, memoryview(b"a\r\n")).read_bytes() == b"a\r\n"
    assert save_text(str(path), "é\n").read_bytes() == "é\n".encode()
    assert save_json(path, {"a": 1}).read_bytes() == b'{\n  "a": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        save_json(path, {"a": float("nan")})
    assert path.read_bytes() == b'{\n  "a": 1\n}\n'


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_text(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert mode(tmp_path / "file") == 0o666 & ~umask


def test_the_umask_is_not_touched(tmp_path, monkeypatch):
    """Not even for a moment: a file of another thread would get the mode of that moment."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask is set"))
    save_text(tmp_path / "file", "text")


@pytest.mark.parametrize("own", [0o600, 0o640, 0o666, 0o755])
def test_an_existing_file_keeps_its_mode(tmp_path, own):
    path = tmp_path / "file"
    path.touch()
    path.chmod(own)
    with atomic_write(path) as temporary:
        assert not mode(temporary) & ~own  # never open to more users
        temporary.write_text("new")
    assert mode(path) == own
    assert path.read_text() == "new"


def test_a_read_only_file_is_refused(tmp_path, monkeypatch):
    path = save_text(tmp_path / "file", "old")
    monkeypatch.setattr(os, "access", lambda path, kind: False)  # root may write to any file
    with pytest.raises(PermissionError, match="read-only.*file"):
        save_text(path, "new")
    assert path.read_text() == "old"
    save_text(tmp_path / "another", "new")


@pytest.mark.parametrize("there", [True, False])
def test_links_are_followed(tmp_path, there):
    target = tmp_path / "runs" / "report.json"
    (tmp_path / "middle").symlink_to("runs/report.json")
    link = tmp_path / "link"
    link.symlink_to("middle")
    if there:
        save_text(target, "old")
    assert target_of(link) == target
    save_text(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "middle").is_symlink()
    assert target.read_text() == "new"
    assert names(tmp_path) == ["link", "middle", "runs"]
    assert names(target.parent) == ["report.json"]


def test_links_in_circles_are_an_error(tmp_path):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError, match="symbolic links.*one"):
        save_text(tmp_path / "one", "text")
    assert (tmp_path / "one").is_symlink()


def test_special_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    os.mkfifo("pipe")
    Path("folder").mkdir()
    Path("link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as own:
        own.bind("socket")
    before = names(tmp_path)
    for path, kind in {
        "pipe": "a pipe", "folder": "a folder", "link": "a pipe", "socket": "a socket",
        "/dev/null": "a character device",
    }.items():  # fmt: skip
        wanted = f"^{path} must be a regular file or not exist yet, got {kind}. Write to another"
        with pytest.raises(OSError, match=wanted):
            save_text(path, "text")
    assert names(tmp_path) == before


def test_a_path_below_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        target_of(tmp_path / "file" / "report.json")


LEFT = ".report.json.0123456789abcdef.tmp"


def test_temporary_files_of_killed_writers_are_removed(tmp_path):
    others = [
        ".report.json.mine", ".report.json.lock", LEFT + "2", LEFT.replace("f", "g"),
        LEFT.replace("report", "other"), LEFT.replace("t.j", "txj"),
    ]  # fmt: skip
    for name in (LEFT, *others):
        (tmp_path / name).touch()
    save_text(tmp_path / "report.json", "new")
    assert names(tmp_path) == sorted([*others, "report.json"])


def test_temporary_files_of_live_writers_stay(tmp_path):
    target = tmp_path / "report.json"
    with atomic_write(target) as first:
        first.write_text("first")
        save_text(target, "second")
        with atomic_write(target) as third:
            assert first.exists()
            third.write_text("third")
    assert target.read_text() == "first"
    assert names(tmp_path) == ["report.json"]


def test_what_only_looks_like_a_temporary_file_does_no_harm(tmp_path):
    os.mkfifo(tmp_path / LEFT)
    (tmp_path / LEFT.replace("0", "1")).mkdir()
    save_text(tmp_path / "precious", "text")
    link = tmp_path / LEFT.replace("0", "2")
    link.symlink_to("precious")
    save_text(tmp_path / "report.json", "new")
    assert link.is_symlink()
    assert (tmp_path / "precious").read_text() == "text"


def test_a_temporary_file_that_is_removed_before_its_lock_is_made_again(tmp_path, monkeypatch):
    real, removed = files._hold, []

    def late(file):
        if not removed:
            removed.append(file.name)
            os.unlink(file.name)
        real(file)

    monkeypatch.setattr(files, "_hold", late)
    with atomic_write(tmp_path / "file") as temporary:
        assert temporary.exists()
    assert removed
    assert names(tmp_path) == ["file"]


def test_file_and_folder_are_synced_around_the_rename(tmp_path, monkeypatch):
    events = []
    sync, rename = os.fsync, Path.replace

    def synced(handle):
        found = os.fstat(handle)
        what = "folder" if stat.S_ISDIR(found.st_mode) else found.st_size
        events.append(what)
        sync(handle)

    def renamed(path, target):
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    save_text(tmp_path / "file", "four")
    assert events == [4, "rename", "folder"]


@pytest.mark.parametrize(("error", "passes"), [("EINVAL", True), ("EIO", False)])
def test_a_folder_that_cannot_be_synced(tmp_path, monkeypatch, error, passes):
    sync = os.fsync

    def fails(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(getattr(errno, error), error)
        sync(handle)

    monkeypatch.setattr(os, "fsync", fails)
    if passes:
        save_text(tmp_path / "file", "text")
    else:
        with pytest.raises(OSError, match=error):
            save_text(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"
