"""Writing: kills, full disks, links, special files, threads, and two runs on one checkpoint."""

import errno
import inspect
import json
import os
import random
import resource
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from advkit import attacks, defenses
from advkit import eval as rob
from advkit.cli import demo
from advkit.core import files
from advkit.core.archives import read_npz, write_npz
from advkit.defenses import MRR, LatentDefenders
from advkit.defenses.mrr import latent_layers

from .report_kills import killer
from .threads import switching

OLD, NEW = "old\n" * 20_000, "new\n" * 30_000
LOAD = f"""
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("files", {files.__file__!r})
files = importlib.util.module_from_spec(spec)
sys.modules["files"] = files
spec.loader.exec_module(files)
"""  # without torch, so that a process starts in no time
KILLED_AT_EACH_LINE = (
    LOAD
    + inspect.getsource(killer)
    + """
import itertools, json

folder, old, new = sys.argv[1], *json.load(sys.stdin)
target = os.path.join(folder, "report.json")
states, status = [], None
for line in itertools.count(1):
    files.save_text(target, old)
    child = os.fork()
    if not child:
        sys.settrace(killer(line))
        files.save_text(target, new)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    text = open(target).read()
    found = "old" if text == old else "new" if text == new else "damaged"
    left = len(os.listdir(folder)) - 1
    files.save_text(target, old)
    states.append((found, left, len(os.listdir(folder)) - 1))
    if not status:
        break
print(json.dumps(states))
"""
)
WRITES_FOR_EVER = (
    LOAD
    + """
print("ready", flush=True)
while True:
    for word in ("old", "new", "one"):
        files.save_text(sys.argv[1], (word + "\\n") * 100_000)
"""
)


def test_a_kill_at_any_line_of_a_write(tmp_path, tally):
    whole = tally("a file is the old or the new one after a kill while it is written")
    clean = tally("the next write removes what a killed one left")
    run = [sys.executable, "-IS", "-c", KILLED_AT_EACH_LINE, tmp_path]
    texts = json.dumps([OLD, NEW])
    states = json.loads(
        subprocess.run(run, input=texts.encode(), capture_output=True, check=True).stdout
    )
    for line, (found, _, left) in enumerate(states):
        with whole.trial(line):
            assert found in ("old", "new")
        with clean.trial(line):
            assert left == 0
    seen = {(found, temporary) for found, temporary, _ in states}
    assert seen == {("old", 0), ("old", 1), ("new", 0)}  # before, while and after it is written


