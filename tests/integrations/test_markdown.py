"""Summaries in Markdown."""

import dataclasses

import pytest

from advkit import eval as rob
from advkit.integrations.markdown import format_markdown, save_markdown
from tests.eval.made_up import Finds, report_on


@pytest.fixture(scope="module")
def report():
    made = [Finds(norm="linf", eps=0.5), Finds(1, "linf", 0.5), Finds(norm="l2")]
    return report_on([[0.1, 0.1], [0.7, 0.2], [0.9, 0.3], [0.9, 0.9]], *made, wrong=1)


def rows(text):
    """The cells of all lines of tables."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_a_table_of_budgets(report):
    heading, line, first, *_ = rows(format_markdown(report))
    assert heading[:4] == ["budget", "clean", "random noise", "robust"]
    assert line == ["---"] * len(heading)
    assert len(first) == len(heading)
    low, high = report.worst_case.interval
    assert first == [
        "linf 0.5", "80.00 % (4 of 5)", "80.00 % (4 of 5)", "20.00 % (1 of 5)",
        f"{100 * low:.1f} to {100 * high:.1f} %", "Finds(feature=1, norm='linf', eps=0.5)",
    ]  # fmt: skip


def test_a_table_of_nearest_examples(report):
    text = format_markdown(report)
    assert rows(text)[-1] == ["l2", "100.00 % (4 of 4)", "0.7"]


def test_gates_and_findings(report):
    gated = rob.gate(report, fail_under={"linf 0.5": 0.9}, against=report)
    text = format_markdown(gated)
    assert "- **failed**: linf 0.5 at least 90 %: robust accuracy 20.00 % (1 of 5) is bel" in text
    assert "- passed: linf 0.5 not worse: " in text
    for finding in report.findings:
        assert f"- **{finding.severity}** " in text
    assert report.verdict.split(".")[0] in text.replace("\\", "")
    assert text.endswith(f"digest: `{gated.digest}`\n")


def test_special_characters_are_text(report):
    strange = dataclasses.replace(report, model="a | b\n`c` <script> *d* [e](f)")
    first = format_markdown(strange).splitlines()[0]
    assert first == r"## Robustness of a \| b \`c\` \<script\> \*d\* \[e\](f)"


def test_it_replaces_or_appends(report, tmp_path):
    path = tmp_path / "deep" / "summary.md"
    text = format_markdown(report)
    assert save_markdown(report, path, append=True).read_text() == text
    path.write_text("# Before")
    assert save_markdown(report, path, append=True).read_text() == f"# Before\n{text}"
    assert save_markdown(report, path, append=True).read_text() == f"# Before\n{text}{text}"
    assert save_markdown(report, path).read_text() == text
