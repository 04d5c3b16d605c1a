"""The command line, as a user meets it."""

import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from advkit import attacks, data, defenses
from advkit.attacks.suite import Effort
from advkit.cli import main
from advkit.cli.defaults import SUITES
from advkit.cli.errors import UsageError
from advkit.cli.loading import load_weights
from advkit.cli.main import build_parser
from advkit.cli.numbers import number
from advkit.cli.specs import attacks_from, known_attacks, unwritable_attacks

for package in ("jinja2", "PIL", "safetensors", "tqdm"):
    pytest.importorskip(package)

NETS = """
import torch
from torch import nn

def make():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        net[1].weight.copy_(torch.linspace(-1, 1, 640).view(10, 64).roll(3, 1))
    return net

def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(63, 10))

def fails():
    raise OSError("no weights\\nhere")

class Overflows(nn.Module):
    def forward(self, x):
        return torch.full((len(x), 10), torch.inf)

def number():
    return 3

class Interrupted(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = make()

    def forward(self, x):
        if (x[:, 0, 0, 0] == 1).any():
            raise KeyboardInterrupt
        return self.net(x)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a model file, weights and data, and the command run in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez("data.npz", images=images, labels=rng.integers(0, 10, 40))
    for name, marked in (("soon", 5), ("late", 30)):
        marks = images.copy()
        marks[:, 0, 0] = np.where(np.arange(40) == marked, 255, 0)
        np.savez(f"{name}.npz", images=marks, labels=np.arange(40) % 10)
    np.savez("float.npz", images=images / 100.0, labels=np.zeros(40, int))
    holed = images / 255.0
    holed[2, 0, 0] = np.nan
    np.savez("nan.npz", images=holed, labels=np.zeros(40, int))
    np.savez("labels.npz", images=images, labels=np.full(40, 10))
    np.savez("odd.npz", pictures=images)
    np.savez("empty.npz", images=images[:0], labels=np.zeros(0, int))
    weights = {"1.weight": 2 * torch.eye(64)[:10], "1.bias": torch.zeros(10)}
    torch.save(weights, "net.pt")
    torch.save({"state_dict": weights, "epoch": 3}, "checkpoint.pt")
    torch.save({"1.weight": torch.eye(64)[:10]}, "half.pt")
    torch.save([1, 2], "list.pt")
    (tmp_path / "noise.pt").write_bytes(b"hello")
    (tmp_path / "taken").write_text("a file")
    return tmp_path


MINE = ["evaluate", "--model", "mynets.py:make", "--data", "data.npz"]


def test_a_net_of_ones_own(folder, capsys):
    assert main([*MINE, "--eps", "8/255", "--eps", "0.1", "--out", "here"]) == 0
    shown = capsys.readouterr()
    assert "Suite(eps=0.03137)" in shown.out
    assert "saved here/report.json, here/records.npz and here/report.html" in shown.out
    assert shown.err == ""
    report = json.loads((folder / "here" / "report.json").read_text())
    assert report["inputs"] == 40
    ran = [a["attack"] for a in report["attacks"]]
    assert ran == ["Suite(eps=0.03137)", "Suite(eps=0.1)"]
    assert sorted(p.name for p in (folder / "here").iterdir()) == [
        "records.npz", "report.html", "report.json",
    ]  # fmt: skip


def ran(folder):
    """Return the attacks of the report, each with its settings."""
    report = json.loads((folder / "advkit-report" / "report.json").read_text())
    return {a["attack"]: a["settings"] for a in report["attacks"]}


class TestSuite:
    @pytest.mark.parametrize(
        ("spelling", "name"),
        [
            (["--suite"], "Suite(eps=0.1)"),
            (["--suite", "fast"], "Suite(eps=0.1)"),
            (["--attack", "Suite"], "Suite(eps=0.1)"),
            (["--suite", "thorough"], "Suite(eps=0.1, effort='thorough')"),
            (["--attack", "suite:effort=thorough"], "Suite(eps=0.1, effort='thorough')"),
        ],
        ids=" ".join,
    )
    def test_the_report_names_it(self, folder, capsys, spelling, name):
        assert main([*MINE, *spelling, "--eps", "0.1", "--limit", "5"]) == 0
        assert name in capsys.readouterr().out
        assert list(ran(folder)) == [name]

    def test_it_runs_at_every_budget_next_to_other_attacks(self, folder):
        arguments = ["--attack", "FGSM:eps=0.3", "--suite", "--eps", "0.1", "--eps", "0.2"]
        assert main([*MINE, *arguments, "--limit", "5"]) == 0
        assert list(ran(folder)) == ["Suite(eps=0.1)", "Suite(eps=0.2)", "FGSM(eps=0.3)"]

    def test_equal_attacks_run_once(self, folder):
        arguments = ["--suite", "--attack", "Suite", "--attack", "FGSM", "--eps", "0.1"]
        assert main([*MINE, *arguments, "--limit", "5"]) == 0
        assert list(ran(folder)) == ["Suite(eps=0.1)", "FGSM(eps=0.1)"]

    @pytest.mark.parametrize("chosen", [[], ["--suite"], ["--suite", "thorough"]], ids=" ".join)
    def test_the_seed_reaches_it(self, folder, chosen):
        assert main([*MINE, *chosen, "--eps", "0.1", "--limit", "5", "--seed", "7"]) == 0
        ((name, settings),) = ran(folder).items()
        assert name.startswith("Suite(eps=0.1")
        assert settings["seed"] == 7

    @pytest.mark.parametrize(
        ("chosen", "name"),
        [
            ([], "Suite"),
            (["--suite"], "Suite"),
            (["--suite", "thorough"], "Suite:effort=thorough"),
            (["--suite", "--attack", "DeepFool"], "Suite"),
        ],
        ids=str,
    )
    def test_it_needs_a_budget(self, folder, capsys, chosen, name):
        assert main([*MINE, *chosen]) == 2
        assert capsys.readouterr().err == (
            f"advkit evaluate: error: --eps must be given for {name}, such as --eps 8/255.\n"
        )
        assert not (folder / "advkit-report").exists()

    def test_the_parser_has_the_efforts_of_the_attack(self):
        assert tuple(SUITES) == get_args(Effort)
        made = [attacks_from([spec], [0.1], seed=0)[0].effort for spec in SUITES.values()]
        assert made == [*SUITES]


@pytest.mark.filterwarnings("ignore:the model returned NaN or infinite logits")
def test_a_net_that_overflows_is_reported(folder, capsys):
    argv = ["evaluate", "--model", "mynets.py:Overflows", "--data", "data.npz", "--eps", "0.1"]
    assert main(argv) == 0
    assert "NaN or infinite logits for 40 inputs" in " ".join(capsys.readouterr().out.split())
    report = json.loads((folder / "advkit-report" / "report.json").read_text())
    assert report["inputs_not_finite"] == list(range(40))
    assert report["clean_accuracy"]["count"] == 0


def test_every_option_arrives(folder):
    options = [
        "--weights", "net.pt", "--bounds", "-1", "1", "--mean", "0.1", "--std", "2",
        "--attack", "pgd:norm=l2,steps=3,random_start=false,step_size=none", "--eps", "1/2",
        "--limit", "10", "--batch-size", "4", "--seed", "5", "--device", "cpu", "--quiet",
        "--layout", "auto",
    ]  # fmt: skip
    assert main([*MINE, *options]) == 0
    report = json.loads((folder / "advkit-report" / "report.json").read_text())
    assert report["inputs"] == 10
    assert report["bounds"] == [-1, 1]
    assert report["about"] == {
        "data": "data.npz", "net": "mynets.py:make with net.pt", "seed": "5",
    }  # fmt: skip
    assert report["attacks"][0]["settings"] == {
        "norm": "l2", "eps": 0.5, "steps": 3, "random_start": False, "seed": 5,
    }  # fmt: skip


def test_quiet_is_quiet(folder, capsys):
    assert main([*MINE, "--eps", "0.1", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_weights_are_found_in_checkpoints_and_behind_prefixes(folder, key, prefix):
    weights = {f"{prefix}1.weight": 3 * torch.eye(64)[:10], f"{prefix}1.bias": torch.zeros(10)}
    torch.save(weights if key is None else {key: weights, "epoch": 3}, "some.pt")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    load_weights(net, folder / "some.pt")
    assert torch.equal(net[1].weight, 3 * torch.eye(64)[:10])


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_weights_of_a_checkpoint_of_fit_are_those_that_it_ends_with(folder, ema):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer, test = torch.optim.SGD(net.parameters(), lr=0.1), data.digits("test").head(20)
    loss = defenses.LabelSmoothing(smoothing=0.1)
    batch = [(test.x, test.y)] * 3
    defenses.fit(net, batch, loss=loss, optimizer=optimizer, epochs=1, ema=ema,
                 checkpoint="run.pt", progress=False)  # fmt: skip
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    load_weights(other, folder / "run.pt")
    assert torch.equal(other[1].weight, net[1].weight)


@pytest.mark.parametrize(
    "content",
    [
        {"format": "advkit training 1"},
        {"format": "advkit training 1", "averaged": 3, "model": None},
        {"format": "advkit training 1", "averaged": {3: torch.zeros(2)}, "model": {}},
        {"model": {1: torch.zeros(2)}},
    ],
)
def test_a_checkpoint_without_weights_is_refused(folder, content):
    torch.save(content, "odd.pt")
    with pytest.raises(UsageError, match="--weights: .*odd.pt does not fit the model"):
        load_weights(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), folder / "odd.pt")


def test_a_module_with_such_a_name_keeps_it(folder):
    net = nn.Sequential()
    net.module = nn.Linear(2, 2)
    torch.save({key: value + 1 for key, value in net.state_dict().items()}, "own.pt")
    before = net.module.weight.detach().clone()
    load_weights(net, folder / "own.pt")
    assert torch.equal(net.module.weight, before + 1)


@pytest.mark.parametrize("weights", ["net.pt", "checkpoint.pt", "net.safetensors"])
def test_weights_are_loaded(folder, weights):
    from safetensors.torch import save_file

    save_file(torch.load("net.pt", weights_only=True), "net.safetensors")
    images = np.zeros((10, 8, 8), np.uint8)
    images.reshape(10, 64)[range(10), range(10)] = 255
    np.savez("eye.npz", images=images, labels=np.arange(10))
    arguments = ["evaluate", "--model", "mynets.py:make", "--data", "eye.npz", "--eps", "0"]
    assert main([*arguments, "--weights", weights, "--quiet"]) == 0
    report = json.loads((folder / "advkit-report" / "report.json").read_text())
    assert report["clean_accuracy"]["value"] == 1.0


WRONG = [
    (["--data", "none.npz"], "--data: no such file: none.npz"),
    (["--data", "odd.npz"], "--data: odd.npz must hold the arrays images and labels"),
    (["--data", "labels.npz"], "--data: `labels` must be below 10"),
    (["--data", "float.npz"], r"`images` must lie in .*\[0, 1\].* Set --bounds LOWER UPPER"),
    (
        ["--data", "nan.npz"],
        r"--data: nan.npz: `images` must be finite, got NaN or infinity \(sample 2\).$",
    ),
    (["--data", "empty.npz"], "--data must hold at least one image, got none"),
    (["--data", "mynets.py"], "--data: mynets.py is not an .npz archive"),
    (["--model", "mynets.py"], "--model must be FILE.py:FACTORY, got 'mynets.py'"),
    (["--model", "none.py:make"], "--model: no such file: none.py"),
    (["--model", "mynets.py:mak"], "--model: mynets.py has no factory 'mak', did you mean 'make'"),
    (["--model", "mynets.py:fails"], r"--model: fails\(\) failed: OSError: no weights here"),
    (["--model", "mynets.py:number"], r"--model: number\(\) must return a torch.nn.Module.* int"),
    (["--model", "mynets.py:wide"], r"--model: the forward pass of one input of shape \(1, 1, 8"),
    (["--model", "data.npz:make"], "--model: data.npz is not a Python file"),
    (["--weights", "none.pt"], "--weights: no such file: none.pt"),
    (["--weights", "half.pt"], "--weights: half.pt does not fit the model.*1.bias"),
    (["--weights", "list.pt"], "--weights: list.pt must hold a state dict, got list"),
    (["--weights", "noise.pt"], "--weights: cannot read noise.pt"),
    (["--attack", "PDG"], "--attack: there is no attack 'PDG', did you mean 'PGD'"),
    (["--attack", "carliniwagner"], "no attack 'carliniwagner', did you mean 'CarliniWagnerL2'"),
    (["--attack", "deepfol"], "there is no attack 'deepfol', did you mean 'DeepFool'"),
    (["--attack", "lbfgss"], "no attack 'lbfgss', did you mean 'LBFGS'.*, and all for all of them"),
    (["--attack", "DeepFool"], "--eps must be omitted, .* needs it .DeepFool.."),
    (["--attack", "PGD:step=3"], "PGD has no parameter 'step'.* Did you mean 'steps'"),
    (["--attack", "PGD:steps"], "--attack PGD:steps: a parameter must be key=value, got 'steps'"),
    (["--attack", "PGD:steps=0"], "--attack PGD:steps=0: `steps` must be at least 1, got 0"),
    (["--attack", "PGD:norm=l3"], "`norm` must be one of 'linf', 'l2', 'l1', got 'l3'"),
    (["--attack", "PGD:steps=2.5"], "`steps` must be an int, got float"),
    (["--eps", "8/0"], "argument --eps: must be a number or a fraction.* got '8/0'"),
    (["--eps", "-1"], "--attack Suite: --eps must be at least 0"),
    (["--suite", "slow"], "argument --suite: invalid choice: 'slow' .choose from '?fast'?, '?thor"),
    (["--suite", "--attack", "Suite:effort=slow"], "`effort` must be one of 'fast', 'thorough'"),
    (["--limit", "0"], "argument --limit: must be an integer of at least 1, got '0'"),
    (["--batch-size", "two"], "argument --batch-size"),
    (["--bounds", "1", "0"], "--bounds must be two finite numbers, lower first"),
    (["--mean", "0.5"], "--mean and --std must be given together"),
    (["--mean", "0.5", "--std", "0"], "--std must be positive"),
    (["--mean", "1", "1", "--std", "1", "1"], "`x` must have 2 channels"),
    (["--device", "gpu"], "--device: cannot use 'gpu'"),
    (["--device", "meta"], "--device: cannot use 'meta'"),
    (["--out", "taken"], "--out: cannot write to taken: it is not a folder"),
    (["--out", "/dev/null"], "--out: cannot write to /dev/null: it is not a folder"),
    (["--colour", "red"], "unrecognized arguments: --colour red"),
    (["--layout", "hwc"], "argument --layout: invalid choice"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=lambda v: " ".join(v)[:40])
def test_bad_input_gets_one_line_and_status_2(folder, capsys, arguments, said):
    given = MINE if "--eps" in arguments else [*MINE, "--eps", "0.1"]
    try:
        status = main([*given, *arguments])
    except SystemExit as exit_:
        status = exit_.code
    shown = capsys.readouterr()
    assert status == 2
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert re.match("advkit( evaluate)?: error: ", shown.err)
    assert re.search(said, shown.err), shown.err
    assert not list(folder.glob("**/report.*"))
    assert not (folder / "advkit-report").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "mynets.py:make"], "--data must be given"),
        (["--data", "data.npz"], "--model must be given"),
        (["--weights", "net.pt"], "--model must be given"),
        (["--bounds", "0", "1"], "--model must be given"),
        (["--model", "mynets.py:make", "--data", "data.npz"], "--eps must be given .*--eps 8/255"),
    ],
)
def test_what_is_missing_is_named(folder, capsys, arguments, said):
    assert main(["evaluate", *arguments]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_an_interrupt_saves_what_is_done(folder, capsys):
    arguments = ["evaluate", "--model", "mynets.py:Interrupted", "--data", "late.npz"]
    assert main([*arguments, "--attack", "FGSM", "--eps", "0.1", "--batch-size", "10"]) == 130
    shown = capsys.readouterr()
    assert "INTERRUPTED: 30 of 40" in shown.out
    report = json.loads((folder / "advkit-report" / "report.json").read_text())
    assert report["inputs"] == 30
    assert report["inputs_wanted"] == 40


def test_an_interrupt_before_the_first_batch_says_so(folder, capsys):
    arguments = ["evaluate", "--model", "mynets.py:Interrupted", "--data", "soon.npz"]
    assert main([*arguments, "--eps", "0.1"]) == 130
    assert capsys.readouterr().err == "advkit evaluate: interrupted, nothing saved\n"
    assert not list(folder.glob("**/report.*"))


@pytest.mark.parametrize(("module", "package"), [("jinja2", "jinja2"), ("PIL", "pillow")])
def test_without_what_the_page_needs_the_rest_is_written(
    folder, monkeypatch, capsys, module, package
):
    for name in [*sys.modules, module]:
        if name.split(".")[0] == module:
            monkeypatch.setitem(sys.modules, name, None)
    out = folder / "advkit-report"
    out.mkdir()
    (out / "report.html").write_text("of an earlier run")
    assert main([*MINE, "--eps", "0.1"]) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines()[0] == (
        "advkit: warning: the report is written without report.html. report.html needs "
        f"{package}. Install it with: pip install {package} (the extra 'report' of advkit includes "
        "it)."
    )
    assert "worst case, linf 0.1" in shown.out
    assert shown.out.endswith("saved advkit-report/report.json and advkit-report/records.npz\n")
    assert sorted(path.name for path in out.iterdir()) == ["records.npz", "report.json"]
    saved = json.loads((out / "report.json").read_text())
    assert saved["page"] is None
    assert saved["worst_case_by_budget"]["linf 0.1"]["total"] == saved["inputs"]


@pytest.mark.parametrize("command", [["evaluate"], ["merge", "store"], ["bench"], ["attacks"]])
def test_an_import_that_fails_is_one_line(command, monkeypatch, capsys):
    for name in ("evaluate", "merge", "bench", "listing"):
        monkeypatch.setitem(sys.modules, f"advkit.cli.{name}", None)
    assert main(command) == 70
    err = capsys.readouterr().err
    assert err.startswith(f"advkit {command[0]}: unexpected error: ModuleNotFoundError: ")
    assert err.count("\n") == 1


def test_no_bar_is_shown_without_its_package(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("advkit.cli.printing.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main([*MINE, "--eps", "0.1"]) == 0


def test_a_log_gets_lines_without_a_package(folder, monkeypatch, capsys):
    monkeypatch.setattr("advkit.core.progress.FIRST_LINE", 0.0)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main([*MINE, "--eps", "0.1"]) == 0
    err = capsys.readouterr().err
    assert re.search(r"^evaluate: 40 of 40 inputs, .* after \d+ s$", err, re.M)
    assert "\r" not in err
    assert main([*MINE, "--eps", "0.1", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_what_weights_need_is_named(folder, monkeypatch, capsys):
    (folder / "net.safetensors").touch()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert main([*MINE, "--eps", "0.1", "--weights", "net.safetensors"]) == 2
    said = "--weights: .safetensors needs safetensors. Install it with: "
    said += "pip install safetensors (the extra 'report' of advkit includes it).\n"
    assert capsys.readouterr().err.endswith(said)


def test_the_traceback_is_there_on_demand(folder):
    with pytest.raises(Exception, match="no such file"):
        main([*MINE, "--eps", "0", "--data", "none.npz", "--traceback"])


def test_warnings_are_one_line(folder, capsys):
    (folder / "dead.py").write_text(
        "import torch\ndef make():\n"
        "    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
        "    torch.nn.init.zeros_(net[1].weight)\n    return net\n"
    )
    np.savez("zeros.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.zeros(4, int))
    arguments = ["evaluate", "--model", "dead.py:make", "--data", "zeros.npz"]
    torch.manual_seed(0)
    main([*arguments, "--eps", "0.1", "--attack", "FGSM"])
    assert all(
        line.startswith("advkit: warning: ") for line in capsys.readouterr().err.splitlines()
    )


def test_the_list_of_attacks(capsys):
    assert main(["attacks"]) == 0
    shown = capsys.readouterr().out
    for word in ("PGD: ", "arXiv:1706.06083", "restarts", "required", "momentum"):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= 100
    entries = re.findall(r"^(\w+): (\S.*)", shown, re.M)
    assert [name for name, _ in entries] == list(known_attacks())
    for name in ("initial_const", "search_steps", "output", "overshoot"):
        told = re.findall(rf"^  {name} +(\S+) +(\S.*)", shown, re.M)
        assert told, name
    starts = {len(head) for head in re.findall(r"^(  \w+ +\S+ +)\S", shown, re.M)}
    assert len(starts) == 1  # the explanations are in one column


def test_an_attack_with_other_docstrings_is_listed_too(capsys, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Terse:
        """Says nothing of its parameters."""

        eps: float
        a_parameter_with_a_long_name: str = "and_a_long_default"

    monkeypatch.setattr("advkit.cli.listing.known_attacks", lambda: {"Terse": Terse})
    monkeypatch.setattr("advkit.cli.listing.unwritable_attacks", lambda: {})
    assert main(["attacks"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["Terse:", "Says", "nothing", "of", "its", "parameters."],
        ["eps", "required"],
        ["a_parameter_with_a_long_name", "and_a_long_default"],
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Borrows:
    """Borrows an attack and a model."""

    attack: object
    surrogate: object
    eps: object = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """Has a budget and a default that is made."""

    eps: float
    names: list = dataclasses.field(default_factory=list)


@pytest.fixture
def more_attacks(monkeypatch):
    """Two more attacks, of which one needs a model."""
    for kind in (Borrows, Made):
        monkeypatch.setattr(attacks, kind.__name__, kind, raising=False)
    monkeypatch.setattr(attacks, "__all__", [*attacks.__all__, "Borrows", "Made"])


def test_attacks_that_need_models_are_from_python_only(more_attacks, capsys):
    assert "Made" in known_attacks()
    assert "Borrows" not in known_attacks()
    assert known_attacks().keys() | set(unwritable_attacks()) == set(attacks.__all__) - {"probes"}
    assert main(["attacks"]) == 0
    shown = capsys.readouterr().out
    assert "\nMade: Has a budget" in shown
    assert re.search(r"\n\nOnly available from Python, [^:]*:[\w,\s]*\bBorrows\n$", shown)
    assert "Made" not in shown.splitlines()[-1]
    made = attacks_from(["all"], [0.1], seed=0)
    assert [a.eps for a in made if isinstance(a, Made)] == [0.1]
    assert not any(isinstance(a, Borrows) for a in made)
    with pytest.raises(UsageError, match="Borrows is only available from Python"):
        attacks_from(["borrows"], [], seed=0)


def test_no_line_for_others_where_there_are_none(monkeypatch, capsys):
    monkeypatch.setattr(attacks, "__all__", ["FGSM"])
    assert main(["attacks"]) == 0
    assert "Python only" not in capsys.readouterr().out


def test_numbers():
    assert number("8/255") == 8 / 255
    assert number("0.5") == 0.5
    assert number("-1e-3") == -0.001
    for text in ("", "x", "1/0", "nan", "inf", "1/2/3"):
        with pytest.raises(Exception, match="must be a number"):
            number(text)


def test_eps_goes_to_the_attacks_that_set_none():
    made = attacks_from(["FGSM", "PGD:eps=0.5,seed=3"], [0.1, 0.2], seed=7)
    assert [a.eps for a in made] == [0.1, 0.2, 0.5]
    assert [a.seed for a in made] == [7, 7, 3]


def test_an_attack_without_a_budget_runs_once():
    made = attacks_from(["DeepFool", "JSMA", "DeepFool:eps=0.5", "DeepFool:eps=none"], [], seed=0)
    assert [a.eps for a in made if hasattr(a, "eps")] == [None, 0.5, None]
    made = attacks_from(["DeepFool", "FGSM"], [0.1, 0.2], seed=0)
    assert [a.eps for a in made] == [None, 0.1, 0.2]
    assert [a.eps for a in attacks_from(["DeepFool"], [], 0, default_eps=[0.1])] == [None]
    assert [a.eps for a in attacks_from(["FGSM"], [], 0, default_eps=[0.1])] == [0.1]
    assert [a.eps for a in attacks_from(["FGSM"], [0.3], 0, default_eps=[0.1])] == [0.3]


@pytest.mark.parametrize("word", ["all", "ALL"])
def test_all_names_every_attack(word):
    made = attacks_from([word, "FGSM:eps=0.5"], [0.1, 0.2], seed=0)
    counts = Counter(type(a).__name__ for a in made)
    in_features = {"SparsePGD", "SparseRS"}
    assert counts.keys() == known_attacks().keys() - in_features
    needs = {"APGD", "AutoAttack", "BIM", "FGM", "FGSM", "PGD", "RandomNoise", "Square", "Suite"}
    assert {name for name, count in counts.items() if count > 1} == needs
    assert counts["PGD"] == 2
    assert counts["FGSM"] == 3


def test_attacks_in_features_are_part_of_all_in_their_norm():
    made = {type(a).__name__: a for a in attacks_from(["all"], [8], seed=0, norm="l0")}
    assert made["SparseRS"].eps == 8
    with pytest.raises(UsageError, match="SparseRS: .*must be 0 or a number of features"):
        attacks_from(["SparseRS"], [0.1], seed=0)


def test_eps_that_no_attack_takes_is_an_error():
    for specs in (["DeepFool", "FAB"], ["PGD:eps=0.1"], ["DeepFool:eps=0.1"]):
        with pytest.raises(UsageError, match=f"none of the attacks needs it .{', '.join(specs)}"):
            attacks_from(specs, [0.2], seed=0)
    assert len(attacks_from(["PGD:eps=0.1", "FGSM"], [0.2], seed=0)) == 2


def test_minimum_norm_attacks_need_no_eps(folder, capsys):
    assert main([*MINE, "--attack", "DeepFool", "--attack", "FAB:norm=linf,steps=5"]) == 0
    shown = capsys.readouterr().out
    assert "Minimum-norm attacks" in shown
    assert "Budget attacks" not in shown
    report = json.loads((folder / "advkit-report" / "report.json").read_text())
    assert [a["minimum_norm"] for a in report["attacks"]] == [True, True]


def test_the_examples_of_the_help_can_be_run(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    shown = capsys.readouterr().out
    examples = re.findall(r"^  advkit (evaluate.*)$", shown, re.M)
    assert len(examples) == 8
    for example in examples:
        args = build_parser().parse_args(example.split())
        attacks_from(args.attack or ["FGSM"], args.eps or [], seed=0, default_eps=[0.1])
    assert max(map(len, shown.splitlines())) <= 110


@pytest.mark.slow("trains a net")
def test_the_default_job(tmp_path, monkeypatch, capsys):
    """Trains the digits net once, then finds it in the cache; a damaged cache is trained anew."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADVKIT_CACHE", str(tmp_path / "cache"))
    before = torch.get_rng_state()
    assert main(["evaluate", "--limit", "40"]) == 0
    assert torch.equal(torch.get_rng_state(), before)
    first = json.loads((tmp_path / "advkit-report" / "report.json").read_text())
    ran = {a["name"] for a in first["attacks"]}
    # the baseline of every report, an attack of several minutes, and second opinions
    others = {
        "RandomNoise",
        "AutoAttack",
        "DDN",
        "FMN",
        "JSMA",
        "LBFGS",
        "SigmaZero",
        "SparsePGD",
        "SparseRS",
    }
    assert known_attacks().keys() - ran == others
    budgets = {name: [a["eps"] for a in first["attacks"] if a["name"] == name and a["eps"]]
               for name in ("FGSM", "PGD")}  # fmt: skip
    assert budgets == {"FGSM": [0.05, 0.1, 0.15, 0.2], "PGD": [0.05, 0.1, 0.15, 0.2, 0.5, 2]}
    assert set(first["nearest_by_norm"]) == {"l0", "l1", "l2", "linf"}
    assert first["clean_accuracy"]["value"] > 0.9
    cached = next((tmp_path / "cache").iterdir())
    stamp = cached.stat().st_mtime_ns
    again = ["evaluate", "--limit", "40", "--attack", "FGSM", "--out", "again"]
    assert main(again) == 0
    assert cached.stat().st_mtime_ns == stamp
    second = json.loads((tmp_path / "again" / "report.json").read_text())
    assert [a["eps"] for a in second["attacks"]] == [0.05, 0.1, 0.15, 0.2]
    accuracies = {a["attack"]: a["robust_accuracy"] for a in first["attacks"]}
    for attack in second["attacks"]:
        assert attack["robust_accuracy"] == accuracies[attack["attack"]]
    capsys.readouterr()
    cached.write_bytes(b"damaged")
    assert main(again) == 0
    assert "cannot be read and is trained again" in capsys.readouterr().err


