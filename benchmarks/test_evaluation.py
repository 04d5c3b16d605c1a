"""Cost of evaluations: the default job, a transfer matrix, and a report apart from its attacks.

    python -m pytest benchmarks/test_evaluation.py -s

The limits are those of the project on two cores.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from advkit import attacks
from advkit import eval as rob
from advkit.eval.benchmarking.cost import peak_memory
from benchmarks.nets import DATA, LENET
from benchmarks.table import Entry, Figures, check, record
from benchmarks.timing import in_passes, one_thread

# Limits of the project in seconds.
DEFAULT_SECONDS = 60
TECHNIQUES_SECONDS = 300
# Batches of a short and of a long evaluation, and the number of pairs that are timed.
BATCHES = (1000, 4000)
PAIRS = 3
# Limit of the time per batch of the long evaluation, relative to the short one.
MAX_GROWTH = 1.2
ROOT = Path(__file__).parents[1]
COMMAND = "import sys; from advkit.cli import main; sys.exit(main())"


def record_entry(benchmark, job, name, figures, **limits):
    """Record an entry of the table, and check its limits."""
    entry = Entry("evaluation", job, name, True, figures, limits)
    record(benchmark, entry)
    check(entry)


def run(*command: str) -> None:
    """Run a command in a process of its own, as a user does."""
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_the_default_job(benchmark, tmp_path):
    if any(find_spec(name) is None for name in ("jinja2", "matplotlib", "tqdm")):
        pytest.skip("needs the extra `report`")
    if benchmark.disabled:
        pytest.skip("the tests of the command run it")
    benchmark.pedantic(
        run, args=("-c", COMMAND, "evaluate", "--quiet", "--out", str(tmp_path)), rounds=1
    )
    figures = Figures(seconds=benchmark.stats.stats.median)
    record_entry(
        benchmark,
        "every attack on the digits",
        "`advkit evaluate`",
        figures,
        seconds=DEFAULT_SECONDS,
    )


def test_six_techniques(benchmark):
    if not (DATA / "mnist_train.npz").is_file():
        pytest.skip("needs mnist_train.npz: set ADVKIT_DATA, see docs/data.md")
    if benchmark.disabled:
        pytest.skip("run as an example")
    command = ("examples/studies/techniques.py", "--data", str(DATA))
    benchmark.pedantic(run, args=command, rounds=1)
    record_entry(
        benchmark,
        "six techniques: training, attacks, transfer matrix",
        "`transfer_matrix`",
        Figures(seconds=benchmark.stats.stats.median),
        seconds=TECHNIQUES_SECONDS,
    )


@one_thread()
def test_a_report(benchmark):
    """A report costs two more forward passes than its attacks: clean inputs and random noise."""
    net, x, y = LENET.load_correct(8 if benchmark.disabled else 64)
    used = [attacks.FGSM(eps=0.1), attacks.PGD(eps=0.1, steps=20), attacks.DeepFool()]
    job = lambda: rob.evaluate(net, x, y, attacks=used)  # noqa: E731
    mib = None if benchmark.disabled else peak_memory(job)[1] / 2**20
    report, times = in_passes(benchmark, job, (net, x, y), rounds=5, warmup_rounds=1)
    alone = sum(outcome.seconds for outcome in report.outcomes)
    assert len(report.outcomes) == len(used)
    if times.passes is None:
        return
    forward, backward = (
        sum(float(getattr(o, name).double().mean()) for o in report.outcomes)
        for name in ("forward", "backward")
    )
    share = 1 - alone / times.seconds
    entry = Entry(
        "evaluation",
        f"FGSM, PGD-20 and DeepFool in a report, {LENET.title}, {len(x)} images",
        "`evaluate`",
        True,
        Figures(None, None, times.passes, forward, backward, times.seconds, mib),
        remark=f"{100 * share:.0f} % of the time outside the attacks",
    )
    record(benchmark, entry)


def test_scores_of_a_detector(benchmark):
    """Bootstrap over 17,500 rows, as in the study of detectors."""
    rows = 200 if benchmark.disabled else 17_500
    rng = np.random.default_rng(0)
    attacked = rng.integers(2, size=rows).astype(bool)
    anomaly_score = rng.normal(size=rows) + attacked
    benchmark.pedantic(rob.detection_scores, args=(attacked, anomaly_score), rounds=1)
    if benchmark.disabled:
        return
    figures = Figures(seconds=benchmark.stats.stats.median)
    record_entry(benchmark, f"{rows:,} rows, 1,000 resamples", "`detection_scores`", figures)


@pytest.mark.slow
@one_thread()
def test_the_cost_of_a_batch_does_not_grow(benchmark):
    """Compare the time per batch of long and short evaluations, in pairs of runs."""
    net = torch.nn.Linear(4, 3)
    net.bias.data += 5  # logits that are not mistaken for probabilities
    short, long, pairs = (10, 40, 1) if benchmark.disabled else (*BATCHES, PAIRS)

    def per_batch(batches: int) -> float:
        x = torch.rand(batches, 4)
        y = net(x).argmax(1)
        start = time.perf_counter()
        rob.evaluate(net, x, y, attacks=[attacks.FGSM(eps=0.02)], batch_size=1)
        return (time.perf_counter() - start) / batches

    def pair() -> float:
        return per_batch(long) / per_batch(short)

    ratios = benchmark.pedantic(lambda: [pair() for _ in range(pairs)], rounds=1)
    if benchmark.disabled:
        return
    ratio = statistics.median(ratios)
    benchmark.extra_info |= {"ratios": [round(one, 3) for one in ratios]}
    print(f"\n{long:,} batches against {short:,}: {ratio:.2f} times the time per batch")
    assert ratio <= MAX_GROWTH
