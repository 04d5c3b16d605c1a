"""The software that a result was computed with."""

import platform

import torch

import advkit
from advkit.eval.versions import versions


def test_versions_are_plain():
    assert versions() == {
        "advkit": advkit.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    assert type(versions()["torch"]) is str  # torch's own is a subclass
