"""Folders of images on the command line."""

import json
import re
import sys

import numpy as np
import pytest

from advkit import data
from advkit.cli import main

for package in ("jinja2", "PIL", "tqdm"):
    pytest.importorskip(package)
Image = pytest.importorskip("PIL.Image")

NETS = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 12, 10))

def few():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9))
"""
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ten classes of four images of 8 x 8 pixels, and the same images in an archive."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynet.py").write_text(NETS)
    for i, pixels in enumerate(PIXELS):
        path = tmp_path / "images" / str(i // 4) / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    np.savez("data.npz", images=PIXELS, labels=np.arange(40) // 4)
    return tmp_path


def run(*arguments, model="make", path="images", command="evaluate"):
    given = [command, "--model", f"mynet.py:{model}", "--data", path, "--attack", "FGSM"]
    return main([*given, "--eps", "0.1", *arguments])


def report(folder):
    found = json.loads((folder / "advkit-report" / "report.json").read_text())
    return found["clean_accuracy"], found["worst_case_by_budget"], found["about"]["data"]


def test_a_folder_is_evaluated_like_an_archive(folder):
    assert run("--quiet", "--mode", "L", "--batch-size", "16") == 0
    of_folder = report(folder)
    assert run("--quiet", path="data.npz") == 0
    of_archive = report(folder)
    assert of_folder[:2] == of_archive[:2]
    assert of_folder[0]["total"] == 40
    assert (of_folder[2], of_archive[2]) == ("images", "data.npz")


def test_every_option_arrives(folder):
    arguments = ["--size", "4", "12", "--bounds", "0", "0.5", "--limit", "10", "--quiet"]
    assert run(*arguments, model="flat") == 0
    assert report(folder)[0]["total"] == 10


def test_the_limit_takes_images_of_all_classes(folder, monkeypatch):
    read, images = [], data.ImageFolder
    getitem = images.__getitem__

    def counted(self, index):
        x, label = getitem(self, index)
        read.append((self.paths[index].name, label))
        return x, label

    monkeypatch.setattr(images, "__getitem__", counted)
    assert run("--quiet", "--mode", "L", "--limit", "10") == 0
    first, *rest = read
    assert first == ("00.png", 0)  # the first image is read before the work
    assert rest == [(f"{4 * label:02}.png", label) for label in range(10)]


def test_the_benchmark_takes_a_folder(folder, capsys):
    assert run("--mode", "L", "--rounds", "1", "--limit", "20", command="bench") == 0
    assert "FGSM" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ([], {}, r"--model: the forward pass of one input of shape \(1, 3, 8, 8\) failed"),
        (["--mode", "L"], {"model": "few"}, r"--data: `labels` must be below 9, .*got 9 \(samples"),
        (["--mode", "L"], {"path": "images/0"}, "--data: images/0 must hold one subfolder"),
        (["--mode", "HSV"], {}, "argument --mode: invalid choice"),
        (["--size", "0", "8"], {}, "argument --size: must be an integer of at least 1"),
        (["--size", "8", "8"], {"path": "data.npz"}, "--data must be a folder .* with --size"),
        (["--mode", "L"], {"path": "data.npz"}, "--data must be a folder of images with --mode"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(folder, capsys, arguments, options, said):
    try:
        status = run(*arguments, **options)
    except SystemExit as exit_:
        status = exit_.code
    shown = capsys.readouterr()
    assert status == 2, shown.err
    assert shown.err.count("\n") == 1
    assert re.search(said, shown.err), shown.err


@pytest.mark.parametrize("option", [["--size", "8", "8"], ["--mode", "L"]])
def test_the_images_of_the_command_have_no_options(capsys, option):
    assert main(["evaluate", *option]) == 2
    assert f"--model must be given with {option[0]}" in capsys.readouterr().err


def test_a_damaged_image_is_named(folder, capsys):
    (folder / "images/0/00.png").write_text("hello")
    assert run("--mode", "L") == 2
    assert re.search(r"error: --data: images/0/00\.png must be an image", capsys.readouterr().err)


def test_a_damaged_image_in_a_late_batch_keeps_the_report(folder, capsys):
    (folder / "images/9/39.png").write_text("hello")
    assert run("--mode", "L", "--batch-size", "10") == 2
    shown = capsys.readouterr()
    assert re.search(r"the evaluation failed: .*39\.png must be an image", shown.err)
    assert report(folder)[0]["total"] == 30


def test_missing_pillow_is_named(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert run("--mode", "L") == 2
    assert "--data: ImageFolder needs pillow" in capsys.readouterr().err
