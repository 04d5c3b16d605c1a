"""A closed pipe, SIGTERM and SIGHUP at random moments of the command: nothing finished is lost."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytestmark = pytest.mark.long("minutes: each trial runs the command for seconds")
TRIALS = 20
PROMISE = "a closed pipe, SIGTERM or SIGHUP loses no finished work"
NETS = """
import os, time
import torch

class Net(torch.nn.Sequential):
    def forward(self, x):  # slowly, and with a count of the passes
        time.sleep(0.004)
        with open(os.environ["COUNT"], "ab") as file:
            file.write(b".")
        return super().forward(x)

def make():
    torch.manual_seed(0)
    return Net(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""
# The number of passes after each batch of an evaluation, and after each run of an attack.
REFERENCE = """
import json, os, sys
from advkit.cli.main import main
from advkit.eval.benchmarking import benchmark
from advkit.eval.robustness.evaluation_recorder import EvaluationRecorder

marks = []

def marked(work):
    def wrapper(*arguments):
        result = work(*arguments)
        marks.append(os.path.getsize(os.environ["COUNT"]))
        return result
    return wrapper

benchmark._run_round = marked(benchmark._run_round)
EvaluationRecorder.update = marked(EvaluationRecorder.update)
main(sys.argv[1:])
print(json.dumps(marks))
"""
BATCHES = 40
COMMANDS = {
    "evaluate": ["--attack", "PGD:stop=never,steps=20"],
    "bench": ["--attack", "PGD:steps=10", "--attack", "FGSM", "--attack", "BIM:steps=10",
              "--limit", "100"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    for package in ("jinja2", "PIL", "tqdm"):
        pytest.importorskip(package)
    path = tmp_path_factory.mktemp("timed")
    (path / "nets.py").write_text(NETS)
    images = np.random.default_rng(0).integers(0, 256, (10 * BATCHES, 8, 8), dtype=np.uint8)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    labels = net(torch.from_numpy(images).float() / 255).argmax(1).numpy()
    np.savez(path / "images.npz", images=images, labels=labels)
    return path


def arguments(command, out):
    """The arguments of `advkit`, which writes to `out`."""
    common = ["--model", "nets.py:make", "--data", "images.npz", "--batch-size", "10"]
    return [command, *common, "--eps", "0.1", *COMMANDS[command], "--out", out]


def environment(folder, name):
    return {**os.environ, "COUNT": str(folder / f"{name}.count"), "OMP_NUM_THREADS": "1"}


def passes(folder, name):
    count = folder / f"{name}.count"
    return count.stat().st_size if count.exists() else 0


def saved(command, folder, out):
    """Number of batches or of attacks in the file, 0 without a file."""
    path = folder / out / "report.json" if command == "evaluate" else folder / out
    if not path.exists():
        return 0
    content = json.loads(path.read_text())
    return content["inputs"] // 10 if command == "evaluate" else len(content["attacks"])


def run_until(ending, process, seconds):
    """End a process after some seconds, and return its status and its standard error.

    The status is that which a shell reports: a signal may also end the process itself, in the last
    moments after everything is written.
    """
    time.sleep(seconds)
    if ending == "pipe":
        process.stdout.close()
        err = process.stderr.read()
        process.wait()
    else:
        if process.poll() is None:
            process.send_signal(getattr(signal, ending))
        _, err = process.communicate()
    status = process.returncode
    return (status if status >= 0 else 128 - status), err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("ending", ["pipe", "SIGTERM", "SIGHUP"])
def test_nothing_that_was_finished_is_lost(tally, folder, command, ending):
    start = time.perf_counter()
    reference = subprocess.run(
        [sys.executable, "-c", REFERENCE, *arguments(command, f"{ending}.json")],
        cwd=folder,
        env=environment(folder, f"{command}-{ending}"),
        check=True,
        capture_output=True,
        text=True,
    )
    duration = time.perf_counter() - start
    marks = json.loads(reference.stdout.splitlines()[-1])
    most = BATCHES if command == "evaluate" else 3
    moments = random.Random(f"{command} {ending}")
    promise = tally(PROMISE)
    for i in range(TRIALS):
        name = f"{command}-{ending}-{i}"
        with promise.trial(name):
            with subprocess.Popen(
                [sys.executable, "-m", "advkit", *arguments(command, name)],
                cwd=folder,
                env=environment(folder, name),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                seconds = moments.uniform(0.3, 1) * duration
                status, err = run_until(ending, process, seconds)
            assert "Traceback" not in err
            expected = 141 if ending == "pipe" else 128 + getattr(signal, ending)
            complete = saved(command, folder, name) == most
            assert status == expected or (status == 0 and complete), err
            finished = sum(mark <= passes(folder, name) for mark in marks)
            # the signal may come between the last pass of a batch and its record
            least = most if ending == "pipe" else min(most, finished - 1)
            assert saved(command, folder, name) >= least, err


def test_the_plan_is_that_of_the_table():
    assert (Path(__file__).parents[2] / "docs" / "reliability.md").read_text().count(PROMISE) == 1
