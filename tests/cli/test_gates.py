"""Gates of the command: options, exit statuses, files, and the comparison of reports."""

import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from advkit import attacks
from advkit import eval as rob
from advkit.cli.main import main

NETS = """
import torch

class Threshold(torch.nn.Module):
    def __init__(self, at):
        super().__init__()
        self.at = torch.nn.Parameter(torch.tensor(at))

    def forward(self, x):
        value = x.flatten(1)[:, :1] - self.at
        return torch.cat([-value, value], 1)

def make():
    return Threshold(0.5)

def moved():
    return Threshold(0.53)
"""
FGSM = ["--attack", "FGSM", "--eps", "0.1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """40 images of one pixel: with a budget of 0.1 the net is robust on 32, moved by 0.03 on 26."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    (tmp_path / "nets.py").write_text(NETS)
    values = np.linspace(0.0125, 0.9875, 40, dtype=np.float32)
    labels = (values > 0.5).astype(int)
    crowd = np.r_[values[:34], np.full(6, 0.615, np.float32)]
    np.savez("data.npz", images=crowd.reshape(40, 1, 1), labels=(crowd > 0.5).astype(int))
    np.savez("other.npz", images=values.reshape(40, 1, 1), labels=labels)
    return tmp_path


def evaluate(*options, net="make", data="data.npz", attack=tuple(FGSM)):
    line = ["evaluate", "--model", f"nets.py:{net}", "--data", data, "--quiet"]
    return main([*line, *attack, *options])


def robust(out="advkit-report"):
    return rob.load_report(out).worst_case


class TestAtLeast:
    def test_a_report_that_is_robust_enough(self, folder, capsys):
        assert evaluate("--fail-under", "0.5") == 0
        shown = capsys.readouterr()
        assert (shown.out, shown.err) == ("", "")
        (gate,) = rob.load_report("advkit-report").gates
        assert gate.passed

    def test_a_report_that_is_not(self, folder, capsys):
        assert evaluate("--fail-under", "0.9") == 1
        rate = robust()
        assert capsys.readouterr().err == (
            "advkit evaluate: gate failed: linf 0.1 at least 90 %: robust accuracy "
            f"{rate} is below 90 %.\n"
        )
        assert (folder / "advkit-report" / "report.html").exists()
        assert json.loads((folder / "advkit-report" / "report.json").read_text())["gates"] == [
            gate.to_dict() for gate in rob.load_report("advkit-report").gates
        ]

    def test_exactly_the_share(self, folder):
        evaluate()
        share = repr(float(robust()))
        assert evaluate("--fail-under", share) == 0
        assert evaluate("--fail-under", repr(math.nextafter(float(robust()), 1))) == 1

    def test_several_budgets(self, folder, capsys):
        both = ["--attack", "FGSM", "--eps", "0.1", "--eps", "8/255"]
        assert evaluate("--fail-under", "Linf 8/255=0.5", attack=both) == 0
        options = ["--fail-under", "linf 0.1=0.99", "--fail-under", "linf 8/255=0.98"]
        assert evaluate(*options, attack=both) == 1
        lines = capsys.readouterr().err.splitlines()
        assert [line.split(": ")[:2] for line in lines] == [["advkit evaluate", "gate failed"]] * 2

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (
                ["0.5"],
                "--fail-under must name its budget if there are several, got 0.5 for linf 0.1",
            ),
            (
                ["l2 0.1=0.5"],
                "--fail-under must name budgets of the report, got 'l2 0.1'. They are",
            ),
            (["linf 0.1=0.5", "linf 0.1=0.6"], "--fail-under must name each budget once"),
            (["linf 0.1=0.5", "0.6"], "--fail-under must name each budget once"),
            (["linf 0.1=0.5", "Linf 1/10=0.6"], "--fail-under must have each budget once"),
        ],
    )
    def test_wrong_budgets_fail_before_the_work(self, folder, capsys, options, says):
        given = [word for option in options for word in ("--fail-under", option)]
        both = ["--attack", "FGSM", "--eps", "0.1", "--eps", "8/255"]
        assert evaluate(*given, net="missing", attack=both) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"advkit evaluate: error: {says}")
        assert len(error.splitlines()) == 1

    @pytest.mark.parametrize("text", ["45%", "45", "-0.1", "nan", "", "linf 0.1=", "linf 0.1=2"])
    def test_wrong_shares(self, folder, capsys, text):
        with pytest.raises(SystemExit) as ended:
            evaluate(f"--fail-under={text}")
        assert ended.value.code == 2
        assert "--fail-under: must be a share in [0, 1] such as 0.45" in capsys.readouterr().err

    def test_minimum_norm_attacks_have_no_budget(self, folder, capsys):
        assert evaluate("--fail-under", "0.5", attack=["--attack", "DeepFool"]) == 2
        assert "--fail-under must be about a budget" in capsys.readouterr().err


