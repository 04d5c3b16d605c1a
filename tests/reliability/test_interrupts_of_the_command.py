"""Ctrl-C at any moment of the command: status 130, no traceback, and a message that is true."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

for package in ("jinja2", "PIL", "tqdm"):  # what the command needs
    pytest.importorskip(package)

pytestmark = pytest.mark.slow("runs the command again and again")
HARNESS = Path(__file__).with_name("interrupting.py")
PROMISE = "Ctrl-C ends the command with status 130 and says truly which files are saved"
NETS = """
import os, signal, sys
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

class Interrupted(nn.Module):
    # the first Ctrl-C comes in the second batch, another one after it
    def __init__(self):
        super().__init__()
        self.net = make()

    def forward(self, x):
        if (x[:, 0, 0, 0] == 1).any():
            sys.modules["__main__"].WATCH.active = True
            os.kill(os.getpid(), signal.SIGINT)
        return self.net(x)
"""

# Before a module is imported, in code that catches everything, as some packages do.
STARTUP = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException:
                print("an import has swallowed the interrupt")

way, wanted, *sys.argv[1:] = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
sys.meta_path.insert(0, Finder())
if way == "module":
    runpy.run_module("advkit", run_name="__main__", alter_sys=True)
else:
    from advkit.__main__ import run
    run()
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What each run of each job did; one process for all."""
    folder = tmp_path_factory.mktemp("interrupts")
    (folder / "nets.py").write_text(NETS)
    images = np.random.default_rng(0).integers(0, 250, (20, 8, 8), dtype=np.uint8)
    images[15, 0, 0] = 255  # the mark
    np.savez(folder / "data.npz", images=images, labels=np.arange(20) % 10)
    attack = ["--attack", "FGSM", "--eps", "0.1"]
    data = ["--data", f"{folder}/data.npz", "--batch-size", "10"]
    jobs = {
        "evaluate": (["evaluate", "--model", f"{folder}/nets.py:make", *data], {"spread": 6}),
        "evaluate twice": (
            ["evaluate", "--model", f"{folder}/nets.py:Interrupted", *data],
            {"spread": 12, "from_start": False},
        ),
        "bench": (
            ["bench", "--model", f"{folder}/nets.py:make", *data, "--rounds", "1"],
            {"spread": 6},
        ),
        "evaluate in training": (["evaluate"], {"points": [700]}),
        "bench in training": (["bench"], {"points": [700]}),
    }
    plan = {
        name: {"from_start": True, "arguments": [*command, *attack, *out(command)], **when}
        for name, (command, when) in jobs.items()
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ADVKIT_CACHE": str(folder / "cache")}
    line = [sys.executable, "-W", "ignore", HARNESS, "plan.json"]
    subprocess.run(line, cwd=folder, env=environment, check=True)
    assert not (folder / "cache").exists()
    return json.loads((folder / "plan.json").read_text())


def out(command):
    return ["--out", "out/report.json" if command[0] == "bench" else "out"]


def claimed(text):
    """Files that a message says are saved; `None` if it says nothing of files."""
    if "nothing saved" in text:
        return []
    found = re.search(r"saved (.+?)(?: but not .+)?$", text, re.MULTILINE)
    return found and sorted(Path(name).name for name in re.split(", | and ", found[1]))


def check(run):
    """Raise unless a run ended as one that was interrupted, and said the truth."""
    assert run["status"] == 130, run
    assert re.fullmatch(r"(advkit[^\n]*: interrupted[^\n]*\n)?", run["stderr"]), run
    said = [claimed(run["stderr"]), claimed(run["stdout"])]
    assert all(names in (None, run["new"]) for names in said), run
    assert said != [None, None] or run["stderr"] == "advkit: interrupted\n", run


@pytest.mark.parametrize("job", ["evaluate", "evaluate twice", "bench"])
def test_a_ctrl_c_at_any_line(done, tally, job):
    trials = tally(PROMISE)
    for run in done[job]:
        with trials.trial(f"{job} {run['at']}"):
            check(run)
    told = [claimed(run["stderr"] + run["stdout"]) for run in done[job]]
    assert [] in told
    assert job == "evaluate" or any("report.json" in names for names in told if names)


@pytest.mark.parametrize("command", ["evaluate", "bench"])
def test_a_ctrl_c_while_the_net_of_the_command_is_trained(done, tally, command):
    (run,) = done[f"{command} in training"]
    with tally(PROMISE).trial(f"{command} in training"):
        check(run)
        assert run["stderr"] == f"advkit {command}: interrupted, nothing saved\n"


@pytest.mark.parametrize(
    ("way", "wanted"),
    [
        (way, m)
        for way in ("module", "script")
        for m in ("advkit.cli", "numpy", "torch", "torch.nn")
    ],
)
def test_a_ctrl_c_during_start_up(tmp_path, tally, way, wanted):
    trials = tally("Ctrl-C while the command starts is one line and status 130")
    done = subprocess.run(
        [sys.executable, "-c", STARTUP, way, wanted, "evaluate"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    with trials.trial(f"{way}, import of {wanted}"):
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "advkit: interrupted\n")
        assert not list(tmp_path.iterdir())
