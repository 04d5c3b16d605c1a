"""When the command shows progress."""

from argparse import Namespace

import pytest

from advkit.cli.printing import shows_bar, shows_progress


@pytest.mark.parametrize(
    ("quiet", "terminal", "tqdm", "progress", "bar"),
    [
        pytest.param(False, True, True, True, True, id="terminal"),
        pytest.param(False, True, False, False, False, id="terminal without tqdm"),
        pytest.param(False, False, True, True, False, id="log"),
        pytest.param(False, False, False, True, False, id="log without tqdm"),
        pytest.param(True, True, True, False, False, id="quiet"),
        pytest.param(True, False, True, False, False, id="quiet in a log"),
    ],
)
def test_progress_is_shown_unless_quiet(monkeypatch, quiet, terminal, tqdm, progress, bar):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("advkit.cli.printing.find_spec", lambda name: tqdm or None)
    args = Namespace(quiet=quiet)
    assert shows_progress(args) is progress
    assert shows_bar(args) is bar


@pytest.mark.parametrize("broken", [None, "closed"])
def test_there_may_be_no_standard_error(monkeypatch, tmp_path, broken):
    stream = None
    if broken:
        with (tmp_path / "log").open("w") as stream:
            pass
    monkeypatch.setattr("sys.stderr", stream)
    assert shows_progress(Namespace(quiet=False))
    assert not shows_bar(Namespace(quiet=False))
