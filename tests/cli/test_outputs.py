"""Which files a command has written."""

import os

import pytest

from advkit.cli.outputs import Outputs


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").write_text("before")
    return tmp_path / "old", tmp_path / "new"


def replaced(path):
    path.with_name("other").write_text("before")
    path.with_name("other").replace(path)


def test_files_that_are_there_before_are_not_saved(paths):
    outputs = Outputs()
    assert str(outputs) == "nothing saved"
    outputs.expect(*paths)
    assert str(outputs) == "nothing saved"


def test_files_that_are_replaced_or_new_are_saved(paths):
    old, new = paths
    outputs = Outputs()
    outputs.expect(old, new)
    replaced(old)
    assert str(outputs) == f"saved {old} but not {new}"
    new.touch()
    assert str(outputs) == f"saved {old} and {new}"


def test_a_file_that_is_written_in_place_is_saved(paths):
    outputs = Outputs()
    outputs.expect(*paths)
    os.utime(paths[0], ns=(0, 0))
    assert str(outputs) == f"saved {paths[0]} but not {paths[1]}"


def test_a_file_that_is_removed_is_not_saved(paths):
    outputs = Outputs()
    outputs.expect(*paths)
    paths[0].unlink()
    assert str(outputs) == "nothing saved"


def test_a_store_is_named_unless_a_file_is_saved(paths):
    outputs = Outputs()
    outputs.keep("store")
    outputs.expect(*paths)
    assert str(outputs) == "no report saved; store keeps the units of work that are complete"
    replaced(paths[0])
    assert str(outputs) == f"saved {paths[0]} but not {paths[1]}"
