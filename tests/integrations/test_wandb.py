"""Weights & Biases: offline runs, read from their files."""

import gc
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from advkit import attacks
from advkit.integrations import metrics
from advkit.integrations.wandb import WandB
from tests.integrations.evaluations import evaluate, evaluate_in_vain

wandb = pytest.importorskip("wandb", reason="needs the extra wandb")

ROOT = Path(__file__).parents[2]
BLOCK = 32 * 1024  # bytes; no piece of a record crosses the end of a block


def pieces(content):
    """Yield the kind and the bytes of each piece in a log of LevelDB."""
    place = 7  # after the header of the file
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        yield kind, content[place + 7 : place + 7 + length]
        place += 7 + length


def records(folder):
    """All records of the only run in a folder."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    found, parts = [], []
    for kind, part in pieces(path.read_bytes()):
        parts.append(part)
        if kind in (1, 4):  # whole, or the last part
            found.append(wandb_internal_pb2.Record.FromString(b"".join(parts)))
            parts = []
    return found


def decoded(items):
    """A dictionary of the items of a record, whose keys are in one of two fields."""
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for item in items
        if not item.key.startswith("_")
    }


def history(found):
    rows = [decoded(r.history.item) for r in found if r.WhichOneof("record_type") == "history"]
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]


def exit_codes(found):
    return [r.exit.exit_code for r in found if r.WhichOneof("record_type") == "exit"]


def config(found):
    merged = {}
    for record in found:
        merged |= decoded(record.config.update) | decoded(record.run.config.update)
    return merged


def active_run(folder):
    """A run of the caller."""
    settings = wandb.Settings(console="off", silent=True)
    return wandb.init(mode="offline", dir=folder, settings=settings)


@pytest.fixture(autouse=True)
def private(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_the_files_of_an_evaluation(tmp_path, proxy, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", proxy.address)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "online")  # the argument counts
    wandb.teardown()  # the next run reads the environment
    report = evaluate(WandB(project="robustness", name="baseline", folder=tmp_path / "new"))
    found = records(tmp_path / "new")
    rows = history(found)
    assert [row["inputs"] for row in rows] == [20, 40, 60, 60]
    expected = metrics.report_metrics(report)
    assert expected.items() <= {**rows[2], **rows[3]}.items()
    (run,) = [r.run for r in found if r.WhichOneof("record_type") == "run"][:1]
    assert (run.project, run.display_name) == ("robustness", "baseline")
    facts = metrics.report_params(report) | metrics.report_tags(report)
    assert facts.items() <= config(found).items()
    axes = {r.metric.name: r.metric.step_metric for r in found if r.HasField("metric")}
    assert axes["robust_accuracy/linf_0.05"] == axes["attack/0_FGSM/forward"] == "inputs"
    assert exit_codes(found) == [0]
    (saved,) = (tmp_path / "new").glob("wandb/offline-run-*/files/report")
    assert json.loads((saved / "report.json").read_text())["digest"] == report.digest
    kept = [file.path for record in found for file in record.files.files]
    assert {"report/report.json", "report/report.html"} <= set(kept)
    assert wandb.run is None
    assert not proxy.was_called()


def test_an_active_run_is_used_and_stays_open(tmp_path):
    with active_run(tmp_path) as run:
        run.log({"loss": 1.0}, step=70)  # behind the numbers of inputs
        evaluate(WandB(prefix="before/"))
        evaluate(WandB(prefix="after/", artifacts=False), attacks=[attacks.FGSM(eps=0.1)])
        evaluate_in_vain(WandB(prefix="failed/", artifacts=False))
        gc.collect()
        assert wandb.run is run
        run.log({"loss": 0.5})
    found = records(tmp_path)
    rows = history(found)
    assert [row["loss"] for row in rows if "loss" in row] == [1, 0.5]
    assert [row["before/inputs"] for row in rows if "before/inputs" in row] == [20, 40, 60, 60]
    assert [row["after/inputs"] for row in rows if "after/inputs" in row] == [20, 40, 60, 60]
    assert config(found)["after/attack/0_FGSM/eps"] == "0.1"
    assert exit_codes(found) == [0]
    assert [path.name for path in tmp_path.glob("wandb/offline-run-*/files/before/*")] == ["report"]


def test_a_named_run_is_not_the_active_one(tmp_path):
    with active_run(tmp_path) as run:
        evaluate(WandB(folder=tmp_path / "own", artifacts=False))
        assert wandb.run is run
    assert len(history(records(tmp_path / "own"))) == 4
    assert history(records(tmp_path)) == []


@pytest.mark.parametrize("mode", ["disabled", "Online", None])
def test_other_modes_are_refused(mode):
    with pytest.raises(ValueError, match="`mode` must be one of 'offline', 'online'"):
        WandB(mode=mode)


def test_a_run_without_a_report_has_failed_when_python_exits(tmp_path):
    code = (
        "from advkit.integrations.wandb import WandB\n"
        "from tests.integrations.evaluations import evaluate_in_vain\n"
        f"tracker = WandB(folder={str(tmp_path)!r}, artifacts=False)\n"
        "evaluate_in_vain(tracker)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert b"Error" not in done.stderr
    found = records(tmp_path)
    assert exit_codes(found) == [1]
    assert [row["inputs"] for row in history(found)] == [20, 40]
