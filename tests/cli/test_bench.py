"""`advkit bench`, as a user meets it."""

import json
import re
import sys
from typing import get_args

import numpy as np
import pytest
import torch

from advkit.cli import main
from advkit.cli.bench import _attacks
from advkit.cli.defaults import NORMS
from advkit.cli.main import build_parser
from advkit.cli.specs import attacks_from, minimum_norm_attacks
from advkit.core.norms import Norm

NETS = """
import torch
from torch import nn

def make():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(64)[:10])
        net[1].bias.zero_()
    return net

class Stopped(nn.Module):
    error = KeyboardInterrupt

    def __init__(self):
        super().__init__()
        self.net = make()

    def forward(self, x):
        if x.requires_grad:
            raise self.error
        return self.net(x)

class Broken(Stopped):
    error = OSError("disk on\\nfire")
"""

MINE = ["bench", "--model", "mynets.py:make", "--data", "data.npz"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a model file and images that it labels correctly but for two."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (40, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 10
    images.reshape(40, 64)[np.arange(40), labels] = 255
    labels[:2] = 9
    np.savez("data.npz", images=images, labels=labels)
    np.savez("wrong.npz", images=images, labels=(np.arange(40) + 1) % 10)
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "kept").mkdir()
    return tmp_path


def files(folder):
    """What lies in a folder, but for what Python puts there itself."""
    return {p.name for p in folder.iterdir() if p.name != "__pycache__"}


