"""What evaluations cost: the default job, a table of transfers, and a report beside its attacks.

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
from benchmarks.timing import in_floors, one_thread

DEFAULT_S, TECHNIQUES_S = 60, 300
BATCHES, PAIRS = (1000, 4000), 3
GROWTH = 1.2  # times the time per batch
ROOT = Path(__file__).parents[1]
COMMAND = "import sys; from advkit.cli import main; sys.exit(main())"


def note(benchmark, job, who, figures, **limits):
    """A line of the table, held to its limits."""
    entry = Entry("evaluation", job, who, True, figures, limits)
    record(benchmark, entry)
    check(entry)


def run(*command: str) -> None:
    """A command of its own, as a user types it."""
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
    note(benchmark, "every attack on the digits", "`advkit evaluate`", figures, seconds=DEFAULT_S)


def test_six_techniques(benchmark):
    if not (DATA / "mnist_train.npz").is_file():
        pytest.skip("needs mnist_train.npz; set ADVKIT_DATA to its folder")
    if benchmark.disabled:
        pytest.skip("run as an example")
    command = ("examples/studies/techniques.py", "--data", str(DATA))
    benchmark.pedantic(run, args=command, rounds=1)
    note(
        benchmark,
        "six techniques, trained, attacked and crossed",
        "`transfer_matrix`",
        Figures(seconds=benchmark.stats.stats.median),
        seconds=TECHNIQUES_S,
    )


@one_thread()
def test_a_report(benchmark):
    """Beside its attacks a report asks for clean answers and for those to noise: a pass each."""
    net, x, y = LENET.load_correct(8 if benchmark.disabled else 64)
    tried = [attacks.FGSM(eps=0.1), attacks.PGD(eps=0.1, steps=20), attacks.DeepFool()]
    job = lambda: rob.evaluate(net, x, y, attacks=tried)  # noqa: E731
    mib = None if benchmark.disabled else peak_memory(job)[1] / 2**20
    report, times = in_floors(benchmark, job, (net, x, y), rounds=5, warmup_rounds=1)
    alone = sum(outcome.seconds for outcome in report.outcomes)
    assert len(report.outcomes) == len(tried)
    if times.floors is None:
        return
    forward, backward = (
        sum(float(getattr(o, way).double().mean()) for o in report.outcomes)
        for way in ("forward", "backward")
    )
    share = 1 - alone / times.seconds
    entry = Entry(
        "evaluation",
        f"FGSM, PGD-20 and DeepFool in a report, {LENET.title}, {len(x)} images",
        "`evaluate`",
        True,
        Figures(None, None, times.floors, forward, backward, times.seconds, mib),
        remark=f"{100 * share:.0f} % of it beside the attacks",
    )
    record(benchmark, entry)


def test_scores_of_a_detector(benchmark):
    """A bootstrap over samples of 17,500 rows, as the study of detectors has them."""
    rows = 200 if benchmark.disabled else 17_500
    rng = np.random.default_rng(0)
    attacked = rng.integers(2, size=rows).astype(bool)
    anomaly_score = rng.normal(size=rows) + attacked
    benchmark.pedantic(rob.detection_scores, args=(attacked, anomaly_score), rounds=1)
    if benchmark.disabled:
        return
    figures = Figures(seconds=benchmark.stats.stats.median)
    note(benchmark, f"{rows:,} rows, 1,000 resamples", "`detection_scores`", figures)


@pytest.mark.slow
@one_thread()
def test_a_batch_costs_as_much_late_as_early(benchmark):
    """Time per batch of a long evaluation against that of a short one, as pairs of runs."""
    net = torch.nn.Linear(4, 3)
    net.bias.data += 5  # no batch of one looks like probabilities
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
    assert ratio <= GROWTH
