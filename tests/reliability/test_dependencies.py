"""The lowest versions that advkit allows of other packages, held to published advisories."""

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
MINIMA = {
    "torch": "2.10",
    "jinja2": "3.1.6",
    "tqdm": "4.66.3",
    "pillow": "12.3",
    "lightgbm": "4.6",
}
PROMISE = "a release of a dependency with a known advisory is not accepted"


def requirements(text):
    """Requirements of a `pyproject.toml`, those of extras too; Python 3.10 has no `tomllib`."""
    return [Requirement(quoted) for quoted in re.findall(r'"([\w-]+>=[^"]+)"', text)]


def declared():
    return requirements((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def lowest(requirement):
    """The version that a requirement begins with."""
    (bound,) = [s.version for s in requirement.specifier if s.operator in (">=", "==")]
    return Version(bound)


@pytest.mark.parametrize("name", MINIMA)
def test_the_minimum_is_held(name, tally):
    trials = tally(PROMISE)
    wanted = Version(MINIMA[name])
    for source, found in (("pyproject.toml", declared()), ("constraints.txt", pinned())):
        with trials.trial(f"{name} in {source}"):
            versions = [lowest(r) for r in found if r.name.lower() == name]
            assert versions, f"{source} does not name {name}"
            assert min(versions) >= wanted
    with trials.trial(f"{name} here"):
        assert Version(metadata.version(name)) >= wanted


@pytest.mark.parametrize("name", MINIMA)
def test_the_reason_is_given(name):
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {name} \| (.*) \|$", page, re.M | re.I)
    least, reason = row.split(" | ")
    assert least == MINIMA[name]
    assert re.search(r"CVE-\d{4}-\d+", reason)


def test_every_pinned_release_is_one_that_is_declared():
    wanted = {r.name.lower(): r.specifier for r in declared()}
    named = {r.name.lower(): lowest(r) for r in pinned()}
    both = wanted.keys() & named.keys()
    assert both >= {*MINIMA, "numpy", "scipy", "scikit-learn", "packaging"}
    assert [name for name in both if named[name] not in wanted[name]] == []


def test_a_lower_bound_would_be_seen():
    (old,) = requirements('dependencies = [\n    "torch>=2.5",\n]')
    assert (old.name, lowest(old)) == ("torch", Version("2.5"))
    assert lowest(old) < Version(MINIMA["torch"])