def test_a_net_of_ones_own(folder, capsys):
    assert main([*MINE, "--eps", "0.1", "--rounds", "1"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert lines[:4] == [
        "TorchClassifier(Sequential, bounds=(0, 1)) on 40 inputs",
        "attacked: 38, which the model labels correctly",
        "data: data.npz",
        "net: mynets.py:make",
    ]
    assert "Within linf 0.1" in lines
    assert "Nearest in linf, at any distance" in lines
    rows = {line[2:].split()[0] for line in lines if re.match(r"[* ] \w+ .*\d$", line)}
    assert rows == {"FGSM", "BIM", "PGD", "DeepFool", "FAB"}
    assert max(map(len, lines)) <= 100
    assert files(folder) == {"mynets.py", "data.npz", "wrong.npz", "taken", "kept"}


def groups(out):
    """Titles of the groups in a file, each with the names of its attacks."""
    saved = json.loads(out.read_text())
    names = {attack["attack"]: attack["name"] for attack in saved["attacks"]}
    return {g["title"]: {names[row["attack"]] for row in g["rows"]} for g in saved["groups"]}


def bench(*options):
    return main([*MINE, "--limit", "4", "--rounds", "1", "--quiet", "--out", "out.json", *options])


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_selects_the_minimum_norm_attacks_with_a_form_in_it(folder, norm):
    assert bench("--norm", norm) == 0
    (found,) = groups(folder / "out.json").items()
    title, names = found
    assert title == f"Nearest in {norm}, at any distance"
    assert names == set(minimum_norm_attacks(norm)) >= NEAREST[norm]
    rows = json.loads((folder / "out.json").read_text())["groups"][0]["rows"]
    assert all(0 <= row["distance_ratio"] <= 1 for row in rows)


NEAREST = {
    "l0": {"JSMA"},
    "l1": {"FAB"},
    "l2": {"DeepFool", "FAB", "CarliniWagnerL2", "LBFGS", "HopSkipJump"},
    "linf": {"DeepFool", "FAB", "HopSkipJump"},
}


def test_the_norms_are_those_of_the_package():
    in_pixels = "l0_pixel"  # the norm of an attack in l0 with unit="pixel"
    assert tuple(norm for norm in get_args(Norm) if norm != in_pixels) == NORMS
    assert NEAREST.keys() == set(NORMS)


def test_with_a_budget_a_norm_selects_budget_attacks_too(folder):
    assert bench("--norm", "l1", "--eps", "3") == 0
    found = groups(folder / "out.json")
    assert found["Within l1 3"] >= {"FGM", "PGD", "APGD", "Square", "Suite", "FAB"}
    assert not found["Within l1 3"] & {"AutoAttack", "RandomNoise"}
    assert bench("--norm", "linf", "--eps", "0.1") == 0
    found = groups(folder / "out.json")["Within linf 0.1"]
    assert {"FGSM", "FGM", "BIM", "PGD", "APGD", "Square", "DeepFool", "FAB"} <= found


def test_a_norm_is_that_of_attacks_that_do_not_set_one(folder):
    given = ["--attack", "FAB:steps=5", "--attack", "DeepFool:norm=linf", "--attack", "LBFGS"]
    assert bench("--norm", "l2", *given) == 0
    assert groups(folder / "out.json") == {
        "Nearest in l2, at any distance": {"FAB", "LBFGS"},
        "Nearest in linf, at any distance": {"DeepFool"},
    }


def test_all_means_those_with_a_form_in_the_norm():
    made = attacks_from(["all"], [2.0], seed=0, norm="l1")
    assert {attack.norm for attack in made} == {"l1"}
    names = {type(attack).__name__ for attack in made}
    assert names >= {"FAB", "PGD", "APGD", "Square", "Suite", "RandomNoise"}
    assert not names & {"FGSM", "JSMA", "LBFGS", "DeepFool"}
    assert {type(a).__name__ for a in attacks_from(["all"], [8], seed=0, norm="l0")} >= {"JSMA"}


def test_the_digits_have_budgets_in_linf_and_l2_alone():
    def selected(norm):
        args = build_parser().parse_args(["bench", "--norm", norm])
        return {(type(a).__name__, getattr(a, "eps", None)) for a in _attacks(args)}

    assert {("PGD", 0.15), ("Square", 0.15), ("FAB", None)} <= selected("linf")
    assert {("PGD", 0.75), ("FGM", 0.75), ("LBFGS", None)} <= selected("l2")
    assert {eps for _, eps in selected("l1") | selected("l0")} == {None}


def test_every_option_arrives(folder, capsys):
    options = [
        "--bounds", "-1", "1", "--mean", "0.1", "--std", "2", "--attack", "pgd:norm=l2,steps=3",
        "--eps", "1/2", "--limit", "10", "--batch-size", "4", "--seed", "5", "--device", "cpu",
        "--layout", "auto", "--rounds", "2", "--out", "new/here.json", "--quiet",
    ]  # fmt: skip
    assert main([*MINE, *options]) == 0
    assert capsys.readouterr() == ("", "")
    found = json.loads((folder / "new" / "here.json").read_text())
    assert (found["inputs"], found["attacked"]) == (10, 8)
    assert (found["batch_size"], found["rounds"], found["device"]) == (4, 2, "cpu")
    assert found["about"] == {"data": "data.npz", "net": "mynets.py:make", "seed": "5"}
    (attack,) = found["attacks"]
    assert attack["settings"] == {"norm": "l2", "eps": 0.5, "steps": 3, "seed": 5}
    assert attack["passes"] > 0


def test_a_batch_of_images_unless_more_are_wanted(folder):
    assert build_parser().parse_args(["bench"]).limit == 128
    assert build_parser().parse_args(["evaluate"]).limit is None


def test_what_is_written_is_said(folder, capsys):
    assert main([*MINE, "--attack", "DeepFool", "--rounds", "1", "--out", "found.json"]) == 0
    assert capsys.readouterr().out.endswith("\n\nsaved found.json\n")
    assert json.loads((folder / "found.json").read_text())["groups"][0]["norm"] == "l2"


def test_no_extra_is_needed(folder, monkeypatch, capsys):
    extras = ("matplotlib", "jinja2", "tqdm", "safetensors")
    for module in {*sys.modules, *extras}:
        if module.split(".")[0] in extras:
            monkeypatch.setitem(sys.modules, module, None)
    assert main([*MINE, "--eps", "0.1", "--rounds", "1", "--out", "found.json"]) == 0


@pytest.mark.parametrize(
    ("tqdm", "shown"), [pytest.param(None, False, id="without tqdm"), ("tqdm", True)]
)
def test_a_bar_is_shown_where_there_is_one_to_show(folder, monkeypatch, capsys, tqdm, shown):
    pytest.importorskip("tqdm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("advkit.cli.printing.find_spec", lambda name: tqdm)
    assert main([*MINE, "--attack", "DeepFool", "--rounds", "1"]) == 0
    assert ("runs: 100%" in capsys.readouterr().err) is shown


WRONG = [
    (["--data", "none.npz"], "--data: no such file: none.npz"),
    (["--data", "wrong.npz"], "the benchmark failed: ValueError: `x` must hold inputs that the"),
    (["--model", "mynets.py:mak"], "--model: mynets.py has no factory 'mak', did you mean 'make'"),
    (["--model", "mynets.py:Broken"], "the benchmark failed: OSError: disk on fire"),
    (["--attack", "PDG"], "--attack: there is no attack 'PDG', did you mean 'PGD'"),
    (["--attack", "DeepFool"], "--eps must be omitted, .* needs it .DeepFool.."),
    (["--norm", "l3"], "argument --norm: invalid choice: 'l3' .choose from .*l0.*linf"),
    (
        ["--norm", "l0", "--attack", "FGSM"],
        "--attack FGSM: FGSM must have a form in --norm l0, got "
        "an attack in linf. Attacks with one are .*JSMA",
    ),
    (["--norm", "l0", "--attack", "PGD"], "--attack PGD: `norm` must be one of 'linf'.*got 'l0'"),
    (["--mean", "0.5"], "--mean and --std must be given together"),
    (["--rounds", "0"], "argument --rounds: must be an integer of at least 1, got '0'"),
    (["--round", "x"], "argument --rounds: must be an integer"),
    (["--limit", "none"], "argument --limit"),
    (["--out", "kept"], "--out: kept must be a regular file or not exist yet, got a folder."),
    (["--out", "/dev/null"], "--out: /dev/null must be a regular file .*, got a character device"),
    (["--out", "taken/found.json"], "--out: .*Not a directory: 'taken/found.json'"),
    (["--quiet"], "--out must be given with --quiet"),
    (["--colour", "red"], "unrecognized arguments: --colour red"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=lambda v: " ".join(v)[:40])
def test_bad_input_gets_one_line_and_status_2(folder, capsys, arguments, said):
    before = files(folder)
    try:
        status = main([*MINE, "--eps", "0.1", *arguments])
    except SystemExit as exit_:
        status = exit_.code
    shown = capsys.readouterr()
    assert status == 2
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert re.match("advkit( bench)?: error: ", shown.err)
    assert re.search(said, shown.err), shown.err
    assert files(folder) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "mynets.py:make"], "--data must be given"),
        (["--data", "data.npz"], "--model must be given"),
        (["--model", "mynets.py:make", "--data", "data.npz"], "--eps must be given .*--eps 8/255"),
    ],
)
def test_what_is_missing_is_named(folder, capsys, arguments, said):
    assert main(["bench", *arguments]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_an_interrupt_says_so(folder, capsys):
    arguments = ["bench", "--model", "mynets.py:Stopped", "--data", "data.npz", "--eps", "0.1"]
    assert main([*arguments, "--out", "found.json"]) == 130
    assert capsys.readouterr().err == "advkit bench: interrupted, nothing saved\n"
    assert not (folder / "found.json").exists()


def test_the_traceback_is_there_on_demand(folder):
    arguments = ["bench", "--model", "mynets.py:Broken", "--data", "data.npz", "--eps", "0.1"]
    with pytest.raises(Exception, match="disk on fire") as caught:
        main([*arguments, "--traceback"])
    assert isinstance(caught.value.__cause__, OSError)


def test_the_help_explains_itself_and_its_examples_can_be_run(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    shown = capsys.readouterr().out
    for word in ("One pass is a forward and backward", "A * marks", "--rounds N", "FILE.json"):
        assert word in shown
    examples = re.findall(r"^  advkit (bench.*)$", shown, re.M)
    assert len(examples) == 6
    for example in examples:
        args = build_parser().parse_args(example.split())
        attacks_from(args.attack or ["FGSM"], args.eps or [], seed=0, default_eps=[0.1])
    assert max(map(len, shown.splitlines())) <= 110


@pytest.mark.slow("runs every attack")
def test_the_default_job_has_groups_of_every_kind(tmp_path, monkeypatch, capsys):
    """On a net that is hardly trained: which attacks run, not what they find."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("advkit.cli.demo.EPOCHS", 1)
    monkeypatch.setenv("ADVKIT_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    assert main(["bench", "--limit", "4", "--rounds", "1", "--out", "found.json", "--quiet"]) == 0
    assert torch.get_num_threads() == before
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["threads"] == 1
    assert [group["title"] for group in found["groups"]] == [
        "Within linf 0.15",
        "Within l2 0.75",
        "Nearest in l2, at any distance",
        "Nearest in linf, at any distance",
        "Nearest in l0, at any distance",
    ]
    assert {len(group["rows"]) for group in found["groups"]} == {7, 6, 4, 2, 1}
