"""Seconds that advkit adds to `import torch`, each in five new processes.

python -m pytest benchmarks/test_import.py -s
"""

from __future__ import annotations

import statistics
import subprocess
import sys

import pytest

from benchmarks.table import Entry, Figures, check, record

# Limit of the project in seconds beyond `import torch`.
MAX_SECONDS = 0.3
RUNS = 5
TORCH = """
import time, torch
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
leaf = x.clone().requires_grad_()
torch.autograd.grad(torch.nn.functional.cross_entropy(net(leaf), y), leaf)
start = time.perf_counter()
"""
END = "\nprint(time.perf_counter() - start)"
JOBS = {
    "`import advkit`": "import advkit",
    "`import advkit` and a first PGD with 40 steps": (
        "import advkit\nadvkit.attacks.PGD(eps=0.1)(net, x, y)"
    ),
    "`import advkit` and every public name": "from advkit import *",
}


def seconds(code: str) -> float:
    """Return the time of `code` in a new process that has imported torch and used it once."""
    command = [sys.executable, "-c", TORCH + code + END]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("job", JOBS)
def test_import(benchmark, job):
    """Take the median of several processes."""
    runs = 1 if benchmark.disabled else RUNS
    times = benchmark.pedantic(lambda: [seconds(JOBS[job]) for _ in range(runs)], rounds=1)
    if benchmark.disabled:
        return
    limits = {} if "every" in job else {"seconds": MAX_SECONDS}
    figures = Figures(seconds=statistics.median(times))
    entry = Entry("evaluation", job, "import", True, figures, limits, "beyond torch")
    record(benchmark, entry)
    check(entry)