class TestAgainst:
    def test_the_same_net(self, folder, capsys):
        evaluate("--out", "old")
        assert evaluate("--against", "old") == 0
        assert evaluate("--against", "old/report.json") == 0
        assert capsys.readouterr().err == ""

    def test_one_changed_weight(self, folder, capsys):
        evaluate("--out", "old")
        assert evaluate("--against", "old", net="moved") == 1
        old, new = (rob.load_report(name) for name in ("old", "advkit-report"))
        before, after = (report.outcomes[0].robust for report in (old, new))
        lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
        assert (lost, gained) == (7, 1)  # or worse by chance: 9 of 256
        line = capsys.readouterr().err
        assert line.startswith("advkit evaluate: gate failed: linf 0.1 not worse: robust accuracy ")
        assert "7 lost, 1 gained, p = 0.035." in line
        assert new.gates[0].message in line

    def test_both_gates(self, folder, capsys):
        evaluate("--out", "old")
        assert evaluate("--against", "old", "--fail-under", "0.99", net="moved") == 1
        assert len(capsys.readouterr().err.splitlines()) == 2

    def test_other_data_is_refused_and_nothing_is_lost(self, folder, capsys):
        evaluate("--out", "old")
        options = ["--against", "old", "--fail-under", "0.1", "--junit", "junit.xml"]
        assert evaluate(*options, data="other.npz") == 2
        error = capsys.readouterr().err
        assert error.startswith("advkit evaluate: error: --against must be on the same inputs as ")
        (gate,) = rob.load_report("advkit-report").gates
        assert gate.name == "linf 0.1 at least 10 %"
        assert (folder / "junit.xml").exists()

    def test_no_report(self, folder, capsys):
        (folder / "empty").mkdir()
        for name in ("missing", "empty"):
            assert evaluate("--against", name, net="missing") == 2
            error = capsys.readouterr().err
            assert error.startswith("advkit evaluate: error: --against must be the folder of a sav")

    def test_another_number_of_images_fails_before_the_work(self, folder, capsys, monkeypatch):
        evaluate("--out", "old", "--limit", "39")
        monkeypatch.setattr(attacks.FGSM, "run", None)
        assert evaluate("--against", "old") == 2
        assert capsys.readouterr().err == (
            "advkit evaluate: error: --against must be a report on the same images, 40, got one on "
            "39.\n"
        )

    @pytest.mark.parametrize("name", ["advkit-report", "advkit-report/report.json"])
    def test_the_baseline_is_not_replaced(self, folder, capsys, name):
        evaluate()
        before = (folder / "advkit-report" / "report.json").read_bytes()
        assert evaluate("--against", name, net="missing") == 2
        said = "--out must be another folder than that of --against, got advkit-report for both."
        assert said in capsys.readouterr().err
        assert (folder / "advkit-report" / "report.json").read_bytes() == before

    def test_no_common_budget(self, folder, capsys):
        evaluate("--out", "old")
        other = ["--attack", "FGSM", "--eps", "0.2"]
        assert evaluate("--against", "old", attack=other, net="missing") == 2
        assert "--against must have a budget in common" in capsys.readouterr().err


