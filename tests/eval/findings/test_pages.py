"""The pages of the findings: each finding has one, and its example gives that finding alone."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

from advkit.eval.findings.kinds import KINDS

PAGES = Path(__file__).parents[3] / "docs" / "findings"
INDEX = PAGES / "index.md"
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?")
LINK = re.compile(r"\]\(([\w/.-]+)(#[\w-]+)?\)")


def page_of(name):
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def printed(blocks):
    """What each block prints, run one after the other like a script."""
    scope, outputs = {}, []
    with torch.random.fork_rng():
        for block in blocks:
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(block, "page", "exec"), scope)
            outputs.append(output.getvalue())
    return outputs


def found(text):
    """Names of the findings in a printed text."""
    return re.findall(r"^\[(?:high|medium|low)\] (\w+)$", text, re.MULTILINE)


def masked(text):
    """Text with its numbers replaced: figures may differ by an input on another machine."""
    return NUMBER.sub("0", re.sub(r"\s+", " ", text))


def test_each_finding_has_a_page_and_each_page_a_finding():
    assert {page.stem for page in PAGES.glob("*.md")} - {"index"} == set(KINDS)


def test_the_index_links_to_each_page_once_in_its_table():
    table = INDEX.read_text(encoding="utf-8").split("## All findings")[1].split("\n## ")[0]
    rows = re.findall(r"^\| \[`(\w+)`\]\((\w+)\.md\)", table, re.MULTILINE)
    assert sorted(rows) == sorted((name, name) for name in KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_a_page_names_its_finding_and_has_all_sections(name):
    text = page_of(name)
    assert text.startswith(f"# `{name}`: ")
    sections = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert sections == ["Example", "What to do", "When to ignore it", "Source"]


@pytest.mark.parametrize("page", ["index", *KINDS])
def test_links_lead_to_files(page):
    for target, _ in LINK.findall(page_of(page)):
        assert (PAGES / target).is_file(), target


@pytest.mark.filterwarnings("ignore")  # the examples trigger findings, of which attacks warn too
@pytest.mark.parametrize("page", ["index", *KINDS])
def test_an_example_gives_its_finding_alone_and_prints_what_the_page_shows(page):
    blocks = BLOCK.findall(page_of(page))
    outputs = printed([code for code, _ in blocks])
    assert len(outputs) == (1 if page == "index" else 2)
    if page != "index":
        assert found(outputs[0]) == [page]
        assert page not in found(outputs[1])
    for (_, shown), output in zip(blocks, outputs, strict=True):
        assert found(shown) == found(output)
        assert masked(shown) == masked(output)


def test_the_examples_are_short():
    """One screen a page."""
    assert max(len(page_of(name).splitlines()) for name in KINDS) < 110
