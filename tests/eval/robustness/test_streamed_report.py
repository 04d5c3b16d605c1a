"""Reports that are built when they are first read."""

import copy
import dataclasses
import pickle

import pytest
import torch

from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.report import Report
from advkit.eval.robustness.streamed_report import StreamedReport
from tests.eval.made_up import PROVENANCE, inputs_of


def plain():
    zeros = torch.zeros(2, dtype=torch.int64)
    outcome = AttackOutcome(
        name="FGSM", settings={}, norm="linf", minimum_norm=False, eps=0.1,
        radius=torch.full((2,), 0.1), robust=torch.tensor([True, False]),
        distance=torch.full((2,), torch.nan), forward=zeros, backward=zeros,
        no_gradient=zeros.bool(), seconds=0.5, examples=None,
        not_finite=zeros.bool(),
    )  # fmt: skip
    return Report(
        model="net", bounds=(0.0, 1.0), inputs=inputs_of(torch.tensor([True, False])),
        outcomes=(outcome,), provenance=PROVENANCE, total=5, about={"data": "two inputs"},
    )  # fmt: skip


class Builds:
    """A function that builds a report, and how often it was called."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop()
        return plain()


@pytest.fixture
def build():
    return Builds()


def test_nothing_is_built_before_the_first_read(build):
    report = StreamedReport(build)
    assert isinstance(report, Report)
    assert build.calls == 0
    assert report.total == 5  # has a default, which is not this
    assert report.clean_accuracy.count == 1
    assert report.inputs is report.inputs
    assert build.calls == 1


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Report)])
def test_every_field_is_that_of_the_report(build, name):
    assert str(getattr(StreamedReport(build), name)) == str(getattr(plain(), name))


@pytest.mark.parametrize(
    "read",
    [
        str,
        repr,
        lambda report: report.to_dict(),
        lambda report: vars(report),
        lambda report: dataclasses.replace(report, model="other"),
        copy.copy,
        copy.deepcopy,
        lambda report: pickle.loads(pickle.dumps(report)),
    ],
)
def test_a_read_report_is_a_plain_one(build, read):
    report = StreamedReport(build)
    found = read(report)
    assert build.calls == 1
    assert type(report) is Report
    assert vars(report).keys() == vars(plain()).keys()
    if isinstance(found, Report):
        assert type(found) is Report
        assert found.about == {"data": "two inputs"}


def test_a_read_that_failed_can_be_made_again():
    build = Builds(MemoryError("full"))
    report = StreamedReport(build)
    with pytest.raises(MemoryError, match="full"):
        report.clean  # noqa: B018
    assert report.clean.tolist() == [True, False]
    assert build.calls == 2


def test_a_report_stays_frozen(build):
    report = StreamedReport(build)
    for _ in range(2):
        with pytest.raises(dataclasses.FrozenInstanceError):
            report.total = 3
        str(report)
