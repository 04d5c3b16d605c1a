"""`advkit evaluate --store` and `advkit merge`: runs that resume, shards, and their errors."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from argparse import ArgumentTypeError

import numpy as np
import pytest
import torch

from advkit import data
from advkit import eval as rob
from advkit.cli import main
from advkit.cli.defaults import CHUNK_SIZE
from advkit.cli.errors import UsageError
from advkit.cli.loading import device_from
from advkit.cli.numbers import shard
from advkit.eval.units.backends import LocalBackend

for package in ("jinja2", "PIL"):  # what `advkit evaluate` needs
    pytest.importorskip(package)

NETS = """
import os, threading
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.flatten, self.linear = nn.Flatten(), nn.Linear(64, 10)

    def forward(self, x):
        if "ENDS" in os.environ and (x[:, 0, 0, 0] == 1).any():
            raise KeyboardInterrupt if os.environ["ENDS"] == "interrupt" else KeyError("x")
        return self.linear(self.flatten(x))

def make():
    torch.manual_seed(0)
    return Net()

def other():
    torch.manual_seed(1)
    return Net()

def unhashable():
    net = make()
    net.lock = threading.Lock()
    return net
"""
# 40 inputs in 4 chunks of 2 batches
WORK = ["--data", "data.npz", "--batch-size", "5", "--eps", "0.1", "--eps", "0.2",
        "--attack", "PGD:steps=3", "--attack", "DeepFool"]  # fmt: skip
MINE = ["evaluate", "--model", "mynets.py:make", *WORK]
STORED = [*MINE, "--store", "store", "--chunk-size", "10"]
UNITS = 4 * (1 + 3)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with digits, the 31st of them marked, and nets, and the command run in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "SLURM_ARRAY_TASK_COUNT", "ENDS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "mynets.py").write_text(NETS)
    digits = data.digits("test").head(40)
    images = digits.x.numpy()[:, 0].copy()
    images[:, 0, 0] = np.arange(40) == 30
    torch.manual_seed(0)
    flat, linear = torch.from_numpy(images).flatten(1), torch.nn.Linear(64, 10)
    labels = linear(flat).argmax(1)  # of the net of `make`
    np.savez("data.npz", images=images, labels=labels.numpy())
    return tmp_path


def figures(folder, out="advkit-report"):
    """Return the bytes of report.json without the times."""
    return re.sub(rb'"(seconds|date)": [^,\n]*', b"", (folder / out / "report.json").read_bytes())


def units(folder, store="store"):
    return sorted(path.name for path in (folder / store / "units").iterdir())


@pytest.fixture
def computed(monkeypatch):
    """Numbers of the chunks whose units are computed."""
    found, submit = [], LocalBackend.submit

    def spied(self, unit):
        found.append(unit.chunk.number)
        return submit(self, unit)

    monkeypatch.setattr(LocalBackend, "submit", spied)
    return found


def test_reports_are_equal_however_the_work_is_shared(folder, capsys, computed):
    assert main([*MINE, "--out", "plain"]) == 0
    assert json.loads((folder / "plain" / "report.json").read_text())["inputs"] == 40
    assert main([*STORED, "--out", "stored"]) == 0
    assert len(units(folder)) == UNITS
    computed.clear()
    assert main([*STORED, "--out", "repeated"]) == 0
    assert not computed
    for number in (1, 0):
        assert main([*STORED, "--store", "shards", "--shard", f"{number}/2"]) == 0
    capsys.readouterr()
    assert main(["merge", "shards", "--out", "merged"]) == 0
    shown = capsys.readouterr()
    assert shown.out.endswith(
        "saved merged/report.json, merged/records.npz and merged/report.html\n"
    )
    assert "worst case, linf 0.1" in shown.out
    assert (folder / "merged" / "report.html").stat().st_size
    names = ("plain", "stored", "repeated", "merged")
    assert len({figures(folder, name) for name in names}) == 1


def test_a_run_resumes(folder, capsys, computed, monkeypatch):
    assert main([*MINE, "--out", "plain"]) == 0
    monkeypatch.setenv("ENDS", "interrupt")
    capsys.readouterr()
    assert main(STORED) == 130
    shown = capsys.readouterr()
    assert "INTERRUPTED: 30 of 40" in shown.out
    assert shown.err == ""
    assert len(units(folder)) == 3 * 4
    monkeypatch.delenv("ENDS")
    computed.clear()
    assert main(STORED) == 0
    assert set(computed) == {3}
    assert figures(folder) == figures(folder, "plain")


def test_a_failure_keeps_what_is_evaluated(folder, capsys, monkeypatch):
    monkeypatch.setenv("ENDS", "error")
    assert main(STORED) == 2
    shown = capsys.readouterr()
    assert "INTERRUPTED: 30 of 40" in shown.out
    assert shown.err == "advkit evaluate: error: the evaluation failed: KeyError: 'x'\n"
    assert len(units(folder)) == 3 * 4
    with pytest.raises(UsageError) as caught:
        main([*STORED, "--traceback"])
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_interrupt_in_the_first_chunk_names_the_store(folder, capsys, monkeypatch):
    monkeypatch.setenv("ENDS", "interrupt")
    assert main([*STORED[:-2]]) == 130
    assert capsys.readouterr().err == (
        "advkit evaluate: interrupted, no report saved; store keeps the units of work that are "
        "complete\n"
    )


class TestShard:
    def test_it_says_how_to_go_on_and_writes_no_report(self, folder, capsys):
        assert main([*STORED, "--shard", "1/3", "--out", "here"]) == 0
        assert capsys.readouterr() == (
            "shard 1/3: 10 of 40 inputs are in store. When all shards have ended: "
            "advkit merge store\n",
            "",
        )
        assert {name[:6] for name in units(folder)} == {"000001"}
        assert not (folder / "here").exists()

    def test_it_may_be_quiet(self, folder, capsys):
        assert main([*STORED, "--shard", "1/3", "--quiet"]) == 0
        assert capsys.readouterr() == ("", "")

    def test_it_may_have_no_inputs(self, folder, capsys):
        assert main([*STORED, "--shard", "4/5"]) == 0
        assert capsys.readouterr() == (
            "shard 4/5: it has no inputs, since 40 inputs are fewer chunks than 5. A new store "
            "with a smaller --chunk-size has more. When all shards have ended: "
            "advkit merge store\n",
            "",
        )
        assert units(folder) == []

    def test_an_interrupted_one_says_so(self, folder, capsys, monkeypatch):
        monkeypatch.setenv("ENDS", "interrupt")
        assert main([*STORED, "--shard", "1/2"]) == 130
        assert capsys.readouterr().out == (
            "shard 1/2: 10 of its 20 inputs are in store. Run the same command again to go on.\n"
        )
        assert not (folder / "advkit-report").exists()

    def test_the_next_command_can_be_pasted(self, folder, capsys):
        assert main([*MINE, "--store", "my store", "--shard", "0/2"]) == 0
        assert capsys.readouterr().out.endswith("advkit merge 'my store'\n")

    def test_its_page_needs_no_package(self, folder, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "jinja2", None)
        assert main([*STORED, "--shard", "0/2"]) == 0
        assert capsys.readouterr().err == ""

    def test_torchrun_and_slurm_set_it(self, folder, capsys, monkeypatch):
        for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        assert main(STORED) == 0
        assert capsys.readouterr().out.startswith("shard 1/2: 20 of 40 inputs")
        monkeypatch.delenv("RANK")
        for name, value in {"ID": "3", "MIN": "1", "MAX": "5", "COUNT": "3"}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
        assert main(STORED) == 0
        assert capsys.readouterr().out.startswith("shard 1/3: 10 of 40 inputs")

    @pytest.mark.parametrize("more", [["--store", "store", "--shard", "0/1"], []], ids=" ".join)
    def test_one_process_may_evaluate_all_under_torchrun(self, folder, capsys, monkeypatch, more):
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main([*MINE, *more]) == 0
        assert "saved advkit-report" in capsys.readouterr().out

    def test_its_progress_has_its_name(self, folder, capsys, monkeypatch):
        monkeypatch.setattr("advkit.core.progress.FIRST_LINE", 0.0)
        monkeypatch.setitem(sys.modules, "tqdm", None)
        assert main([*STORED, "--shard", "0/2"]) == 0
        lines = capsys.readouterr().err.splitlines()
        assert re.search(r"^shard 0/2: 20 of 20 inputs, .* after \d+ s$", lines[-1])

    @pytest.mark.parametrize(("device", "found"), [("cuda", "cuda:2"), ("cuda:1", "cuda:1")])
    def test_its_process_has_a_gpu_of_its_own(self, monkeypatch, device, found):
        zeros = torch.zeros
        monkeypatch.setattr("torch.zeros", lambda *shape, device: zeros(*shape))
        monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
        monkeypatch.setenv("LOCAL_RANK", "6")
        assert device_from(device) == torch.device(found)


@pytest.mark.slow("starts processes that import torch")
def test_torchrun_starts_shards(folder):
    assert main([*MINE, "--out", "plain", "--quiet"]) == 0
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "advkit"]
    done = subprocess.run([*line, *STORED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"shard {number}/2: 20 of 40 inputs are in store. When all shards have ended: "
        "advkit merge store"
        for number in range(2)
    ]
    assert main(["merge", "store"]) == 0
    assert figures(folder) == figures(folder, "plain")


@pytest.mark.parametrize(("text", "value"), [("0/1", (0, 1)), ("3/4", (3, 4)), ("09/10", (9, 10))])
def test_shards_are_parsed(text, value):
    assert shard(text) == value


@pytest.mark.parametrize(
    "text", ["4/4", "-1/4", "0/0", "1", "1/", "/2", "a/b", "1/2/3", "0.5/2", ""]
)
def test_other_texts_are_not_shards(text):
    said = re.escape(f"must be I/N with 0 <= I < N, such as 0/4, got {text!r}")
    with pytest.raises(ArgumentTypeError, match=f"^{said}$"):
        shard(text)


def test_the_help_has_the_default_of_the_function():
    assert inspect.signature(rob.evaluate).parameters["chunk_size"].default == CHUNK_SIZE


def error_of(argv, capsys):
    """Return the one line of a command that ends with status 2."""
    capsys.readouterr()
    assert main(argv) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line.removeprefix(f"advkit {argv[0]}: error: ").rstrip()


class TestErrors:
    @pytest.mark.parametrize("option", ["--shard=0/1", "--chunk-size=5", "--identity=x"])
    def test_options_need_a_store(self, folder, capsys, option):
        said = f"--store must be given with {option.split('=')[0]}."
        assert error_of([*MINE, option], capsys) == said

    def test_a_shard_out_of_range(self, folder, capsys):
        with pytest.raises(SystemExit) as caught:
            main([*STORED, "--shard", "2/2"])
        assert caught.value.code == 2
        said = "argument --shard: must be I/N with 0 <= I < N, such as 0/4, got '2/2'"
        assert said in capsys.readouterr().err

    def test_a_rank_out_of_range(self, folder, capsys, monkeypatch):
        monkeypatch.setenv("RANK", "3")
        monkeypatch.setenv("WORLD_SIZE", "2")
        said = "`RANK` must be below WORLD_SIZE, got 3 of 2. Pass --shard I/N."
        assert error_of(STORED, capsys) == said

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (["--model", "mynets.py:other"], "model has other weights"),
            (["--batch-size", "10"], "batch size is 5, here 10"),
            (["--chunk-size", "20"], "chunk size is 10, here 20"),
            (["--limit", "20"], "number of inputs is 40, here 20"),
            (["--seed", "1"], "attack 1 is PGD"),
            (["--attack", "FGSM"], "number of attacks is 3, here 5"),
        ],
    )
    def test_another_evaluation(self, folder, capsys, more, said):
        assert main([*STORED, "--shard", "1/2"]) == 0
        line = error_of([*STORED, *more], capsys)
        assert line.startswith("--store must hold results of the same evaluation, got store, whose")
        assert said in line
        assert not list(folder.glob("**/report.*"))

    def test_other_inputs(self, folder, capsys):
        assert main(STORED) == 0
        with np.load("data.npz") as arrays:
            np.savez("data.npz", images=arrays["images"] / 2, labels=arrays["labels"])
        line = error_of(STORED, capsys)
        assert line.startswith("--store must hold results for the same inputs, got store, whose")

    def test_a_store_that_is_a_file(self, folder, capsys):
        line = error_of([*MINE, "--store", "data.npz"], capsys)
        assert line.startswith("--store must be a folder that can be written, got an error for")
        assert line.endswith(".")

    def test_a_full_disk(self, folder, capsys, monkeypatch):
        write = sys.modules["advkit.eval.store.store"].write_unit

        def fails(path, name, result):
            if name.chunk == 2:
                raise OSError(28, "No space left on device")
            write(path, name, result)

        monkeypatch.setattr("advkit.eval.store.store.write_unit", fails)
        assert main(STORED) == 2
        shown = capsys.readouterr()
        assert "INTERRUPTED: 20 of 40" in shown.out
        assert shown.err == (
            "advkit evaluate: error: --store must be a folder that can be written, got an error "
            "for store: No space left on device. Units that it holds are kept. Free space, or "
            "pass another folder.\n"
        )
        monkeypatch.undo()
        assert len(units(folder)) == 2 * 4

    def test_an_identity_stands_for_what_cannot_be_hashed(self, folder, capsys):
        argv = [*STORED, "--model", "mynets.py:unhashable"]
        line = error_of(argv, capsys)
        assert "for --store, got lock. Pass --identity TEXT, a text that changes" in line
        assert main([*argv, "--identity", "1"]) == 0
        assert "other weights, settings or code" in error_of([*argv, "--identity", "2"], capsys)


def test_processes_may_create_a_store_at_the_same_time(folder, capsys, monkeypatch):
    assert main([*STORED, "--store", "first", "--shard", "0/2"]) == 0
    module = sys.modules["advkit.eval.store.store"]
    check = module._check_new

    def late(store):
        shutil.copytree("first", store)  # by another process, after the look for a store
        check(store)

    monkeypatch.setattr(module, "_check_new", late)
    assert main([*STORED, "--shard", "1/2"]) == 0
    assert main(["merge", "store"]) == 0


@pytest.fixture
def full(folder):
    """A store with all units."""
    assert main([*STORED, "--quiet"]) == 0
    shutil.rmtree(folder / "advkit-report")
    return folder / "store" / "units"


class TestMerge:
    def merge_error(self, folder, capsys, store="store"):
        line = error_of(["merge", store, "--out", "merged"], capsys)
        assert not (folder / "merged").exists()
        return line

    @pytest.mark.parametrize("store", ["none", "data.npz", "."])
    def test_a_folder_that_is_not_a_store(self, folder, capsys, store):
        line = self.merge_error(folder, capsys, store)
        assert (
            line == f"DIR must be a folder with the file store.json, got {store}, which has none."
        )

    def test_a_hole(self, full, folder, capsys):
        next(full.glob("000002-001-*")).unlink()
        line = self.merge_error(folder, capsys)
        assert line.startswith(
            "DIR must hold every unit, got store, where 1 of 16 units are missing"
        )

    def test_a_duplicate(self, full, folder, capsys):
        found = next(full.glob("000002-001-*"))
        shutil.copy(found, found.with_name(f"000002-001-{'0' * 32}.npz"))
        assert "with two files for one: " in self.merge_error(folder, capsys)

    def test_a_foreign_unit(self, full, folder, capsys):
        found = next(full.glob("000002-001-*"))
        shutil.copy(found, found.with_name(found.name.replace("000002", "000009")))
        assert "which belongs to another one" in self.merge_error(folder, capsys)

    @pytest.mark.filterwarnings("ignore:A unit of `store` is computed again")
    def test_a_damaged_unit_and_its_repair(self, full, folder, capsys):
        next(full.glob("000002-001-*")).write_bytes(b"damaged")
        line = self.merge_error(folder, capsys)
        assert line.startswith("DIR must hold readable units, got a damaged one: ")
        assert main([*STORED, "--shard", "0/2"]) == 0
        assert main(["merge", "store"]) == 0

    def test_a_folder_of_units_that_is_missing(self, full, folder, capsys):
        shutil.rmtree(full)
        assert "No such file or directory" in self.merge_error(folder, capsys)

    def test_an_output_that_cannot_be_written(self, full, capsys):
        line = error_of(["merge", "store", "--out", "data.npz"], capsys)
        assert line == "--out: cannot write to data.npz: it is not a folder."

    def test_it_needs_neither_net_nor_data(self, full, folder, capsys):
        (folder / "mynets.py").unlink()
        (folder / "data.npz").unlink()
        assert main(["merge", "store", "--quiet"]) == 0
        assert capsys.readouterr() == ("", "")
        saved = json.loads((folder / "advkit-report" / "report.json").read_text())
        assert saved["page"] == "report.html"

    def test_without_the_packages_of_the_page(self, full, folder, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "jinja2", None)
        assert main(["merge", "store"]) == 0
        shown = capsys.readouterr()
        assert shown.err.startswith("advkit: warning: the report is written without report.html.")
        assert shown.out.endswith("saved advkit-report/report.json and advkit-report/records.npz\n")