def test_a_kill_at_any_moment(tmp_path, tally):
    promise = tally("a file is the old or the new one after a kill while it is written")
    target, rng = tmp_path / "report.json", random.Random(0)
    for trial in range(20):
        run = [sys.executable, "-IS", "-c", WRITES_FOR_EVER, target]
        with subprocess.Popen(run, stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            time.sleep(rng.uniform(0, 0.02))
            writer.kill()
        with promise.trial(trial):
            lines = target.read_text().splitlines() if target.exists() else ["none"] * 100_000
            assert len(lines) == 100_000
            assert len(set(lines)) == 1
            assert len(os.listdir(tmp_path)) <= 2


@pytest.mark.slow("starts processes again and again")
def test_a_kill_while_a_report_is_saved(tally, tmp_path):
    """Another process forks one that is killed for each line of the writing; see report_kills."""
    promise = tally("report.json tells whether report.html is of its run after a kill")
    belongs = tally("a report is loaded from files of one run only")
    run = [sys.executable, "-m", "tests.reliability.report_kills", tmp_path]
    states = json.loads(subprocess.run(run, check=True, capture_output=True).stdout)
    for line, state in enumerate(states):
        with promise.trial(line):
            assert state["page is whole"]
            fits = state["digest"] == state["digest of the page"]
            assert fits or not state["page is named"]
        with belongs.trial(line):
            assert state["loads"] == (state["digest"] == state["digest of the records"])
    seen = {(s["model"], s["model of the page"], s["page is named"]) for s in states}
    assert seen == {
        ("old", "old", True), ("new", "old", False), ("new", "new", False), ("new", "new", True)
    }  # fmt: skip
    assert len({s["digest"] for s in states}) == 2
    assert {s["loads"] for s in states} == {True, False}


class Disk:
    """A folder where no file can be written beyond some size."""

    def __init__(self, folder):
        self.folder = folder

    @contextmanager
    def full_after(self, size):
        """Let the write that goes beyond `size` bytes of a file be cut short, and the next fail."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


class SmallDisk(Disk):
    """A file system of half a megabyte."""

    @contextmanager
    def full_after(self, size):
        stat = os.statvfs(self.folder)
        (self.folder / "ballast").write_bytes(bytes(max(stat.f_bavail * stat.f_frsize - size, 0)))
        try:
            yield
        finally:
            (self.folder / "ballast").unlink()


@pytest.fixture(params=["limited size", "small disk"])
def disk(request, tmp_path):
    """A disk that can be full."""
    if request.param == "limited size":
        yield Disk(tmp_path)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", tmp_path]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk can be mounted by root only")
    try:
        yield SmallDisk(tmp_path)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def arrays(seed):
    return {"x": np.random.default_rng(seed).normal(size=10_000)}


def trained(path, epochs, hidden=5_000):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, hidden), nn.Linear(hidden, 2))
    defenses.fit(
        net,
        [(torch.rand(8, 4), torch.arange(8) % 2)],
        loss=lambda net, x, y: nn.functional.cross_entropy(net(x), y),
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        epochs=epochs,
        checkpoint=path,
        progress=False,
    )
    return net


WRITERS = {
    "text": lambda path, i: files.save_text(path, str(i) * 80_000),
    "JSON": lambda path, i: files.save_json(path, {"numbers": [i] * 10_000}),
    "archive": lambda path, i: write_npz(path, arrays(i)),
    "checkpoint": lambda path, i: trained(path, 1 + i),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk(disk, kind, tally):
    promise = tally("a full disk is an OSError, the old file stays, and nothing else is left")
    target = disk.folder / "target"
    WRITERS[kind](target, 0)
    old = target.read_bytes()
    for size in (0, 4096, 12_288, 40_960, 57_344, 65_536):
        with promise.trial((kind, size)):
            with (
                disk.full_after(size),
                pytest.raises(OSError, match="target|space|large") as caught,
            ):
                WRITERS[kind](target, 1)
            assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
            assert target.read_bytes() == old
            assert os.listdir(disk.folder) == ["target"]
    WRITERS[kind](target, 1)
    if kind == "archive":
        assert np.array_equal(read_npz(target, ["x"])["x"], arrays(1)["x"])


def test_a_full_disk_costs_the_command_no_more_than_its_cache(disk, tally, monkeypatch, capsys):
    promise = tally("a full disk is an OSError, the old file stays, and nothing else is left")
    monkeypatch.setenv("ADVKIT_CACHE", str(disk.folder))
    monkeypatch.setattr(demo, "_train", lambda net, progress: None)
    with promise.trial("cache"):
        with disk.full_after(65_536):
            demo.digits_net(progress=False)
        assert "the trained net could not be cached" in capsys.readouterr().err
        assert os.listdir(disk.folder) == []


def a_report(x, y):
    net = nn.Linear(4, 2)
    return rob.evaluate(net, x, y, attacks=[attacks.FGSM(eps=torch.full((8,), 0.1))])


def test_links_and_special_files(tmp_path, tally, monkeypatch):
    follows = tally("a write through a symbolic link keeps the link")
    refuses = tally("a folder, a device, a pipe or a socket is refused and stays")
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.mkdir("folder")
    os.mknod("device", 0o666 | 0o020000, os.makedev(1, 3)) if os.getuid() == 0 else None
    with socket.socket(socket.AF_UNIX) as own:
        own.bind("socket")
    os.symlink("/dev/null", "linked")
    special = sorted({*os.listdir(), "/dev/null"} - {"special"})
    for kind, write in WRITERS.items():
        for path in special:
            before = os.lstat(path)
            with refuses.trial((kind, path)):
                with pytest.raises(OSError, match="must be a regular file or not exist yet, got a"):
                    write(tmp_path / path, 1)
                assert os.path.samestat(os.lstat(path), before)
        for there in (True, False):
            name = f"{kind} {there}"
            os.symlink(f"deep/{name}", name)
            with follows.trial(name):
                if there:
                    write(tmp_path / "deep" / name, 0)
                write(tmp_path / name, 1)
                assert os.readlink(name) == f"deep/{name}"
                assert os.path.getsize(f"deep/{name}")
    assert set(os.listdir("deep")) == {f"{k} {t}" for k in WRITERS for t in (True, False)}


def test_a_report_is_not_saved_over_special_files(tmp_path, tally):
    pytest.importorskip("jinja2")
    pytest.importorskip("PIL")
    refuses = tally("a folder, a device, a pipe or a socket is refused and stays")
    report = a_report(torch.rand(8, 4), torch.arange(8) % 2)
    for name in ("report.json", "records.npz", "report.html"):
        folder = tmp_path / name
        folder.mkdir()
        os.mkfifo(folder / name)
        with refuses.trial(name):
            with pytest.raises(OSError, match=f"{name} must be a regular file"):
                report.save(folder)
            assert (folder / name).is_fifo()


@pytest.fixture
def _switching():
    with switching():
        yield


@contextmanager
def working(work, count):
    """`work(number, stop)` in `count` threads, which end with the block; errors are raised."""
    stop, errors = threading.Event(), []

    def guarded(number):
        try:
            work(number, stop)
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


@pytest.mark.usefixtures("_switching")
def test_the_umask_of_the_process_is_never_set(tmp_path, tally, monkeypatch):
    promise = tally("a file of another thread has the mode of the umask")
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # more writes in the same time

    def save(number, stop):
        while not stop.is_set():
            files.save_text(tmp_path / str(number), "text")

    def mode_of_a_new_file():
        path = tmp_path / "other"
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = path.stat().st_mode & 0o777
        path.unlink()
        return mode

    real = os.umask
    before = real(0o027)
    # a thread that sets it would lose its turn at once, and a file of another be open to all
    monkeypatch.setattr(os, "umask", lambda mask: (real(mask), time.sleep(0.001))[0])
    try:
        with working(save, 2):
            for trial in range(2_000):
                with promise.trial(trial):
                    assert mode_of_a_new_file() == 0o640
    finally:
        real(before)


@pytest.mark.usefixtures("_switching")
def test_threads_write_one_file(tmp_path, tally):
    """Each writer looks for files of killed writers, and must not take others for such."""
    promise = tally("a file that several threads write is whole at any time")
    target = files.save_text(tmp_path / "file", "0" * 10_000)

    def save(number, stop):
        while not stop.is_set():
            files.save_text(target, str(number) * 10_000)

    with working(save, 4):
        for trial in range(500):
            with promise.trial(trial):
                text = target.read_text()
                assert text == text[0] * 10_000
    assert os.listdir(tmp_path) == ["file"]


FITS = """
import sys, torch
from torch.utils.data import DataLoader, TensorDataset
from advkit import defenses

def loss(net, x, y):
    print("training", flush=True)
    sys.stdin.readline()

if __name__ == "__main__":
    net = torch.nn.Linear(4, 2)
    data = TensorDataset(torch.rand(8, 4), torch.arange(8) % 2)
    defenses.fit(
        net, DataLoader(data, num_workers=1), loss=loss, epochs=1, checkpoint=sys.argv[1],
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1), progress=False,
    )
