"""JUnit files, read by a parser of XML."""

import dataclasses
from xml.etree import ElementTree

import pytest

from advkit import eval as rob
from advkit.integrations.junit import JUnit, save_junit
from tests.eval.made_up import Finds, report_on


@pytest.fixture(scope="module")
def report():
    return report_on([[0.1], [0.2], [0.7], [0.9]], Finds(norm="linf", eps=0.5))


def read(path):
    root = ElementTree.parse(path).getroot()
    (suite,) = root
    assert (root.tag, suite.tag, suite.get("name")) == ("testsuites", "testsuite", "advkit")
    return root, suite


def test_a_case_for_each_gate(report, tmp_path):
    gated = rob.gate(report, fail_under=0.9, against=report)
    root, suite = read(save_junit(gated, tmp_path / "deep" / "junit.xml"))
    failed, passed = suite.findall("testcase")
    for element in (root, suite):
        counts = [element.get(name) for name in ("tests", "failures", "errors", "skipped")]
        assert counts == ["2", "1", "0", "0"]
    assert failed.get("name") == "linf 0.5 at least 90 %"
    (failure,) = failed
    assert failure.tag == "failure"
    assert failure.get("message") == failure.text == gated.gates[0].message
    assert [child.tag for child in passed] == ["system-out"]
    assert passed.findtext("system-out") == gated.gates[1].message
    assert suite.get("timestamp") == report.provenance.date[:19]


def test_it_says_which_report_it_is(report, tmp_path):
    _, suite = read(save_junit(report, tmp_path / "junit.xml"))
    found = {each.get("name"): each.get("value") for each in suite.iter("property")}
    assert found == {
        "model": report.model, "digest": report.digest, **report.provenance.versions,
    }  # fmt: skip


def test_without_gates_a_case_for_each_budget(report, tmp_path):
    _, suite = read(save_junit(report, tmp_path / "junit.xml"))
    (case,) = suite.findall("testcase")
    assert case.get("name") == "linf 0.5"
    assert case.findtext("system-out") == "robust accuracy 50.00 % (2 of 4)"
    assert (suite.get("tests"), suite.get("failures")) == ("1", "0")


@pytest.mark.parametrize("text", ["<b>&\"'", "\x00\x1b[0m\x7f", "\ud800", "\N{SNOWMAN} 100 %"])
def test_any_text_is_readable(report, tmp_path, text):
    gate = rob.Gate(text, "", False, text)
    changed = dataclasses.replace(report, model=f"a{text}", gates=(gate,))
    _, suite = read(save_junit(changed, tmp_path / "junit.xml"))
    allowed = "".join("\ufffd" if c < " " or "\ud800" <= c <= "\udfff" else c for c in text)
    assert suite.find("testcase").get("name") == allowed
    assert suite.find("testcase/failure").text == allowed


def test_a_callback(report, tmp_path):
    callback = JUnit(tmp_path / "junit.xml")
    callback.on_chunk(None)
    assert not list(tmp_path.iterdir())
    callback.on_report(report)
    assert read(tmp_path / "junit.xml")


def test_distances_are_information(tmp_path):
    nearest = report_on([[0.1], [0.2], [0.7], [0.9]], Finds(norm="l2"))
    _, suite = read(save_junit(nearest, tmp_path / "junit.xml"))
    (case,) = suite.findall("testcase")
    assert (case.get("name"), case.findtext("system-out")) == (
        "nearest in l2",
        "median distance 0.2",
    )
