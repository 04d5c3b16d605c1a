"""The JSON schema of report.json, with an independent validator."""

import copy
import json
import math

import jsonschema
import pytest
import torch
from torch import nn

from advkit import attacks
from advkit import eval as rob
from tests.toys import answers, convnet, images

VALIDATOR = jsonschema.Draft202012Validator(
    rob.report_schema(), format_checker=jsonschema.FormatChecker()
)


def errors(plain):
    return [error.json_path for error in VALIDATOR.iter_errors(plain)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A saved report of every kind of attack."""
    net, x = convnet(), images(8)
    made = [
        attacks.Suite(eps=0.05),
        attacks.FGSM(eps=torch.linspace(0.1, 0.2, 8)),
        attacks.HopSkipJump(max_queries=30),
        attacks.Square(eps=0.1, max_queries=5),
        attacks.Cascade(attacks=(attacks.FGSM(eps=0.1), attacks.PGD(eps=0.1, steps=2))),
    ]
    report = rob.evaluate(net, x, answers(net, x), attacks=made, about={"data": "images"})
    path, *_ = report.save(tmp_path_factory.mktemp("report"))
    return json.loads(path.read_text())


def test_the_schema_is_valid():
    jsonschema.Draft202012Validator.check_schema(rob.report_schema())


def test_a_saved_report(plain):
    assert errors(plain) == []
    required = set(rob.report_schema()["required"]) | {"digest", "page"}
    assert set(plain) == required == set(rob.report_schema()["properties"])


@pytest.mark.filterwarnings("ignore:The model returned NaN")
def test_the_dict_of_a_report_without_files():
    class Rejects(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 3), math.nan)

    unknown = rob.evaluate(Rejects(), iter([(images(3), torch.arange(3))]),
                           attacks=[attacks.FGSM(eps=0.1), attacks.DeepFool()])  # fmt: skip
    assert errors(unknown.to_dict()) == []
    assert unknown.to_dict()["inputs_wanted"] is None


@pytest.mark.parametrize("name", rob.report_schema()["required"])
def test_a_missing_entry(plain, name):
    without = {key: value for key, value in plain.items() if key != name}
    assert errors(without) == ["$"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], "advkit report 0"),
        (["clean_accuracy", "value"], 1.5),
        (["clean_accuracy", "interval"], [0.1]),
        (["sha256", "data"], "abc"),
        (["threat_model", "knowledge"], "gray"),
        (["inputs"], -1),
        (["date"], None),
        (["attacks", 0, "norm"], None),
        (["attacks", 0, "surplus"], 1),
        (["surplus"], 1),
    ],
)
def test_a_wrong_entry(plain, path, value):
    wrong = copy.deepcopy(plain)
    part = wrong
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    assert len(errors(wrong)) == 1
