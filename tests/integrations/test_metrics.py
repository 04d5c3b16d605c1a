"""Metrics, parameters and tags: names, values, limits, and the order of a tracker's calls."""

import dataclasses
import gc
import re
import sys

import pytest
import torch

import advkit
from advkit import attacks
from advkit import eval as rob
from advkit.core import extras
from advkit.integrations import metrics
from advkit.integrations.mlflow import MLflow
from advkit.integrations.tensorboard import TensorBoard
from advkit.integrations.tracker import Tracker, require_report
from advkit.integrations.wandb import WandB
from tests.eval.evaluated import Net, data
from tests.eval.made_up import Finds, Sure, report_on
from tests.integrations.evaluations import evaluate, evaluate_in_vain


class Last(rob.Callback):
    def on_chunk(self, record):
        self.record = record


@pytest.fixture(scope="module")
def report():
    return evaluate()


def test_metrics_of_a_report():
    report = report_on([[0.1], [0.3], [0.6], [1.0]], Finds(eps=0.5), Finds(), wrong=1)
    found = metrics.report_metrics(report)
    low, high = rob.Rate(2, 5).interval
    assert found["robust_accuracy/l2_0.5"] == 0.4
    assert (found["robust_accuracy/l2_0.5_low"], found["robust_accuracy/l2_0.5_high"]) == (
        low,
        high,
    )
    assert found["clean_accuracy"] == 0.8
    assert found["success_rate/l2"] == 0.75
    assert found["median_distance/l2"] == pytest.approx(0.3)
    assert found["random_noise/l2_0.5"] == 0.8
    assert (found["forward"], found["backward"]) == (6, 4)  # of two attacks
    assert found["attack/0_Finds/robust_accuracy"] == 0.4
    assert found["attack/1_Finds/forward"] == 3
    assert found["attack/1_Finds/backward"] == 2
    assert "attack/1_Finds/robust_accuracy" not in found
    seconds = [found[f"attack/{number}_Finds/seconds"] for number in (0, 1)]
    assert found["attack_seconds"] == sum(seconds)


def test_figures_that_do_not_exist_are_left_out():
    mostly_robust = metrics.report_metrics(report_on([[0.1], [1.0], [1.0]], Finds()))
    assert "median_distance/l2" not in mostly_robust  # it is infinite
    assert mostly_robust["success_rate/l2"] == pytest.approx(1 / 3)
    wrong = torch.zeros(2, 1), torch.ones(2).long()
    nothing_attacked = metrics.report_metrics(
        rob.evaluate(Sure(), *wrong, attacks=[Finds(eps=0.5), Finds()])
    )
    assert nothing_attacked["robust_accuracy/l2_0.5"] == 0
    assert not {"success_rate/l2", "forward", "attack/0_Finds/forward"} & nothing_attacked.keys()


def test_the_metrics_of_the_last_chunk_are_those_of_the_report():
    last = Last()
    found = metrics.report_metrics(evaluate(last))
    of_chunk = metrics.chunk_metrics(last.record)
    assert of_chunk.pop("seconds") == last.record.seconds
    assert of_chunk.items() <= found.items()
    assert {"forward", "backward", "clean_accuracy", "robust_accuracy/linf_0.05"} <= of_chunk.keys()


def test_names_are_valid_and_none_is_a_group_of_others(report):
    named = dataclasses.replace(report, about={"data, v2 (ü)": "digits", "model": "other"})
    names = [
        *metrics.report_metrics(report),
        *metrics.report_params(named),
        *metrics.report_tags(report),
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-/]+", name) for name in names)
    assert len(set(names)) == len(names)
    groups = {"/".join(n.split("/")[:depth]) for n in names for depth in range(1, n.count("/") + 1)}
    assert not groups & set(names)  # a store in files would need a file and a folder
    assert "about/data_v2" in names
    assert "robust_accuracy/linf_one_budget_for_each_input" in names


def test_facts_of_any_name_are_kept_apart(report):
    about = {"a b": "1", "a,b": "2", "a_b_2": "3", "ü": "4", "..": "5", "": "6"}
    params = metrics.report_params(dataclasses.replace(report, about=about))
    found = {name: value for name, value in params.items() if name.startswith("about/")}
    assert found == {
        "about/a_b": "1", "about/a_b_2": "2", "about/a_b_2_2": "3",
        "about/_": "4", "about/__2": "5", "about/__3": "6",
    }  # fmt: skip


def test_the_report_of_no_inputs_is_logged_without_rates(tmp_path):
    given = {"store": tmp_path, "chunk_size": 20, "shard": (5, 6), "about": {"data": "none"}}
    calls = []
    evaluate(Logs(calls), **given)
    assert kinds(calls) == ["begin", "metrics", "facts", "report", "finished"]
    assert all(name.endswith("seconds") for name in calls[1][2])


def test_long_names_are_cut():
    assert len(metrics.slug("a" * 500)) + len("attack/99_") <= metrics.MAX_NAME / 2


def test_params(report):
    found = metrics.report_params(report)
    assert found["evaluation/model"] == report.model
    assert found["evaluation/inputs"] == "60"
    assert found["about/data"] == "a | b"
    assert found["attack/1_PGD/attack"] == report.outcomes[1].label
    assert found["attack/1_PGD/steps"] == "3"
    assert found["attack/1_PGD/restarts"] == "1"  # also those at their defaults


