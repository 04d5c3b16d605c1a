"""What the studies share, and what holds for each of them."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advkit.data import Dataset

STUDIES = Path(__file__).parents[3] / "examples" / "studies"
SCRIPTS = sorted(p.stem for p in STUDIES.glob("*.py") if "\ndef main(" in p.read_text())
WITHOUT_DATA = {"digits_defenses", "serve_a_guard", "serve_over_http"}
STUDIES_WITH_DATA = [name for name in SCRIPTS if name not in {*WITHOUT_DATA, "get_data"}]
DATA_FILE = re.compile(r'"((?:mnist|cifar10|gtsrb|imagenet)_\w+\.(?:npz|pt|txt))"')


def imported(path):
    """The names of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_there_are_studies():
    assert len(SCRIPTS) == 20


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.py")), ids=lambda path: path.stem)
def test_no_study_is_imported(path):
    assert not set(imported(path)) & set(SCRIPTS)


@pytest.mark.parametrize("name", STUDIES_WITH_DATA)
def test_without_data_it_names_the_files_and_ends(study, name, monkeypatch, capsys, tmp_path):
    """In an empty folder, and in one that does not exist; no study begins and then fails."""
    for folder in (tmp_path, tmp_path / "none"):
        monkeypatch.setattr("sys.argv", [f"{STUDIES}/{name}.py", "--data", str(folder)])
        with pytest.raises(SystemExit) as end:
            importlib.import_module(name).main()
        out, err = capsys.readouterr()
        assert (end.value.code, out) == (2, "")
        message = re.fullmatch(
            rf"{name}\.py: error: `--data` must name a folder with (.*), got (.*)\. "
            r"See docs/data\.md for their sources\.\n",
            err,
        )
        assert message
        assert message[2] == str(folder)
        named = re.split(", | and ", message[1])
        own = set(DATA_FILE.findall((STUDIES / f"{name}.py").read_text()))
        assert own <= set(named)
        assert set(named) <= set(importlib.import_module("get_data").FILES)


def test_a_part_of_a_study_needs_its_own_files_alone(study, monkeypatch, capsys, tmp_path):
    mrr, victims = importlib.import_module("mrr_study"), importlib.import_module("mrr_victims")
    assert set(mrr.FILES_OF_PARTS) == set(mrr.PARTS)
    source = (STUDIES / "mrr_victims.py").read_text()
    assert set(DATA_FILE.findall(source)) == {
        name for row in victims.FILES.values() for name in row
    }
    line = ["mrr_study.py", "--data", str(tmp_path), "--only", "mobilenet"]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(SystemExit):
        mrr.main()
    assert "with imagenet_sample_224.npz and imagenet_mobilenet_v1_050.pt, got" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("part", ["mlp", "lenet5", "resnet20", "resnet20_half", "cnn"])
def test_a_victim_reads_the_files_that_are_required(study, part, monkeypatch, tmp_path):
    """Each file is required before the study begins, and each that is required is read."""
    victims, read = importlib.import_module("mrr_victims"), set()

    def load(path, *_):
        read.add(path.name)
        return Dataset(torch.rand(12, 1, 4, 4), torch.zeros(12).long(), path.name)

    monkeypatch.setattr(victims, "load_npz", load)
    monkeypatch.setattr(victims, "loaded", lambda net, path: (read.add(path.name), net)[1])
    monkeypatch.setattr(victims, "kept", lambda path, net, learn: net)
    victims.VICTIMS[part](tmp_path, victims.QUICK, None)
    assert read == set(victims.FILES[part])


