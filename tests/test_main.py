"""The entry point of the command."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import advkit.cli  # noqa: F401 - so that the module below is there
from advkit.__main__ import run

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handler():
    """Put the handlers of the signals back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def command_is(monkeypatch, function):
    """Let the command be `function`."""
    monkeypatch.setattr(sys.modules["advkit.cli.main"], "command", lambda: function)


def test_the_command_begins_here():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'advkit = "{run.__module__}:{run.__name__}"' in project


def test_the_status_is_that_of_the_command(monkeypatch):
    command_is(monkeypatch, lambda: 2)
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_an_interrupt_while_the_command_runs(monkeypatch, number):
    def killed():
        os.kill(os.getpid(), number)
        return 0

    command_is(monkeypatch, killed)
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_ctrl_c_that_the_command_leaves_to_it_claims_nothing(monkeypatch, capfd):
    def stopped():
        raise KeyboardInterrupt

    command_is(monkeypatch, stopped)
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


def test_an_interrupt_inside_of_generated_code_keeps_the_status(tmp_path):
    """With `-m`, Python ends with SIGINT if an interrupt ever passed through `exec` of a string."""
    (tmp_path / "ended.py").write_text(
        "import sys, advkit.cli\n"
        "from advkit.__main__ import run\n"
        "def killed(): exec('raise KeyboardInterrupt(15)')\n"
        "sys.modules['advkit.cli.main'].command = lambda: killed\n"
        "run()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "ended"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert (ended.returncode, ended.stderr) == (143, "advkit: interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_the_command_runs_without_standard_error():
    line = f'"{sys.executable}" -m advkit evaluate --attack none 2>&-'
    ended = subprocess.run(["sh", "-c", line], stdout=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