class TestFiles:
    def test_junit(self, folder):
        assert evaluate("--fail-under", "0.9", "--junit", "deep/junit.xml") == 1
        (suite,) = ElementTree.parse("deep/junit.xml").getroot()
        assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
        assert (
            suite.find("testcase/failure").text == rob.load_report("advkit-report").gates[0].message
        )

    def test_markdown(self, folder, monkeypatch):
        assert evaluate("--fail-under", "0.9", "--markdown", "summary.md") == 1
        text = (folder / "summary.md").read_text()
        assert "**failed**: linf 0.1 at least 90 %" in text
        evaluate("--fail-under", "0.9", "--markdown", "summary.md")
        assert (folder / "summary.md").read_text() == text
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(folder / "summary.md"))
        evaluate("--fail-under", "0.9", "--markdown", "summary.md")
        assert (folder / "summary.md").read_text() == 2 * text

    def test_they_are_named(self, folder, capsys):
        line = ["evaluate", "--model", "nets.py:make", "--data", "data.npz", *FGSM]
        assert main([*line, "--junit", "junit.xml", "--markdown", "summary.md"]) == 0
        assert capsys.readouterr().out.endswith("/report.html, junit.xml and summary.md\n")

    @pytest.mark.parametrize("option", ["--junit", "--markdown"])
    def test_a_file_that_cannot_be_written(self, folder, capsys, option):
        (folder / "taken").mkdir()
        assert evaluate(option, "taken") == 2
        assert capsys.readouterr().err.startswith(f"advkit evaluate: error: {option}: ")
        assert not (folder / "advkit-report").exists()


class TestShards:
    def test_merge_has_the_gates(self, folder, capsys):
        for number in (0, 1):
            options = ["--store", "store", "--shard", f"{number}/2", "--chunk-size", "20"]
            assert evaluate(*options, "--batch-size", "20") == 0
        assert main(["merge", "store", "--quiet", "--fail-under", "0.5"]) == 0
        options = ["--fail-under", "0.99", "--junit", "junit.xml"]
        assert main(["merge", "store", "--quiet", *options]) == 1
        assert capsys.readouterr().err.startswith("advkit merge: gate failed: linf 0.1 at least 99")
        assert (folder / "junit.xml").exists()
        assert main(["merge", "store", "--quiet", "--fail-under", "l2 1=0.5"]) == 2

    @pytest.mark.parametrize(
        "gate",
        [["--fail-under", "0.5"], ["--against", "old"], ["--junit", "j"], ["--markdown", "m"]],
    )
    def test_a_shard_has_no_gates(self, folder, capsys, gate):
        assert evaluate("--store", "store", "--shard", "0/2", *gate) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"advkit evaluate: error: {gate[0]} must be omitted with a share")
        assert not (folder / "store").exists()


class TestCompare:
    def test_the_same_net(self, folder, capsys):
        evaluate("--out", "old")
        evaluate("--out", "new")
        assert main(["compare", "old", "new"]) == 0
        shown = capsys.readouterr()
        assert "Verdict: not worse." in shown.out
        assert shown.err == ""

    def test_one_changed_weight(self, folder, capsys):
        evaluate("--out", "old")
        evaluate("--out", "new", net="moved")
        assert main(["compare", "old", "new", "--out", "found.json"]) == 1
        found = json.loads((folder / "found.json").read_text())
        old, new = (rob.load_report(name).outcomes[0].robust for name in ("old", "new"))
        budget = found["robust_accuracy_by_budget"]["linf 0.1"]
        assert budget["lost"] == (old & ~new).nonzero().flatten().tolist()
        assert budget["gained"] == (new & ~old).nonzero().flatten().tolist()
        shown = capsys.readouterr()
        assert "Verdict: worse." in " ".join(shown.out.split())
        assert shown.out.endswith("saved found.json\n")
        assert shown.err.startswith("advkit compare: worse. The robust accuracy fell by more than")
        assert shown.err.count("\n") == 1
        assert main(["compare", "new", "old", "--quiet"]) == 0
        assert capsys.readouterr() == ("", "")

    def test_other_data_is_refused(self, folder, capsys):
        evaluate("--out", "old")
        evaluate("--out", "new", data="other.npz")
        assert main(["compare", "old", "new"]) == 2
        assert capsys.readouterr().err.startswith(
            "advkit compare: error: NEW must be on the same inputs as OLD, got other inputs "
        )

    def test_no_report(self, folder, capsys):
        evaluate("--out", "old")
        assert main(["compare", "old", "missing"]) == 2
        assert capsys.readouterr().err.startswith(
            "advkit compare: error: NEW must be the folder of a saved report"
        )
        assert main(["compare", "old", "old", "--out", "old"]) == 2
        assert capsys.readouterr().err.startswith("advkit compare: error: --out: ")


