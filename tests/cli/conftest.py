"""The command imports files of the user; tests leave no trace of them."""

import sys

import pytest


@pytest.fixture(autouse=True)
def imports(tmp_path, monkeypatch):
    """Put the search path back, and forget the modules in the folder of the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
