"""Reports of executors, launchers and shards: the same bytes for any number of workers.

Each engine runs in processes of its own, so that a hang ends with the time limit of the process.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from advkit import eval
from tests.eval.evaluated import Net, data, plain, several

ROOT = Path(__file__).parents[3]
SCRIPT = "tests.eval.store.run_evaluation"
LIMIT = 240  # seconds, of which most are for imports on a busy machine
COUNTS = pytest.mark.parametrize(
    "workers", [2, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 4))]
)


def environment():
    """The environment of a process that is in no shard, with one thread."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "RANK", "WORLD"))}
    path = os.pathsep.join([str(ROOT), kept.get("PYTHONPATH", "")])
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def run(*arguments, launcher=()):
    """Run an evaluation in new processes."""
    call = [sys.executable, *launcher, "-m", SCRIPT, *map(str, arguments)]
    done = subprocess.run(
        call, cwd=ROOT, env=environment(), timeout=LIMIT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def expected():
    """What the report of this process says."""
    x, y = data()
    report = eval.evaluate(Net(), x, y, attacks=several(), batch_size=8, chunk_size=16, threads=1)
    return json.loads(json.dumps({"digest": report.digest, **plain(report)}))


def merged(store):
    report = eval.merge(store)
    return json.loads(json.dumps({"digest": report.digest, **plain(report)}))


def needs(package):
    if find_spec(package) is None:
        pytest.skip(f"needs {package}, which is optional")


@pytest.mark.slow("starts processes that import torch")
@pytest.mark.parametrize(
    ("engine", "workers"), [("fork", 1), ("fork", 2), ("fork", 4), ("spawn", 2)]
)
def test_process_pools(tmp_path, expected, engine, workers):
    report, store = tmp_path / "report.json", tmp_path / "store"
    run(report, "--store", store, "--engine", engine, "--workers", workers)
    assert json.loads(report.read_text()) == expected
    assert merged(store) == expected


@pytest.mark.slow("starts processes that import torch")
@COUNTS
def test_dask(tmp_path, expected, workers):
    needs("distributed")
    report, store = tmp_path / "report.json", tmp_path / "store"
    run(report, "--store", store, "--engine", "dask", "--workers", workers)
    assert json.loads(report.read_text()) == expected
    assert merged(store) == expected


@pytest.mark.slow("starts processes that import torch")
@COUNTS
def test_mpi(tmp_path, expected, workers):
    needs("mpi4py")
    mpiexec = shutil.which(
        "mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if mpiexec is None:
        pytest.skip("needs mpiexec of an MPI library, such as pip install mpich")
    report, store = tmp_path / "report.json", tmp_path / "store"
    call = [mpiexec, "-n", str(workers + 1), sys.executable, "-m", "mpi4py.futures", "-m", SCRIPT,
            report, "--store", store, "--engine", "mpi", "--workers", str(workers)]  # fmt: skip
    subprocess.run(
        call, cwd=ROOT, env=environment(), timeout=LIMIT, capture_output=True, check=True
    )
    assert json.loads(report.read_text()) == expected
    assert merged(store) == expected


@pytest.mark.slow("starts processes that import torch")
def test_torchrun(tmp_path, expected):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run(tmp_path / "report.json", "--store", tmp_path / "store", launcher=launcher)
    assert merged(tmp_path / "store") == expected
    reports = [json.loads((tmp_path / f"report.json{rank}").read_text()) for rank in range(2)]
    assert [report["about"] for report in reports] == [{"shard": "0/2"}, {"shard": "1/2"}]
    assert sum(report["inputs"] for report in reports) == 60


@pytest.mark.slow("starts processes that import torch")
def test_two_shards_that_begin_at_once(tmp_path, expected):
    call = [sys.executable, "-m", SCRIPT, tmp_path / "report", "--store", tmp_path / "store"]
    processes = [
        subprocess.Popen([*call, "--shard", str(number), "2"], cwd=ROOT, env=environment(),
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for number in range(2)
    ]  # fmt: skip
    for process in processes:
        errors = process.communicate(timeout=LIMIT)[1]
        assert process.returncode == 0, errors[-3000:]
    assert merged(tmp_path / "store") == expected


def workers_of(process):
    """Processes that compute for `process`: its pool, or the workers below Dask's nannies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[1]) == process:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow("starts processes that import torch")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("engine", ["fork", "dask"])
def test_a_worker_that_is_killed(tmp_path, engine):
    """Dask computes its unit elsewhere; a process pool ends, and a new one computes the rest."""
    if engine == "dask":
        needs("distributed")
    inputs, store, report = 240, tmp_path / "store", tmp_path / "report.json"
    call = [sys.executable, "-m", SCRIPT, report, "--store", store, "--engine", engine,
            "--inputs", str(inputs), "--slow"]  # fmt: skip
    with subprocess.Popen(
        call, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + LIMIT
        while len(list((store / "units").glob("0*"))) < 3:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read()[-3000:]
            time.sleep(0.005)
        killed = [pid for pid in workers_of(process.pid) if b"resource_tracker" not in
                  Path(f"/proc/{pid}/cmdline").read_bytes()]  # fmt: skip
        os.kill(killed[-1], signal.SIGKILL)
        errors = process.communicate(timeout=LIMIT)[1]
    if engine == "fork":
        assert process.returncode == 1
        assert "RuntimeError: `executor` must have living workers, got one that has ended" in errors
        before = {p.name: p.stat().st_mtime_ns for p in (store / "units").iterdir()}
        run(report, "--store", store, "--engine", engine, "--inputs", inputs, "--slow")
        after = {p.name: p.stat().st_mtime_ns for p in (store / "units").iterdir()}
        assert before.items() <= after.items()  # no unit is computed again
        assert len(before) < len(after)
    else:
        assert process.returncode == 0, errors[-3000:]
    x, y = data(inputs)
    alone = eval.evaluate(Net(), x, y, attacks=several(inputs), batch_size=8)
    assert (
        json.loads(report.read_text())["attacks"] == json.loads(json.dumps(plain(alone)))["attacks"]
    )
    assert merged(store) == json.loads(report.read_text())


IN_A_SCRIPT = """
import multiprocessing, sys, torch
from concurrent.futures import ProcessPoolExecutor
from advkit import eval
from tests.eval.evaluated import Net, data, several

class Own(Net):
    pass

if __name__ == "__main__":
    torch.set_num_threads(1)
    settings = {"attacks": several(), "batch_size": 10, "chunk_size": 20, "store": sys.argv[1]}
    here = eval.evaluate(Own(), *data(), **settings)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        there = eval.evaluate(Own(), *data(), **settings, executor=executor)
    assert there.digest == here.digest
"""


@pytest.mark.slow("starts processes that import torch")
def test_a_model_of_a_script_is_the_same_in_spawned_workers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(IN_A_SCRIPT)
    call = [sys.executable, script, tmp_path / "store"]
    done = subprocess.run(
        call, env=environment(), timeout=LIMIT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
