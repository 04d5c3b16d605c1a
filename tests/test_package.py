"""`import advkit`: every public name, and no work before one is used."""

import subprocess
import sys

import pytest

import advkit


@pytest.mark.parametrize("name", advkit.__all__)
def test_public_names_are_there_and_listed(name):
    assert getattr(advkit, name).__name__.split(".")[-1] == name
    assert name in dir(advkit)


def test_other_names_are_an_error():
    with pytest.raises(AttributeError, match="module 'advkit' has no attribute 'PGD'"):
        advkit.PGD  # noqa: B018


def test_torch_is_imported_at_the_first_use():
    code = (
        "import sys, advkit\n"
        "assert not {'torch', 'numpy'} & sys.modules.keys()\n"
        "from advkit import *\n"
        "assert attacks.PGD and TorchClassifier and QueryBudgetExceeded\n"
        "import advkit.core.tensors\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
