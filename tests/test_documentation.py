"""What the documentation shows is run: examples of docstrings, and the README's Python."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import advkit
from advkit import attacks, defenses, detectors

ROOT = Path(__file__).parents[1]
BESIDE = {"TrainingLoss", "WeightedSum", "History"}  # what losses and `fit` are made of
SAVES_A_PAGE = "advkit.eval.robustness.report"
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(advkit.__path__, "advkit.")
    if not name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name):
    if name == SAVES_A_PAGE:
        pytest.importorskip("jinja2")
        pytest.importorskip("matplotlib")
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name))]
    assert sum(len(test.examples) for test in found) > 20


@pytest.mark.parametrize("page", ["README.md", *sorted(str(p) for p in ROOT.glob("docs/*.md"))])
def test_python_of_the_pages_runs(page, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    scope = {}
    with torch.random.fork_rng():
        for block in blocks:
            exec(compile(block, page, "exec"), scope)


@pytest.mark.parametrize(
    "name",
    [*attacks.__all__, *sorted(set(defenses.__all__) - BESIDE), *detectors.__all__],
)
def test_every_public_name_stands_in_the_tables_and_the_changelog(name):
    table, log = (ROOT / "README.md").read_text(), (ROOT / "CHANGELOG.md").read_text()
    assert f"`{name}`" in table
    assert f"`{name}`" in log


def test_the_readme_begins_with_two_commands():
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[:2]
    assert len(blocks) == 2
    assert all(len(block.strip().splitlines()) == 1 for block in blocks)
    ci = (ROOT / ".ci" / "full").read_text()
    assert blocks[1].strip() in ci
