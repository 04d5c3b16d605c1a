"""The entry point of the command."""

import signal
import sys
from pathlib import Path

import pytest

import advkit.cli
from advkit.__main__ import run


@pytest.fixture(autouse=True)
def handler():
    """Puts the handler of Ctrl-C back."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_command_begins_here():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'advkit = "{run.__module__}:{run.__name__}"' in project


def test_the_status_is_that_of_the_command(monkeypatch):
    monkeypatch.setattr(advkit.cli, "main", lambda: 2)
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2


def test_the_command_runs_with_the_usual_handler_and_ends_with_that_of_the_system(monkeypatch):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seen = []
    monkeypatch.setattr(advkit.cli, "main", lambda: seen.append(signal.getsignal(signal.SIGINT)))
    with pytest.raises(SystemExit):
        run()
    assert seen == [signal.default_int_handler]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_a_ctrl_c_that_the_command_leaves_to_it_claims_nothing(monkeypatch, capfd):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr(advkit.cli, "main", stopped)
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 130
    assert capfd.readouterr() == ("", "advkit: interrupted\n")


def test_a_ctrl_c_that_is_ignored_stays_ignored(monkeypatch):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    monkeypatch.setattr(sys, "argv", ["advkit", "--version"])
    with pytest.raises(SystemExit):
        run()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
