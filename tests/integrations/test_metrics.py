"""Names and values that trackers are given."""

import dataclasses
import re

import pytest
import torch

from advkit import eval as rob
from advkit.integrations.metrics import (
    MOST_CHARACTERS,
    metrics_of_chunk,
    metrics_of_report,
    params_of_report,
)
from tests.eval.made_up import Finds, report_on

MLFLOW_NAME = re.compile(r"[/\w.\- :]*")  # of mlflow.utils.validation


@pytest.fixture(scope="module")
def report():
    made = [
        Finds(norm="linf", eps=0.5), Finds(norm="l2"), Finds(1, "l1"),
        Finds(norm="l2", eps=torch.tensor([0.2, 0.5, 0.5, 0.6])),
        Finds(norm="l2", eps=torch.tensor([0.3, 0.5, 0.5, 0.6])),
    ]  # fmt: skip
    return report_on([[0.1, 1.0], [0.7, 1.0], [1.0, 0.3], [1.0, 1.0]], *made)


def test_the_figures_of_a_report(report):
    found = metrics_of_report(report)
    assert found["robust_accuracy/linf_0.5"] == float(report.worst_cases["linf 0.5"])
    low, high = report.worst_cases["linf 0.5"].interval
    assert found["robust_accuracy/linf_0.5/low"] == low
    assert found["robust_accuracy/linf_0.5/high"] == high
    assert found["clean_accuracy"] == 1
    assert found["random_noise/linf_0.5"] == 1
    assert found["success_rate/l2"] == 0.5
    assert found["median_distance/l2"] == pytest.approx(0.7)
    assert "median_distance/l1" not in found  # it is infinite
    assert found["inputs"] == 4
    assert found["forward"] == sum(int(o.forward.sum()) for o in report.outcomes)
    assert found["passed"] == 1
    assert metrics_of_report(rob.gate(report, fail_under={"linf 0.5": 1.0}))["passed"] == 0


def test_names_that_all_trackers_take(report):
    found = metrics_of_report(report)
    names = [*found, *params_of_report(report)]
    assert all(MLFLOW_NAME.fullmatch(name) and " " not in name for name in names)
    assert all(isinstance(value, float) for value in found.values())
    each = [name for name in found if name.startswith("robust_accuracy/l2_one")]
    assert each == [
        f"robust_accuracy/l2_one_budget_for_each_input{end}" for end in ("", "_2")
    ] + [f"robust_accuracy/l2_one_budget_for_each_input{n}/{e}" for n in ("", "_2")
         for e in ("low", "high")]  # fmt: skip


def test_the_figures_of_a_chunk(report):
    record = rob.ChunkRecord(
        chunk=2, inputs=4, total=None, clean_accuracy=rob.Rate(4, 4),
        robust_accuracy=report.worst_cases, forward=12, backward=8, seconds=0.5,
    )  # fmt: skip
    found = metrics_of_chunk(record)
    assert found.pop("seconds") == 0.5
    assert (found.pop("forward"), found.pop("backward")) == (12, 8)
    assert found.items() <= metrics_of_report(report).items()


def test_what_the_report_was_computed_with(report):
    run = dataclasses.replace(report.provenance, command="c" * 7000, weights=None)
    found = params_of_report(dataclasses.replace(report, provenance=run, about={"data": "mine"}))
    assert found["about/data"] == "mine"
    assert found["attack/0"] == "Finds(norm='linf', eps=0.5)"
    assert found["sha256/data"] == report.inputs.data_sha256
    assert "sha256/weights" not in found
    assert found["command"] == "c" * (MOST_CHARACTERS - 3) + "..."
    assert all(isinstance(value, str) for value in found.values())
