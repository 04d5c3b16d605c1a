"""Kills of an evaluation with a store: the next run continues, and its report is the same."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from advkit import eval as rob
from advkit.eval.store.store import read_manifest, unit_names
from advkit.eval.store.unit_files import read_unit
from tests.eval.evaluated import Net, Slow, data, plain, several

SAME = "an evaluation that is killed and run again has the report of one that is not"
WHOLE = "a store has no damaged file after a kill"
ENDED = "the workers of a killed evaluation end"
KEPT = "a unit of a store is not computed again after a kill"
INPUTS = 240
DATA = {"attacks": several(INPUTS), "batch_size": 8, "chunk_size": 16}


@pytest.fixture(scope="module")
def expected():
    """What the report says of a run that is not killed, and its seconds."""
    torch.set_num_threads(1)
    start = time.monotonic()
    report = rob.evaluate(Slow(), *data(INPUTS), **DATA)
    return plain(report), time.monotonic() - start


def killed(store, engine, seconds):
    """Begin an evaluation in a process, and kill that process after some time."""
    call = [sys.executable, "-m", "tests.eval.store.run_evaluation", store.parent / "report.json",
            "--store", store, "--inputs", str(INPUTS), "--slow"]  # fmt: skip
    call += ["--engine", engine] if engine else []
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        call, cwd=Path(__file__).parents[2], env=environ, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        process.kill()
        process.wait()
    return process


def living(session):
    """Processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            state, _, _, own = stat.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


def has_ended(session):
    """Return whether all processes of a session end within some seconds, and kill the others."""
    deadline = time.monotonic() + 20
    while living(session) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = living(session)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return not left


def stamps(store):
    """Time of each unit; raise if one is damaged."""
    if not (store / "store.json").exists():
        return {}
    read_manifest(store)
    names = unit_names(store)
    for name in names:
        read_unit(store / "units" / name.file, name)
    return {name.file: (store / "units" / name.file).stat().st_mtime_ns for name in names}


@pytest.mark.slow("starts processes that import torch")
@pytest.mark.parametrize("trials", [2, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize("engine", [None, "fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_a_kill_at_any_moment(tmp_path, tally, expected, engine, trials):
    same, whole, kept, ended = tally(SAME), tally(WHOLE), tally(KEPT), tally(ENDED)
    said, duration = expected
    rng, seen = random.Random(trials), []
    for trial in range(trials):
        store = tmp_path / str(trial) / "store"
        store.parent.mkdir()
        for number in itertools.count():  # until it is killed before its end
            process = killed(store, engine, rng.uniform(0, duration / (2 if engine else 1)))
            with ended.trial(trial):
                assert has_ended(process.pid)
            if process.returncode == -signal.SIGKILL:
                break
            store = tmp_path / str(trial) / f"store{number}"
        before = {}
        with whole.trial(trial):
            before = stamps(store)
            seen.append(len(before))
        with same.trial(trial):
            report = rob.evaluate(Slow(), *data(INPUTS), **DATA, store=store)
            assert plain(report) == said
            assert rob.merge(store).digest == report.digest
        with kept.trial(trial):
            after = stamps(store)
            assert before.items() <= after.items()
            assert len(after) == 15 * 4
            assert not list((store / "units").glob(".*"))
    assert trials < 20 or len(set(seen)) > 5  # the moments differ


def test_a_second_run_computes_what_is_missing(tmp_path, tally):
    """Without a kill: units that are removed are computed again, and no others."""
    promise = tally(KEPT)
    inputs = {**DATA, "attacks": several(48)}
    report = rob.evaluate(Net(), *data(48), **inputs, store=tmp_path)
    rng = random.Random(0)
    for trial in range(20):
        files = sorted((tmp_path / "units").iterdir())
        before = {file: file.stat().st_mtime_ns for file in files}
        removed = rng.sample(files, rng.randrange(1, len(files)))
        for file in removed:
            file.unlink()
        with promise.trial(trial):
            again = rob.evaluate(Net(), *data(48), **inputs, store=tmp_path)
            assert json.dumps(plain(again)) == json.dumps(plain(report))
            after = {file: file.stat().st_mtime_ns for file in files}
            assert all((before[file] != after[file]) == (file in removed) for file in files)
