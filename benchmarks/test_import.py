"""Seconds that advkit adds to `import torch`, each in five new processes.

python -m pytest benchmarks/test_import.py -s
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest

from benchmarks.table import Entry, Figures, check, record

# Limit of the project in seconds beyond `import torch`.
MAX_SECONDS = 0.3
RUNS = 5
NET = """
import torch
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
"""
GRADIENT = """
x.requires_grad_()
torch.autograd.grad(torch.nn.functional.cross_entropy(net(x), y), x)
"""
PGD = """
import advkit
advkit.attacks.PGD(eps=0.1)(net, x, y)
"""
JOBS = {
    "`import advkit`": ("import torch", "import torch, advkit"),
    "`import advkit` and a first PGD with 40 steps": (NET + GRADIENT, NET + PGD),
    "`import advkit` and every public name": (
        "import torch",
        "import torch\nfrom advkit import *",
    ),
}


def seconds(code: str) -> float:
    """Return the time of a new process that runs `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


@pytest.mark.parametrize("job", JOBS)
def test_import(benchmark, job):
    """Compare pairs of processes, so that a slow period affects both."""
    before, after = JOBS[job]
    runs = 1 if benchmark.disabled else RUNS
    pairs = benchmark.pedantic(
        lambda: [(seconds(before), seconds(after)) for _ in range(runs)], rounds=1
    )
    if benchmark.disabled:
        return
    added = statistics.median(b for _, b in pairs) - statistics.median(a for a, _ in pairs)
    limits = {} if "every" in job else {"seconds": MAX_SECONDS}
    remark = "beyond torch" if "PGD" not in job else "beyond torch and one gradient"
    entry = Entry("evaluation", job, "import", True, Figures(seconds=added), limits, remark)
    record(benchmark, entry)
    check(entry)
