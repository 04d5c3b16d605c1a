"""Groups of options that several commands have; importing them imports no torch."""

from __future__ import annotations

import argparse
from typing import get_args

from advkit.cli.defaults import CHUNK_SIZE, EVALUATE_DIGITS_EPS, SUITES
from advkit.cli.numbers import count, integer, least_accuracy, number, shard
from advkit.core.layouts import ImageMode, Layout


def add_subject(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for model and data."""
    add = parser.add_argument
    add(
        "--model", metavar="FILE.py:FACTORY", help="function without arguments that returns the net"
    )
    add(
        "--weights",
        metavar="FILE",
        help="state dict of the net, .pt or .safetensors, also inside a checkpoint",
    )
    add("--data", metavar="PATH",
        help="archive FILE.npz of images (bytes or floats) and labels, or a folder with one "
        "subfolder of images for each class, whose labels are their places in sorted "
        "order")  # fmt: skip
    add("--layout", default="auto", choices=get_args(Layout),
        help="axes of the images of an archive (default: the axis of length 1, 3 or 4 is the "
        "channels)")  # fmt: skip
    add("--size", nargs=2, type=count, metavar=("HEIGHT", "WIDTH"),
        help="size that the images of a folder are resized and cropped to (default: as they "
        "are)")  # fmt: skip
    add("--mode", choices=get_args(ImageMode),
        help="channels of the images of a folder: RGB, or L for one of gray (default: "
        "RGB)")  # fmt: skip
    add("--bounds", nargs=2, type=number, metavar=("LOWER", "UPPER"),
        help="valid range of the inputs; bytes 0..255 are scaled to it (default: 0 1)")  # fmt: skip
    add(
        "--mean",
        nargs="+",
        type=number,
        help="mean of each channel, subtracted from the inputs before the net",
    )
    add(
        "--std",
        nargs="+",
        type=number,
        help="standard deviation of each channel, by which the inputs are divided after that",
    )


def add_attacks(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the attacks of an evaluation."""
    add = parser.add_argument
    add("--suite", nargs="?", choices=tuple(SUITES), const="fast",
        help="run Suite in linf, the recommended evaluation, next to the attacks of --attack: "
        "fast, the default, or thorough, for a paper; needs --eps; --attack Suite:norm=l2 runs "
        "it in another norm")  # fmt: skip
    add("--attack", action="append", metavar="NAME[:key=value,...]",
        help="attack to run, repeatable; all means every attack whose budget is in units of the "
        "inputs (default: Suite alone; without --model the fast attacks in each norm)")  # fmt: skip
    add("--eps", action="append", type=number,
        help="perturbation budget in units of the inputs, such as 8/255, repeatable; for attacks "
        "that need a budget and do not set one (default without --model: "
        f"{', '.join(map(str, EVALUATE_DIGITS_EPS))})")  # fmt: skip


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the store of an evaluation and its shards."""
    add = parser.add_argument
    add("--store", metavar="DIR",
        help="folder that keeps the results: the same command resumes a killed evaluation, and "
        "several processes may fill one store (default: none)")  # fmt: skip
    add("--shard", type=shard, metavar="I/N",
        help="evaluate the share I of N, counted from 0, and write no report, which is left to "
        "advkit merge; needs --store (default with --store: the share of the process under "
        "torchrun or in a Slurm array, otherwise all)")  # fmt: skip
    add("--chunk-size", type=count, metavar="N",
        help="inputs of a unit of work of --store, rounded up to whole batches (default: "
        f"{CHUNK_SIZE})")  # fmt: skip
    add("--identity", metavar="TEXT",
        help="text for --store that stands for parts of the net that cannot be hashed, and "
        "changes whenever they change")  # fmt: skip


def add_work(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the execution and its output."""
    add = parser.add_argument
    add("--batch-size", type=count, default=128, metavar="N",
        help="number of images in a batch (default: 128)")  # fmt: skip
    add("--device", default="cpu", help="device of the net (default: cpu)")
    add("--seed", type=integer, default=0, help="seed of all random numbers (default: 0)")
    add_messages(parser)


def add_report_folder(parser: argparse.ArgumentParser) -> None:
    """Add the argument for the folder of the report."""
    parser.add_argument("--out", default="advkit-report", metavar="DIR",
        help="folder for report.json, records.npz and report.html (default: "
        "advkit-report)")  # fmt: skip


def add_gates(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the conditions that the report must meet."""
    add = parser.add_argument
    add("--fail-under", action="append", type=least_accuracy, metavar="[BUDGET=]SHARE",
        help="end with status 1 if the robust accuracy under all attacks is below SHARE, such as "
        '0.45 for the only budget, or "linf 8/255=0.45", repeatable (default: none)')  # fmt: skip
    add("--against", metavar="DIR",
        help="folder of an older report on the same images: end with status 1 if the robust "
        "accuracy in a common budget fell by more than chance explains (default: "
        "none)")  # fmt: skip
    add("--junit", metavar="FILE",
        help="also write the gates as a JUnit file for build servers (default: not)")  # fmt: skip
    add("--markdown", metavar="FILE",
        help="also write a summary in Markdown; it is appended to $GITHUB_STEP_SUMMARY if FILE is "
        "that file (default: not)")  # fmt: skip


def add_messages(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for what is printed."""
    add = parser.add_argument
    add("--quiet", action="store_true", help="print only errors and warnings")
    add("--traceback", action="store_true", help="show the traceback of an error")
