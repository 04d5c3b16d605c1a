"""Reports of the command hold the command that repeats them."""

import json
import shlex
from argparse import Namespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advkit.cli.main import build_parser, main
from advkit.cli.repeat import repeating_command

NETS = """
import torch

def make():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files of a net, its weights and its data, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my nets.py").write_text(NETS)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 12, generator=generator)
    torch.save({"1.weight": weights, "1.bias": torch.zeros(3)}, "net.pt")
    x = torch.rand(20, 2, 2, 3, generator=generator)
    labels = (x.permute(0, 3, 1, 2).flatten(1) @ weights.T).argmax(1)
    labels[:4] = 0
    np.savez("data.npz", images=x.numpy() * 3 - 1, labels=labels.numpy())
    (tmp_path / "names.txt").write_text("cat\ndog\nbird\n")
    return tmp_path


def report(out):
    return json.loads((out / "report.json").read_text())


def figures(plain):
    """What a report says, apart from times, the device and the file names."""
    apart = {"date", "command", "page", "threads"}
    attacks = [{**attack, "seconds": None} for attack in plain["attacks"]]
    return {**{k: v for k, v in plain.items() if k not in apart}, "attacks": attacks}


MINE = [
    "evaluate", "--model", "my nets.py:make", "--weights", "net.pt", "--data", "data.npz",
    "--layout", "channels_last", "--bounds", "-1", "2", "--mean", "0.5", "-0.00001", "1/3",
    "--std", "1/7", "0.2", "0.3", "--eps", "8/255", "--eps", "0.1", "--limit", "17",
    "--attack", "FGSM", "--attack", "PGD:steps=3,restarts=2", "--attack", "Square:max_queries=20",
    "--attack", "DeepFool:steps=5", "--class-names", "names.txt", "--seed", "7",
    "--batch-size", "5",
]  # fmt: skip


def test_the_report_alone_repeats_the_evaluation(folder, tmp_path_factory):
    assert main([*MINE, "--out", "first", "--quiet"]) == 0
    first = report(folder / "first")
    words = shlex.split(first["command"])
    assert words[0] == "advkit"
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert main([*words[1:], "--out", str(elsewhere), "--quiet"]) == 0
    second = report(elsewhere)
    assert figures(second) == figures(first)
    assert (second["digest"], second["command"]) == (first["digest"], first["command"])


def test_a_change_shows(folder):
    assert main([*MINE, "--out", "first", "--quiet"]) == 0
    words = shlex.split(report(folder / "first")["command"])
    words[words.index("--seed") + 1] = "8"
    assert main([*words[1:], "--out", "second", "--quiet"]) == 0
    assert report(folder / "first")["digest"] != report(folder / "second")["digest"]


def test_the_command_has_no_files_to_write_and_no_shards(folder):
    store = ["--store", "store", "--out", "out", "--chunk-size", "5", "--quiet", "--traceback"]
    assert main([*MINE, *store]) == 0
    command = report(folder / "out")["command"]
    assert not any(option in command for option in store if option.startswith("--"))
    assert main([*MINE, "--out", "plain", "--quiet"]) == 0
    assert report(folder / "plain")["command"] == command
    assert main(["merge", "store", "--out", "merged", "--quiet"]) == 0
    assert report(folder / "merged")["command"] == command


def test_a_folder_of_images(folder):
    image = pytest.importorskip("PIL.Image")
    for number, name in enumerate(("ant", "bee", "cow")):
        (folder / "images" / name).mkdir(parents=True)
        pixels = np.full((3, 5, 3), 50 * number, dtype=np.uint8)
        image.fromarray(pixels).save(folder / "images" / name / "one.png")
    line = ["evaluate", "--model", "my nets.py:make", "--data", "images", "--size", "2", "2",
            "--mode", "RGB", "--eps", "0.1", "--attack", "FGSM", "--quiet"]  # fmt: skip
    assert main([*line, "--out", "first"]) == 0
    first = report(folder / "first")
    assert first["class_names"] == ["ant", "bee", "cow"]
    words = shlex.split(first["command"])[1:]
    made = build_parser().parse_args(words)
    assert (made.size, made.mode, made.data) == ([2, 2], "RGB", "images")


# every option of the command that changes the results, with values as the parser returns them
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=64)
TEXTS = st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), min_size=1)
PLAIN_TEXTS = TEXTS.filter(lambda text: not text.startswith("-"))
GIVEN = st.fixed_dictionaries(
    {},
    optional={
        "model": PLAIN_TEXTS, "weights": PLAIN_TEXTS, "data": PLAIN_TEXTS,
        "layout": st.sampled_from(["auto", "channels_first", "as_is"]),
        "size": st.lists(st.integers(1, 999), min_size=2, max_size=2),
        "mode": st.sampled_from(["RGB", "L"]),
        "bounds": st.lists(NUMBERS, min_size=2, max_size=2),
        "mean": st.lists(NUMBERS, min_size=1, max_size=3),
        "std": st.lists(NUMBERS, min_size=1, max_size=3),
        "class_names": PLAIN_TEXTS, "suite": st.sampled_from(["fast", "thorough"]),
        "attack": st.lists(PLAIN_TEXTS, min_size=1, max_size=3),
        "eps": st.lists(NUMBERS, min_size=1, max_size=3), "limit": st.integers(1),
        "identity": PLAIN_TEXTS, "batch_size": st.integers(1), "device": PLAIN_TEXTS,
        "seed": st.integers(),
    },
)  # fmt: skip


@given(GIVEN)
def test_the_parser_reads_the_same_values(given):
    args = Namespace(**{**vars(build_parser().parse_args(["evaluate"])), **given})
    again = build_parser().parse_args(shlex.split(repeating_command(args))[1:])
    for name, value in given.items():
        assert getattr(again, name) == value


@pytest.mark.parametrize(
    ("value", "text"), [(8 / 255, "8/255"), (0.1, "0.1"), (1 / 3, "1/3"), (-1e-5, "-0.00001")]
)
def test_numbers_are_short(value, text):
    args = Namespace(**{**vars(build_parser().parse_args(["evaluate"])), "eps": [value]})
    assert f"--eps {text} " in repeating_command(args)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"cat\ndog\n", "names.txt must have one line for each of the 3 classes, got 2 lines."),
        (b"cat\n\nbird\n", "names.txt must have a name in each line, got none in line 2."),
        (b"\xff\n", "cannot read names.txt: "),
        (None, "cannot read names.txt: "),
    ],
)
def test_wrong_names_of_classes(folder, capsys, content, says):
    (folder / "names.txt").unlink()
    if content is not None:
        (folder / "names.txt").write_bytes(content)
    assert main([*MINE, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("advkit evaluate: error: --class-names: ")
    assert says in error
    assert len(error.splitlines()) == 1


def test_names_of_classes(folder):
    assert main([*MINE, "--out", "out", "--quiet"]) == 0
    assert report(folder / "out")["class_names"] == ["cat", "dog", "bird"]
