"""Optional dependencies: imported when they are needed, named with their extra if missing."""

import json
import sys

import pytest

from advkit.core.extras import require


def test_a_module_that_is_there_is_returned():
    assert require("json", extra="report", needed_by="this") is json


def test_a_missing_module_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "there.inside", None)
    said = r"^HTML needs there. Install it with: pip install there \(the extra 'report' of advkit "
    said += r"includes it\)\.$"
    with pytest.raises(ImportError, match=said):
        require("there.inside", extra="report", needed_by="HTML")


def test_a_module_that_cannot_be_imported_counts_as_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_extra.py").write_text("raise ImportError('a library is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="HTML needs broken_extra. Install it with: pip install"):
        require("broken_extra", extra="report", needed_by="HTML")


def test_the_package_of_a_module_may_have_another_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match="needs pillow. Install it with: pip install pillow"):
        require("PIL.Image", extra="images", needed_by="ImageFolder")