"""
SECOND = "two runs on one checkpoint: the second is refused, and changes nothing"


def refused(run, path):
    """Assert that `run` is told that the checkpoint is in use, and that the file stays."""
    before = path.read_bytes()
    with pytest.raises(
        RuntimeError, match=f"`checkpoint` must belong to one run at a time, got .*{path.name}"
    ):
        run()
    assert path.read_bytes() == before


@pytest.mark.slow("starts processes")
def test_two_fits_in_two_processes(tmp_path, tally):
    """The first one is killed while a worker of its loader lives on for some seconds."""
    second = tally(SECOND)
    path = tmp_path / "net.pt"
    run = [sys.executable, "-c", FITS, path]
    with subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"training\n"
        with second.trial("process"):
            refused(lambda: trained(path, 1), path)
        first.kill()
        first.wait()
        path.unlink()  # of another net
        with tally("a killed run leaves no lock").trial("fit"):
            trained(path, 1)
            assert os.listdir(tmp_path) == ["net.pt"]
    with tally("a killed run leaves no lock").trial("again"):
        trained(path, 2)


@contextmanager
def blocked(run):
    """`run(block)` in a thread, which waits where it calls `block` until this block ends."""
    begun, end = threading.Event(), threading.Event()

    def block():
        begun.set()
        end.wait()

    def whole(number, stop):
        try:
            run(block)
        finally:
            begun.set()  # by an error too, which is raised at the end

    with working(whole, 1):
        begun.wait()
        try:
            yield
        finally:
            end.set()


def test_two_fits_in_two_threads(tmp_path, tally):
    second = tally(SECOND)
    path = tmp_path / "net.pt"
    net = nn.Linear(4, 2)
    other = nn.Linear(4, 2).train()

    def fit(net, block):
        def loss(net, x, y):
            block()
            return nn.functional.cross_entropy(net(x), y)

        defenses.fit(
            net, [(torch.rand(8, 4), torch.arange(8) % 2)], loss=loss, epochs=1, checkpoint=path,
            optimizer=torch.optim.SGD(net.parameters(), lr=0.1), progress=False,
        )  # fmt: skip

    with blocked(lambda block: fit(net, block)):
        for module, name in ((other, "another net"), (net, "the net itself")):
            with second.trial(name):
                refused(lambda module=module: fit(module, lambda: None), path)
                assert module.training
    with second.trial("afterwards"):
        fit(other, lambda: None)


def test_two_fits_of_defenders(tmp_path, tally, monkeypatch):
    path = tmp_path / "mrr.npz"
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    x, y = torch.rand(60, 4), torch.arange(60) % 2
    layer = LatentDefenders(layer="1", count=1, epochs=1)

    def fit():
        MRR([layer], joint_threshold=False).fit(net, x, y, checkpoint=path)

    def first(block):
        real = latent_layers.fit_latent
        monkeypatch.setattr(
            latent_layers, "fit_latent", lambda *args, **named: block() or real(*args, **named)
        )
        fit()

    with blocked(first), tally(SECOND).trial("MRR"):
        refused(fit, path)
