"""How the command ends: closed pipes, full devices, signals, and what is saved by then."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from torch import nn

from advkit import attacks
from advkit import eval as rob
from advkit.cli import main
from advkit.cli.errors import exit_status
from advkit.data import digits

for package in ("jinja2", "PIL", "tqdm"):  # what `advkit evaluate` needs
    pytest.importorskip(package)

NETS = """
import os, signal
from torch import nn
import torch

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

class Killed(nn.Module):
    # the signal comes with the marked image, which is in the last batch
    def __init__(self):
        super().__init__()
        self.net = make()

    def forward(self, x):
        if (x[:, 0, 0, 0] == 1).any():
            os.kill(os.getpid(), getattr(signal, os.environ["SENT"]))
        return self.net(x)

class Second(nn.Module):
    # the signal comes in the attack with many steps, which is the second one
    def __init__(self):
        super().__init__()
        self.net, self.calls = make(), 0

    def forward(self, x):
        self.calls += 1
        if self.calls == int(os.environ.get("CALLS", 0)):
            os.kill(os.getpid(), getattr(signal, os.environ["SENT"]))
        return self.net(x)
"""
ONE_ATTACK = ["--attack", "FGSM", "--eps", "0.1", "--batch-size", "10"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "größe"
    folder.mkdir()
    (folder / "nets.py").write_text(NETS)
    images = np.random.default_rng(0).integers(0, 250, (20, 8, 8), dtype=np.uint8)
    images[15, 0, 0] = 255  # the mark
    np.savez(folder / "data.npz", images=images, labels=np.arange(20) % 10)
    monkeypatch.chdir(folder)
    return folder


def arguments(command, net="make", *more):
    given = [command, "--model", f"{os.getcwd()}/nets.py:{net}", "--data", "data.npz"]
    given += [*(more or ONE_ATTACK)]
    return [*given, "--out", "out.json" if command == "bench" else "out"]


def run(command, **options):
    """Run the command in a process of its own, and return it when it has ended."""
    line = [sys.executable, "-W", "ignore", "-m", "advkit", *command]
    return subprocess.run(line, check=False, stderr=subprocess.PIPE, text=True, **options)


def saved(folder, command):
    """Return the saved result of a command."""
    name = "out.json" if command == "bench" else "out/report.json"
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("command", ["evaluate", "bench"])
def test_a_closed_pipe_ends_it_quietly_after_the_saving(folder, command):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run(arguments(command), stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
    assert saved(folder, command)


@pytest.mark.parametrize(("text", "statuses"), [("--help", (0, 141)), ("attacks", (141,))])
def test_a_closed_pipe_ends_texts_quietly(folder, text, statuses):
    """Some releases of argparse drop the error of its own texts."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run([text], stdout=writing)
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode in statuses


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["evaluate", "bench"])
def test_a_full_device_is_one_line_after_the_saving(folder, command):
    with open("/dev/full", "w") as full:
        done = run(arguments(command), stdout=full)
    assert done.returncode == 2
    assert done.stderr.startswith(f"advkit {command}: error: standard output cannot be written: ")
    assert done.stderr.count("\n") == 1
    assert saved(folder, command)


@pytest.mark.parametrize("command", ["evaluate", "bench"])
def test_characters_that_the_terminal_lacks_are_escaped(folder, command):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run(arguments(command), stdout=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"gr\xf6\xdfe" in done.stdout
    assert saved(folder, command)


@pytest.mark.parametrize(("command", "method"), [("evaluate", "save"), ("bench", "save_json")])
@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_what_cannot_be_saved_is_printed(folder, command, method, quiet, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    kind = rob.Report if command == "evaluate" else rob.Benchmark
    monkeypatch.setattr(kind, method, full)
    assert main([*arguments(command), *quiet]) == 2
    shown = capsys.readouterr()
    assert "FGSM" in shown.out
    assert shown.err.startswith(f"advkit {command}: error: --out: cannot write")
    assert "No space left" in shown.err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_what_an_evaluation_has_done(folder, name):
    environment = {**os.environ, "SENT": name}
    done = run(arguments("evaluate", "Killed"), stdout=subprocess.PIPE, env=environment)
    assert done.returncode == 128 + getattr(signal, name)
    assert "INTERRUPTED: 10 of 20" in done.stdout
    assert saved(folder, "evaluate")["inputs"] == 10


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_the_attacks_that_a_benchmark_has_finished(folder, name):
    plan = ["--attack", "FGSM", "--attack", "PGD:steps=300,stop=never", "--eps", "0.1"]
    plan += ["--rounds", "1"]
    environment = {**os.environ, "SENT": name, "CALLS": "600"}
    done = run(arguments("bench", "Second", *plan), stdout=subprocess.PIPE, env=environment)
    assert done.returncode == 128 + getattr(signal, name)
    (row,) = saved(folder, "bench")["groups"][0]["rows"]
    assert row["attack"] == "FGSM(eps=0.1)"
    assert "saved out.json" in done.stdout


def test_an_error_that_ends_a_benchmark_has_the_finished_attacks():
    class Fails(attacks.PGD):
        def run(self, *args, **kwargs):
            type(self).calls = getattr(type(self), "calls", 0) + 1
            if type(self).calls > 1:  # after the run that measures memory
                raise ValueError("no more")
            return super().run(*args, **kwargs)

    data = digits("test").head(20)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    y = net(data.x).argmax(1)
    tried = [attacks.FGSM(eps=0.1), Fails(eps=0.1, steps=2)]
    with pytest.raises(ValueError, match="no more") as caught:
        rob.benchmark(net, data.x, y, attacks=tried, rounds=2)
    partial = caught.value.benchmark
    assert [cost.outcome.label for cost in partial.attacks] == ["FGSM(eps=0.1)"]
    assert partial.rounds == 1
    assert "FGSM" in str(partial)


def test_an_unexpected_error_is_one_line_and_status_70(folder, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("advkit.cli.evaluate.attacks_from", broken)
    assert main(arguments("evaluate")) == 70
    shown = capsys.readouterr().err
    assert shown.startswith("advkit evaluate: unexpected error: RuntimeError: a fault of ours")
    assert shown.count("\n") == 1
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main([*arguments("evaluate"), "--traceback"])


@pytest.mark.parametrize(
    ("interrupt", "status"),
    [(KeyboardInterrupt(), 130), (KeyboardInterrupt(15), 143), (KeyboardInterrupt("x"), 130)],
)
def test_the_status_of_an_interrupt(interrupt, status):
    assert exit_status(interrupt) == status
