"""The subject of a command: the model, the data and the device of its arguments."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from advkit.cli.demo import digits_net
from advkit.cli.errors import UsageError, reason, with_options
from advkit.cli.loading import (
    device_from,
    load_data,
    load_factory,
    load_folder,
    load_lines,
    load_weights,
)
from advkit.cli.outputs import check_apart
from advkit.core import checks, label_checks
from advkit.core.files import target_of
from advkit.data import Dataset, ImageFolder, digits
from advkit.eval.text_tables import format_count
from advkit.models import Normalize, TorchClassifier, evaluating

_FILES = ("model", "weights", "data", "class_names")  # options with files that are read


class Subject(NamedTuple):
    """Model and data that are attacked.

    Attributes:
        model: the net of the arguments, on the device, or a net for the digits by default.
        data: the data of the arguments, or the digits.
        device: the device that the batches are moved to.
        about: origin of model and data and the seed, by name, for reports.
        class_names: names of the classes: lines of a file, or subfolders; empty if unknown.
    """

    model: TorchClassifier
    data: Dataset | ImageFolder
    device: torch.device
    about: dict[str, str]
    class_names: tuple[str, ...]


def subject_from(args: argparse.Namespace, *, bar: bool) -> Subject:
    """Load and check the subject of `args`; `bar` shows progress if a net is trained.

    Raises:
        UsageError: an argument is missing, cannot be read, or does not fit the others.
    """
    device = device_from(args.device)
    model = _model(args, device, bar=bar)
    data = _data(args)
    _check_together(model, data, device)
    return Subject(model, data, device, _about(args, data), _class_names(args, model, data))


def check_combination(args: argparse.Namespace) -> None:
    """Raise if arguments that depend on each other are incomplete.

    Raises:
        UsageError: an argument is missing.
    """
    if args.model and not args.data:
        raise UsageError("--data must be given with --model. It holds the images to attack.")
    for name in ("data", "weights", "mean", "std", "bounds", "size", "mode"):
        if getattr(args, name) and not args.model:
            raise UsageError(f"--model must be given with --{name}.")
    if bool(args.mean) != bool(args.std):
        raise UsageError("--mean and --std must be given together.")


def _model(args: argparse.Namespace, device: torch.device, *, bar: bool) -> TorchClassifier:
    module: nn.Module = load_factory(args.model) if args.model else digits_net(progress=bar)
    if args.weights:
        load_weights(module, Path(args.weights))
    module = _moved(module, device)
    try:
        preprocess = Normalize(tuple(args.mean), tuple(args.std)) if args.mean else None
        return TorchClassifier(module, _bounds(args), preprocess)
    except TypeError as error:
        raise UsageError(f"--model: {error}") from error
    except ValueError as error:
        raise UsageError(with_options(error)) from error


def _moved(module: nn.Module, device: torch.device) -> nn.Module:
    try:
        return module.to(device)
    except Exception as error:
        raise UsageError(
            f"--model: the net cannot be moved to --device {device}: {reason(error)}"
        ) from error


def _bounds(args: argparse.Namespace) -> tuple[float, float]:
    return tuple(args.bounds) if args.bounds else (0.0, 1.0)


def _data(args: argparse.Namespace) -> Dataset | ImageFolder:
    if args.data and os.path.isdir(args.data):
        size = tuple(args.size) if args.size else None
        folder = load_folder(Path(args.data), _bounds(args), size, args.mode or "RGB")
        return folder.subsample(args.limit)
    for name in ("size", "mode"):
        if getattr(args, name):
            raise UsageError(f"--data must be a folder of images with --{name}.")
    data = load_data(Path(args.data), _bounds(args), args.layout) if args.data else digits("test")
    if len(data) == 0:
        raise UsageError("--data must hold at least one image, got none.")
    return data.head(args.limit)


def _check_together(
    model: TorchClassifier, data: Dataset | ImageFolder, device: torch.device
) -> None:
    """Raise unless the data fits the model: values, all labels, and one forward pass.

    Of a folder the first image alone is read; the evaluation checks the others.
    """
    try:
        images = data.x if isinstance(data, Dataset) else data[0][0][None]
        checks.inputs("images", images, model.bounds, outside="Set --bounds LOWER UPPER.")
    except ValueError as error:
        raise UsageError(f"--data: {error}") from error
    _check_pass(model, images[:1].to(device))
    try:
        label_checks.labels_within("labels", data.y, model.num_classes)
        label_checks.labels("labels", data.y, data.y)
    except ValueError as error:
        raise UsageError(f"--data: {error}") from error


def _check_pass(model: TorchClassifier, one: Tensor) -> None:
    """Raise unless the model passes one input forward."""
    try:
        with evaluating(model), torch.no_grad():
            model.logits(one)  # the report tells whether they are finite
    except (Exception, SystemExit) as error:
        shape = tuple(one.shape)
        raise UsageError(
            f"--model: the forward pass of one input of shape {shape} failed: {reason(error)}"
        ) from error


def _class_names(
    args: argparse.Namespace, model: TorchClassifier, data: Dataset | ImageFolder
) -> tuple[str, ...]:
    """Return the lines of the file of `args`, otherwise the names of the subfolders, if any.

    Raises:
        UsageError: the file does not have one line for each class.
    """
    if getattr(args, "class_names", None) is None:  # only some commands have the option
        return data.classes if isinstance(data, ImageFolder) else ()
    names = load_lines(args.class_names, "--class-names")
    if len(names) != model.num_classes:
        raise UsageError(
            f"--class-names: {args.class_names} must have one line for each of the "
            f"{model.num_classes} classes, got {format_count(len(names), 'line')}."
        )
    return names


def _about(args: argparse.Namespace, data: Dataset | ImageFolder) -> dict[str, str]:
    about = {"data": data.name}
    if args.model:
        about["net"] = args.model + (f" with {args.weights}" if args.weights else "")
    return {**about, "seed": str(args.seed)}


def input_files(args: argparse.Namespace) -> list[tuple[str, Path]]:
    """Return option and path of each file that a command reads; only some have each option."""
    found = []
    for name in _FILES:
        path = getattr(args, name, None)
        if path is not None:
            file = path.rpartition(":")[0] if name == "model" else path
            found.append((f"--{name.replace('_', '-')}", Path(file)))
    return found


def result_file(args: argparse.Namespace) -> Path | None:
    """Return the file of --out, so that a wrong path fails before the work; `None` for none.

    Raises:
        UsageError: it cannot be written, or is a file that the command reads.
    """
    if not args.out:
        return None
    check_apart([("--out", Path(args.out))], input_files(args))
    return writable_file(Path(args.out))


def writable(folder: Path, option: str = "--out") -> Path:
    """Create and return `folder`, so that a wrong path fails before the work.

    Raises:
        UsageError: no file can be written to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # without a name, so that a kill leaves no file
            pass
    except FileExistsError as error:
        raise UsageError(f"{option}: cannot write to {folder}: it is not a folder.") from error
    except (OSError, ValueError) as error:  # of a path with a null byte
        raise UsageError(f"{option}: cannot write to {folder}: {reason(error)}") from error
    return folder


def writable_file(path: Path, option: str = "--out") -> Path:
    """Create the folder of `path` and return `path`, a regular file or a file to create.

    Raises:
        UsageError: it is a folder or a special file, or cannot be written.
    """
    try:
        target = target_of(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{option}: {error}") from error
    writable(target.parent, option)
    return path