def test_tags(report):
    found = metrics.report_tags(report)
    assert found["digest"] == report.digest
    assert found["verdict"] == report.verdict
    assert found["sha256/data"] == report.inputs.data_sha256
    assert found["sha256/model"] == report.provenance.model
    assert found["sha256/attack/2_DeepFool"] == report.provenance.attacks[2]
    assert found["version/advkit"] == advkit.__version__
    assert found["batch_size"] == "20"
    assert "command" not in found  # unknown
    told = evaluate(command="advkit evaluate")
    assert metrics.report_tags(told)["command"] == "advkit evaluate"


def test_a_value_that_is_cut_says_so(report):
    long = metrics.shortened("x" * 7000)
    assert len(long) == metrics.MAX_VALUE
    assert long.endswith("x ... [cut, 7,000 characters in all]")
    assert metrics.shortened("x" * 6000) == "x" * 6000
    params = metrics.report_params(dataclasses.replace(report, model="m" * 9999))
    assert len(params["evaluation/model"]) == metrics.MAX_VALUE


class Log:
    """A run that keeps its calls in a list of its tracker."""

    def __init__(self, calls):
        self.calls = calls

    def log_metrics(self, metrics, step):
        self.calls.append(("metrics", step, metrics))

    def log_facts(self, params, tags):
        self.calls.append(("facts", params, tags))

    def log_report(self, report):
        self.calls.append(("report", report))

    def finish(self, *, failed):
        self.calls.append(("failed" if failed else "finished",))


class Logs(Tracker):
    def __init__(self, calls, prefix=""):
        super().__init__(prefix)
        self.calls = calls

    def _begin(self):
        self.calls.append(("begin",))
        return Log(self.calls)


def kinds(calls):
    return [call[0] for call in calls]


ALL = ["begin", "metrics", "metrics", "metrics", "metrics", "facts", "report", "finished"]


class TestTracker:
    def test_each_evaluation_is_a_run(self):
        calls = []
        tracker = Logs(calls)
        report = evaluate(tracker)
        assert kinds(calls) == ALL
        assert [call[1] for call in calls[1:5]] == [20, 40, 60, 60]
        assert not calls[3][2].items() & calls[4][2].items()  # nothing twice
        assert calls[4][2].items() <= metrics.report_metrics(report).items()
        assert calls[3][2] | calls[4][2] == {
            **metrics.report_metrics(report), "seconds": calls[3][2]["seconds"],
        }  # fmt: skip
        assert calls[6][1] is report
        evaluate(tracker)
        del tracker
        gc.collect()
        assert kinds(calls) == [*ALL, *ALL]

    def test_a_report_alone_is_a_run(self, report):
        calls = []
        Logs(calls).on_report(report)
        assert kinds(calls) == ["begin", "metrics", "facts", "report", "finished"]
        assert calls[1][2] == metrics.report_metrics(report)

    def test_an_evaluation_without_a_report_has_failed(self):
        calls = []
        tracker = Logs(calls)
        evaluate_in_vain(tracker)
        assert kinds(calls) == ["begin", "metrics", "metrics"]
        evaluate(tracker)
        assert kinds(calls) == ["begin", "metrics", "metrics", "failed", *ALL]

    def test_a_deleted_tracker_ends_its_run(self):
        calls = []
        evaluate_in_vain(Logs(calls))
        gc.collect()
        assert kinds(calls) == ["begin", "metrics", "metrics", "failed"]

    def test_a_prefix_stands_before_all_names(self):
        calls = []
        evaluate(Logs(calls, prefix="epoch_3/"))
        names = [*calls[1][2], *calls[4][2], *calls[5][1], *calls[5][2]]
        assert all(name.startswith("epoch_3/") for name in names)

    @pytest.mark.parametrize("prefix", [3, None, "a b", "ü", "x" * 61, "a\n"])
    def test_other_prefixes_are_refused(self, prefix):
        with pytest.raises(ValueError, match="`prefix` must have at most 60 characters"):
            Logs([], prefix=prefix)


@pytest.mark.parametrize(
    ("make", "missing"),
    [
        (MLflow, "mlflow"),
        (lambda: TensorBoard("runs"), "tensorboard"),
        (WandB, "wandb"),
    ],
)
def test_a_missing_package_is_named_when_the_tracker_is_made(make, missing, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(extras, "import_module", absent)
    with pytest.raises(ImportError, match=f"needs {missing}.*pip install .*extra '{missing}'"):
        make()


def test_results_do_not_depend_on_a_tracker():
    given = {"attacks": [attacks.RandomNoise(eps=0.1), attacks.PGD(eps=0.05, steps=2)]}
    plainly = rob.evaluate(Net(), *data(), **given)
    before = torch.get_rng_state()
    tracked = rob.evaluate(Net(), *data(), **given, callbacks=[Logs([])])
    assert tracked.digest == plainly.digest
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("module", ["jinja2", "PIL.Image"])
def test_what_a_saved_report_needs_is_asked_for_at_once(monkeypatch, module):
    require_report("a tracker")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="a tracker needs (jinja2|pillow). Install it"):
        require_report("a tracker")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    require_report("a tracker")  # only `Report.plot` needs it
