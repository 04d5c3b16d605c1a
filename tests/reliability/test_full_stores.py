"""Stores on a full disk and in a read-only folder: an error with its report, and nothing lost."""

import errno
import os
import subprocess

import pytest

from advkit import eval as rob
from tests.eval.evaluated import CALLS, Net, data, plain, several
from tests.reliability.test_writing import disk  # noqa: F401 - a fixture

FULL = "a store on a full disk keeps its units, and the error has the report so far"
READ_ONLY = "a store that cannot be written is refused, and its units stay"
SETTINGS = {"attacks": several(), "batch_size": 10, "chunk_size": 20}


def contents(store):
    return {path.name: path.read_bytes() for path in sorted((store / "units").iterdir())}


def test_a_full_disk(disk, tally):  # noqa: F811 - the fixture
    promise = tally(FULL)
    said = plain(rob.evaluate(Net(), *data(), **SETTINGS))
    store = disk.folder / "store"
    first = {**SETTINGS, "store": store}
    reports = rob.evaluate_stream(Net(), *data(), **first)
    next(reports)
    reports.close()
    before = contents(store)
    assert len(before) == 4
    for size in (0, 1_024, 2_048):  # bytes, of which a unit takes more
        with promise.trial(size):
            with (
                disk.full_after(size),
                pytest.raises(OSError, match="`store` must be a folder that can be wr") as caught,
            ):
                rob.evaluate(Net(), *data(), **first)
            assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
            assert len(caught.value.report.clean) == 20
            assert contents(store).items() >= before.items()
            assert not list((store / "units").glob(".*"))
    with promise.trial("afterwards"):
        assert plain(rob.evaluate(Net(), *data(), **first)) == said


@pytest.fixture
def read_only(tmp_path):
    """A function that makes a folder read-only, also for root."""
    mounted = []

    def close(folder):
        if os.getuid():
            folder.chmod(0o555)
            return
        for options in (["--bind"], ["-o", "remount,bind,ro"]):
            target = [folder, folder] if options == ["--bind"] else [folder]
            done = subprocess.run(["mount", *options, *target], capture_output=True, check=False)
            if done.returncode:
                pytest.skip("root writes to every folder, unless it can mount one")
            if options == ["--bind"]:
                mounted.append(folder)

    yield close
    for folder in reversed(mounted):
        subprocess.run(["umount", folder], check=True)
    for path in tmp_path.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)


@pytest.mark.parametrize("part", ["store", "store/units"])
def test_a_read_only_folder(tmp_path, tally, read_only, part):
    promise = tally(READ_ONLY)
    store = tmp_path / "store"
    reports = rob.evaluate_stream(Net(), *data(), **SETTINGS, store=store)
    next(reports)
    reports.close()
    before = contents(store)
    read_only(tmp_path / part)
    if part == "store":
        read_only(store / "units")
    CALLS.clear()
    with promise.trial(part):
        with pytest.raises(
            OSError, match="`store` must be a folder that can be written, got an er"
        ):
            rob.evaluate(Net(), *data(), **SETTINGS, store=store)
        assert contents(store) == before
        assert CALLS == []  # the error comes before the work


def test_a_new_store_in_a_read_only_folder(tmp_path, tally, read_only):
    (tmp_path / "parent").mkdir()
    read_only(tmp_path / "parent")
    with tally(READ_ONLY).trial("new"):
        with pytest.raises(
            OSError, match="`store` must be a folder that can be written, got an er"
        ):
            rob.evaluate(Net(), *data(), **SETTINGS, store=tmp_path / "parent" / "store")
        assert os.listdir(tmp_path / "parent") == []
