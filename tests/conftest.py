"""Published nets and images, and the reasons for tests that are skipped."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import examples.studies.nets
import pytest
import torch

from advkit.data import load_npz

# The nets of the tests are too small to share: threads would wait for each other most of the time.
torch.set_num_threads(1)

DATA = Path(os.environ.get("ADVKIT_DATA", Path(__file__).parents[2] / "shared" / "data"))
OPTIONAL = {
    *("matplotlib", "jinja2", "tqdm", "safetensors", "onnx", "onnxruntime"),
    *("mlflow", "tensorboard", "wandb"),
}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Skip a test that stops at an optional package which is absent."""
    try:
        return (yield)
    except ImportError as error:
        named = re.search(r"needs (\w+)\. Install it", str(error))  # the message of `require`
        package = named[1] if named else (error.name or "").partition(".")[0]
        if package in OPTIONAL and find_spec(package) is None:
            pytest.skip(f"needs {package}, which is optional")
        raise


@pytest.fixture(autouse=True)
def draws():
    """What a test draws from torch's generator depends on no other test, nor on their order."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real():
    """A function that gives the path of a published file, or skips the test without it."""

    def path(name):
        if not (DATA / name).is_file():
            pytest.skip(f"needs {name}; set ADVKIT_DATA to its folder, see docs/data.md")
        return DATA / name

    return path


@pytest.fixture(scope="session")
def real_net(real):
    """A function that loads a published net into a factory of examples/studies/nets.py."""

    def load(factory, name):
        net = getattr(examples.studies.nets, factory)()
        net.load_state_dict(torch.load(real(name), weights_only=True))
        return net

    return load


@pytest.fixture(scope="session")
def mnist_test(real):
    return load_npz(real("mnist_test.npz"))


@pytest.fixture(scope="session")
def cifar10_test(real):
    return load_npz(real("cifar10_test_0000_0499.npz"))