@pytest.mark.parametrize("name", sorted(WITHOUT_DATA))
def test_other_studies_take_no_data(study, name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(name).main()
    assert "--data" not in capsys.readouterr().out


def test_only_the_missing_files_are_named(study, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["examples/a_study.py"])
    (tmp_path / "there").touch()
    study.require_files(tmp_path, "there")
    for names, listed in (
        (["there", "a"], "a"),
        (["b", "there", "a", "b"], "b and a"),
        (["c", "b", "a"], "c, b and a"),
    ):
        with pytest.raises(SystemExit) as end:
            study.require_files(tmp_path, *names)
        assert end.value.code == 2
        sources = "its source" if listed == "a" else "their sources"
        assert capsys.readouterr().err == (
            f"a_study.py: error: `--data` must name a folder with {listed}, got {tmp_path}. "
            f"See docs/data.md for {sources}.\n"
        )


def test_arguments_are_those_asked_for(study, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x"])
    assert vars(study.arguments("A study.")) == {"quick": False}
    line = ["x", "--data", "in", "--out", "there", "--quick", "--only", "b, c"]
    monkeypatch.setattr("sys.argv", line)
    found = study.arguments("A study.", data="images", out="a file", only=["a", "b, c"])
    assert (str(found.data), str(found.out), found.quick, found.only) == (
        "in",
        "there",
        True,
        "b, c",
    )
    with pytest.raises(SystemExit):
        study.arguments("A study.", data="images", out="a file", only=["a"])
    assert "'b, c'" in capsys.readouterr().err


def test_draws_are_those_of_the_seed_and_leave_no_trace(study):
    torch.manual_seed(3)
    with study.seeded(1):
        first = torch.rand(2)
    after = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), after)
    with study.seeded(1):
        assert torch.equal(torch.rand(2), first)


@pytest.mark.parametrize("settings", [{"lr": 0.05}, {"peak": 0.1}])
def test_a_net_learns(study, settings):
    y = torch.arange(40) % 2
    x = y[:, None].float() + 0.1 * torch.rand(40, 1)
    net = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 2))
    before = F.cross_entropy(net(x), y)
    loader = study.batches(x, y, 8)
    assert study.learn(net, loader, loss=study.cross_entropy, epochs=20, **settings) is net
    assert F.cross_entropy(net(x), y) < before / 4
    assert not net.training


def test_half_of_the_images_are_mirrored(study):
    x = torch.zeros(1000, 1, 1, 2)
    x[..., 0] = 1
    net = nn.Flatten()  # its first logit is 1, unless mirrored
    y = torch.zeros(1000).long()
    plain, mirrored = (F.cross_entropy(net(v), y[:1]) for v in (x[:1], x[:1].flip(3)))
    share = (study.mirrored_cross_entropy(net, x, y) - plain) / (mirrored - plain)
    assert 0.4 < share < 0.6


def test_tables(study):
    assert study.table(["a", 0.1], [["b", 1.234], ["c", 7]]) == (
        "| a | 0.1 |\n| --- | --- |\n| b | 1.23 |\n| c | 7 |"
    )
    assert study.percent(torch.tensor([True, False, False, False])) == 25


def test_a_part_is_seeded_printed_and_written(study, capsys, tmp_path):
    def part():
        return {"drawn": torch.rand(()).item()}, "a table"

    study.run_part("one", part, tmp_path)
    study.run_part("two", part, tmp_path)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["drawn"] == two["drawn"]
    assert one["seconds"] == 0
    study.run_part("three", part, None)
    assert capsys.readouterr().out == "a table\n" * 3
    assert len(list(tmp_path.iterdir())) == 2


def test_weights_are_loaded(study, tmp_path):
    net, other = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    assert torch.equal(study.loaded(other, tmp_path / "net.pt").weight, net.weight)


def test_batches_are_shuffled(study):
    x = torch.arange(40.0)
    first, second = (torch.cat([a for a, _ in study.batches(x, x, 8)]) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, x)


def test_the_learning_rate_goes_through_one_cycle(study):
    rates, net = [], nn.Linear(1, 2)

    class Spy(torch.optim.Adam):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    loader = study.batches(torch.rand(40, 1), torch.zeros(40).long(), 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Adam", Spy)
        study.learn(net, loader, loss=study.cross_entropy, epochs=3, peak=0.1)
    assert len(rates) == 30
    assert max(rates) == pytest.approx(0.1, rel=0.02)
    assert rates[0] < 0.01 > rates[-1]