def test_the_module_is_the_command():
    found = subprocess.run(
        [sys.executable, "-m", "advkit", "--version"], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("advkit 0.")


def test_a_failure_in_a_late_batch_saves_what_is_done(folder, capsys):
    (folder / "late.py").write_text(NETS.replace("raise KeyboardInterrupt", "raise KeyError('x')"))
    arguments = ["evaluate", "--model", "late.py:Interrupted", "--data", "late.npz"]
    assert main([*arguments, "--attack", "FGSM", "--eps", "0.1", "--batch-size", "10"]) == 2
    shown = capsys.readouterr()
    assert "INTERRUPTED: 30 of 40" in shown.out
    assert "the evaluation failed: KeyError: 'x'" in shown.err
    assert json.loads((folder / "advkit-report" / "report.json").read_text())["inputs"] == 30


def test_a_report_that_is_a_folder_is_found_before_the_work(folder, capsys):
    (folder / "out" / "report.html").mkdir(parents=True)
    assert main([*MINE, "--eps", "0.1", "--out", "out"]) == 2
    assert (
        "--out: out/report.html must be a regular file or not exist yet" in capsys.readouterr().err
    )
    assert not (folder / "out" / "report.json").exists()


def test_factories_may_import_late_and_may_not_exit(folder, capsys, monkeypatch):
    (folder / "nets").mkdir()
    (folder / "nets" / "helper_of_make.py").write_text(NETS)
    (folder / "nets" / "lazy.py").write_text(
        "def make():\n    from helper_of_make import make\n    return make()\n"
    )
    (folder / "nets" / "leaves.py").write_text("raise SystemExit(0)\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = ["evaluate", "--data", "data.npz", "--eps", "0", "--quiet"]
    assert main([*arguments, "--model", "nets/lazy.py:make"]) == 0
    assert main([*arguments, "--model", "nets/leaves.py:make"]) == 2
    assert "SystemExit" in capsys.readouterr().err


def test_the_digits_are_attacked_in_one_thread_and_nothing_else_is(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "advkit.cli.evaluate._run", lambda args: seen.append(torch.get_num_threads())
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        main(["evaluate"])
        main(["evaluate", "--model", "net.py:make", "--data", "x.npz"])
        assert seen == [1, 2]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