def test_an_interrupted_run_passes_no_gate(folder, capsys, monkeypatch):
    run = attacks.FGSM.run

    def stops(self, model, x, *args, **kwargs):
        if stops.calls:
            raise KeyboardInterrupt
        stops.calls += 1
        return run(self, model, x, *args, **kwargs)

    stops.calls = 0
    monkeypatch.setattr(attacks.FGSM, "run", stops)
    assert evaluate("--fail-under", "0.1", "--batch-size", "20") == 130
    (gate,) = rob.load_report("advkit-report").gates
    assert not gate.passed
    assert "20 of 40 inputs were evaluated" in gate.message


def test_the_weight_decides(folder):
    """The net of the tests: its accuracy within the budget is that of the values it moves."""
    evaluate()
    x = torch.from_numpy(np.load("data.npz")["images"]).flatten()
    assert robust().count == int(((x - 0.5).abs() > 0.1).sum())


class TestNothingIsOverwritten:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--junit", "new/report.json"], "--junit must be another file than that of --out"),
            (
                ["--markdown", "new/records.npz"],
                "--markdown must be another file",
            ),
            (["--junit", "old/report.json"], "--junit must be another file than that of --against"),
            (["--junit", "data.npz"], "--junit must be another file than that of --data"),
            (["--junit", "./nets.py"], "--junit must be another file than that of --model"),
            (
                ["--markdown", "store/units/x"],
                "another file than that of the store",
            ),
            (
                ["--junit", "a", "--markdown", "./a"],
                "another file than that of --junit",
            ),
        ],
    )
    def test_a_file_that_must_stay(self, folder, capsys, options, says):
        evaluate("--out", "old")
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        given = ["--out", "new", "--against", "old", "--store", "store", *options]
        assert evaluate(*given) == 2
        assert says in capsys.readouterr().err
        assert {path: path.read_bytes() for path in before} == before

    def test_a_comparison_over_a_report(self, folder, capsys):
        evaluate("--out", "old")
        before = (folder / "old" / "report.json").read_bytes()
        assert main(["compare", "old", "old", "--out", "old/report.json"]) == 2
        assert "--out must be another file than that of" in capsys.readouterr().err
        assert (folder / "old" / "report.json").read_bytes() == before


@pytest.mark.parametrize("command", ["bench", "diagnose"])
@pytest.mark.parametrize("name", ["nets.py", "./data.npz", "net.pt"])
def test_results_are_not_written_over_inputs(folder, capsys, command, name):
    torch.save({"at": torch.tensor(0.5)}, "net.pt")
    before = (folder / name).read_bytes()
    line = [command, "--model", "nets.py:make", "--weights", "net.pt", "--data", "data.npz"]
    assert main([*line, "--eps", "0.1", "--out", name]) == 2
    assert "--out must be another file than that of --" in capsys.readouterr().err
    assert (folder / name).read_bytes() == before


def test_a_file_that_fails_late_hides_nothing(folder, capsys, monkeypatch):
    def fails(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("advkit.cli.gates.save_junit", fails)
    options = ["--fail-under", "0.99", "--junit", "junit.xml", "--markdown", "summary.md"]
    line = ["evaluate", "--model", "nets.py:make", "--data", "data.npz", *FGSM, *options]
    assert main(line) == 2
    shown = capsys.readouterr()
    assert "worst case" in shown.out
    assert shown.out.endswith("report.html and summary.md\n")
    first, second = shown.err.splitlines()
    assert first.startswith("advkit evaluate: gate failed: linf 0.1 at least 99 %")
    assert second.startswith("advkit evaluate: error: --junit: cannot write to junit.xml")


def test_budgets_that_are_equal_to_six_digits_are_one(folder):
    both = ["--attack", "FGSM", "--eps", "0.1", "--eps", "0.10000001"]
    assert evaluate("--fail-under", "0.5", attack=both) == 0
    report = rob.load_report("advkit-report")
    assert [noise.eps for noise in report.noise] == [0.10000001]
    assert list(report.worst_cases) == ["linf 0.1"]
