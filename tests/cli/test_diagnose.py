"""`advkit diagnose`, as a user meets it."""

import json
import re

import numpy as np
import pytest

from advkit import attacks
from advkit.cli import main
from advkit.cli.defaults import NORMS, ROLES
from advkit.cli.main import build_parser
from advkit.eval.diagnosis import comparisons

NETS = """
import torch
from torch import nn

def make():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(64)[:10])
        net[1].bias.zero_()
    return net

def soft():
    return nn.Sequential(make(), nn.Softmax(1))

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
DATA = ["--data", "data.npz"]
MINE = ["diagnose", "--model", "mynets.py:make", *DATA]
CHEAP = ["--eps", "0.1", "--without", "labels", "--without", "scores", "--without", "more_steps"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a model file and images that it labels correctly."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynets.py").write_text(NETS)
    images = np.random.default_rng(0).integers(0, 200, (40, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 10
    images.reshape(40, 64)[np.arange(40), labels] = 255
    np.savez("data.npz", images=images, labels=labels)
    return tmp_path


def test_a_sound_net_has_no_finding(folder, capsys):
    assert main([*MINE, *CHEAP]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert lines[:2] == [
        "TorchClassifier(Sequential, bounds=(0, 1))",
        "clean accuracy 100.00 % (40 of 40)",
    ]
    assert "Verdict: no check speaks against these figures." in lines
    rows = {line.split(":")[0] for line in lines if re.match(r"\w+: ", line)}
    assert rows == {"Probes", "Verdict", "one_step", "many_steps", "restarts", "unbounded"}
    assert max(map(len, lines)) <= 100


def test_a_net_of_probabilities_is_found_and_saved(folder, capsys):
    given = ["diagnose", "--model", "mynets.py:soft", *DATA, *CHEAP, "--out", "found.json"]
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "[high] probabilities" in shown
    assert "output='probabilities'" in shown
    assert shown.endswith("saved found.json\n")
    saved = json.loads((folder / "found.json").read_text())
    assert [finding["name"] for finding in saved["findings"]] == ["probabilities"]
    assert saved["robust_accuracy_in_report"] is None


def test_the_figure_of_attacks_is_diagnosed(folder, capsys):
    weak = "PGD:steps=1,step_size=0.001,random_start=False"
    given = ["--attack", weak, "--eps", "0.2", "--out", "found.json"]
    assert main([*MINE, *CHEAP, *given]) == 0
    assert "robust accuracy in the report" in capsys.readouterr().out
    saved = json.loads((folder / "found.json").read_text())
    assert "stronger_attack_found" in [finding["name"] for finding in saved["findings"]]
    assert saved["robust_accuracy_in_report"]["value"] > 0


def test_the_bounds_reach_the_attack_without_a_budget(folder):
    given = ["--bounds", "0", "255", "--out", "found.json", "--quiet", "--limit", "8"]
    assert main([*MINE, *CHEAP, "--eps", "9", *given]) == 0
    saved = json.loads((folder / "found.json").read_text())
    assert saved["probes"]["unbounded"]["eps"] == 255


def test_the_options_are_those_of_the_library():
    assert set(ROLES) == set(attacks.probes(0.1)) - {comparisons.REFERENCE}
    for norm in NORMS:
        attacks.probes(1.0, norm)


WRONG = [
    (["--data", "none.npz"], "--data: no such file: none.npz"),
    (["--model", "mynets.py:mak"], "--model: mynets.py has no factory 'mak', did you mean 'make'"),
    (["--model", "mynets.py:Broken"], "the diagnosis failed: OSError: disk on fire"),
    (["--attack", "PDG"], "--attack: there is no attack 'PDG', did you mean 'PGD'"),
    (["--norm", "l3"], "argument --norm: invalid choice: 'l3'"),
    (["--without", "many"], "argument --without: invalid choice: 'many'"),
    (["--unit", "pixel"], "--unit must be given with --norm l0, got --norm linf."),
    (["--eps", "0"], "`eps` must be positive and finite, got 0"),
    (["--limit", "none"], "argument --limit"),
    (["--out", "/dev/null"], "--out: /dev/null must be a regular file .*, got a character device"),
    (["--quiet"], "--out must be given with --quiet"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=lambda v: " ".join(v)[:40])
def test_bad_input_gets_one_line_and_status_2(folder, capsys, arguments, said):
    try:
        status = main([*MINE, *CHEAP, *arguments])
    except SystemExit as exit_:
        status = exit_.code
    shown = capsys.readouterr()
    assert status == 2
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert re.match("advkit( diagnose)?: error: ", shown.err)
    assert re.search(said, shown.err), shown.err


def test_a_budget_is_needed(folder, capsys):
    assert main(MINE) == 2
    assert "--eps must be given" in capsys.readouterr().err


def test_an_interrupt_says_so(folder, capsys):
    given = ["diagnose", "--model", "mynets.py:Stopped", *DATA, *CHEAP, "--out", "found.json"]
    assert main(given) == 130
    assert capsys.readouterr().err == "advkit diagnose: interrupted, nothing saved\n"
    assert not (folder / "found.json").exists()


def test_a_result_that_cannot_be_saved_is_printed(folder, capsys, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("advkit.eval.Diagnosis.save_json", fail)
    assert main([*MINE, *CHEAP, "--limit", "4", "--out", "found.json"]) == 2
    shown = capsys.readouterr()
    assert "Verdict" in shown.out
    assert "--out: cannot write found.json" in shown.err


def test_the_help_explains_itself_and_its_examples_can_be_run(capsys):
    with pytest.raises(SystemExit):
        main(["diagnose", "--help"])
    shown = capsys.readouterr().out
    for word in ("Find reasons to doubt", "--without ROLE", "FILE.json"):
        assert word in shown
    examples = re.findall(r"^  advkit (diagnose.*)$", shown, re.M)
    assert len(examples) == 4
    for example in examples:
        build_parser().parse_args(example.split())
    assert max(map(len, shown.splitlines())) <= 110


def test_a_budget_in_pixels(folder):
    given = ["--norm", "l0", "--unit", "pixel", "--eps", "1", "--suite", "--limit", "4"]
    assert main([*MINE, *CHEAP, *given, "--out", "found.json", "--quiet"]) == 0
    saved = json.loads((folder / "found.json").read_text())
    assert saved["probes"]["many_steps"]["norm"] == "l0_pixel"
    assert saved["robust_accuracy_in_report"]["total"] == 4
