"""Studies are imported as they import each other: from their own folder."""

import importlib
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[3] / "examples" / "studies"


@pytest.fixture
def study(request, monkeypatch):
    """The module of `examples/studies` that the file of the test is named after."""
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module(request.path.stem.removeprefix("test_"))
