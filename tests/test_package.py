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


def test_attacks_need_neither_scipy_nor_scikit_learn():
    code = (
        "import sys, torch, advkit\n"
        "net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))\n"
        "advkit.attacks.PGD(eps=0.1, steps=2)(net, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))\n"
        "loaded = {'scipy', 'sklearn', 'matplotlib'} & sys.modules.keys()\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torch_is_imported_at_the_first_use():
    code = (
        "import sys, advkit\n"
        "assert not {'torch', 'numpy'} & sys.modules.keys()\n"
        "from advkit import *\n"
        "assert attacks.PGD and TorchClassifier and QueryBudgetExceeded\n"
        "import advkit.core.tensors\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_packages_import_neither_scipy_nor_scikit_learn():
    code = (
        "import sys, advkit.attacks, advkit.data, advkit.defenses, advkit.eval, advkit.models\n"
        "loaded = {'scipy', 'sklearn', 'matplotlib'} & sys.modules.keys()\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        *([command, "--help"] for command in ("evaluate", "merge", "bench")),
        ["evaluate", "--epz"],
        ["evaluate", "--shard", "2/2"],
    ],
)
def test_help_and_version_import_no_torch(arguments):
    code = (
        "import sys\n"
        "from advkit.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "loaded = {'torch', 'numpy', 'scipy', 'sklearn', 'matplotlib'} & sys.modules.keys()\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
