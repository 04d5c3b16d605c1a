"""Every script answers `--help`, and rejects arguments that it does not know."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = [
    path
    for folder in ("examples", "examples/studies", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if '\nif __name__ == "__main__":' in path.read_text()
]
MODULES = [path for path in RUN if "\ndef main(" not in path.read_text()]


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs a script as Python does; returns its status and its output."""

    def execute(path, *arguments):
        monkeypatch.syspath_prepend(str(path.parent))
        monkeypatch.setattr("sys.argv", [str(path), *arguments])
        status = 0
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return execute


def test_all_scripts_are_found():
    assert len(RUN) == 39
    assert {path.stem for path in MODULES} == {
        "auto_attack_figures",
        "black_boxes",
        "defended_attacks",
        "defended_nets",
        "faulty_nets",
        "mrr_victims",
        "nets",
        "study",
    }


def test_the_example_that_needs_more_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    status, out, err = run(ROOT / "examples" / "studies" / "serve_a_guard.py")
    assert (status, out) == (2, "")
    assert err.endswith("Install what serves: pip install fastapi uvicorn\n")


def test_every_file_of_the_examples_can_be_run():
    assert set((ROOT / "examples").rglob("*.py")) <= set(RUN)


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_help_is_the_usage(run, path):
    status, out, err = run(path, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: {path.name} ")
    assert path.read_text().split('"""')[1].split()[0] in out  # it begins as the docstring does


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_an_unknown_argument_is_an_error(run, path):
    status, out, err = run(path, "--unknown")
    assert (status, out) == (2, "")
    assert err.startswith(f"usage: {path.name} ")
    assert f"{path.name}: error: " in err


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_says_that_it_is_one(run, path):
    status, out, err = run(path)
    assert (status, err) == (0, "")
    assert "This is a module that the studies import." in " ".join(out.split())


def test_a_benchmark_without_its_files_names_them(run, tmp_path):
    path = ROOT / "benchmarks" / "outside_the_net.py"
    (tmp_path / "cifar10_resnet20.pt").touch()
    status, out, err = run(path, "before", "after", "--data", str(tmp_path))
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == (
        "outside_the_net.py: error: `--data` must name a folder with cifar10_resnet20.pt and "
        f"cifar10_test_0000_0499.npz, got {tmp_path}. See docs/data.md for their sources."
    )
