"""The software that a result was computed with."""

import platform

import torch

import advkit
from advkit.eval.versions import numerics, versions


def test_versions_are_plain():
    assert versions() == {
        "advkit": advkit.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    assert type(versions()["torch"]) is str  # torch's own is a subclass


def test_a_precision_is_seen_that_the_older_functions_of_torch_refuse():
    part, first = torch.backends.cuda.matmul, numerics()
    assert first["precision of CUDA matmul"] == "ieee"
    before = part.fp32_precision
    try:
        part.fp32_precision = "tf32"
        assert numerics() == {**first, "precision of CUDA matmul": "tf32"}
    finally:
        part.fp32_precision = before
    assert numerics() == first
