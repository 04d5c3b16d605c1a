"""What a command attacks: the model, the data and the device that its arguments name."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from advkit.cli.demo import digits_net
from advkit.cli.errors import UsageError, reason
from advkit.cli.loading import device_from, load_data, load_factory, load_weights
from advkit.core import checks
from advkit.core.files import target_of
from advkit.data import Dataset, digits
from advkit.models import Normalize, TorchClassifier, evaluating


class Subject(NamedTuple):
    """What is attacked.

    Attributes:
        model: the net of the arguments, on the device; without one a net for the digits.
        data: its images, or the digits.
        device: where the batches are moved to.
        about: what a reader of the figures should know, by name.
    """

    model: TorchClassifier
    data: Dataset
    device: torch.device
    about: dict[str, str]


def subject_from(args: argparse.Namespace, *, bar: bool) -> Subject:
    """The subject that `args` name, checked; `bar` shows one where a net is trained.

    Raises:
        UsageError: something is missing, cannot be read, or does not fit.
    """
    device = device_from(args.device)
    model = _model(args, device, bar=bar)
    data = _data(args)
    _check_together(model, data, device)
    return Subject(model, data, device, _about(args, data))


def check_combination(args: argparse.Namespace) -> None:
    """Raise if arguments that go together do not come together.

    Raises:
        UsageError: the arguments that are missing.
    """
    if args.model and not args.data:
        raise UsageError("--data is missing: --model needs the images to attack it on")
    for name in ("data", "weights", "mean", "std"):
        if getattr(args, name) and not args.model:
            raise UsageError(f"--model is missing: --{name} goes with a model of your own")
    if bool(args.mean) != bool(args.std):
        raise UsageError("--mean and --std go together")
    if args.bounds and not args.model:
        raise UsageError("--model is missing: --bounds goes with a model of your own")


def _model(args: argparse.Namespace, device: torch.device, *, bar: bool) -> TorchClassifier:
    module: nn.Module = load_factory(args.model) if args.model else digits_net(progress=bar)
    if args.weights:
        load_weights(module, Path(args.weights))
    try:
        preprocess = Normalize(tuple(args.mean), tuple(args.std)) if args.mean else None
        return TorchClassifier(module.to(device), _bounds(args), preprocess)
    except ValueError as error:
        raise UsageError(f"--{error}") from error


def _bounds(args: argparse.Namespace) -> tuple[float, float]:
    return tuple(args.bounds) if args.bounds else (0.0, 1.0)


def _data(args: argparse.Namespace) -> Dataset:
    data = load_data(Path(args.data), _bounds(args), args.layout) if args.data else digits("test")
    if len(data) == 0:
        raise UsageError("--data: the archive holds no images")
    return data.head(args.limit)


def _check_together(model: TorchClassifier, data: Dataset, device: torch.device) -> None:
    """Whether model and data fit, before the work: all values, one forward pass, all labels."""
    try:
        checks.inputs(data.x, model.bounds)
    except ValueError as error:
        sentence, outside, _ = str(error).partition("; wrap")
        way_out = "; say --bounds LOWER UPPER" if outside else ""
        raise UsageError(f"--data: {sentence}{way_out}") from error
    one = data.x[:1].to(device)
    try:
        with evaluating(model), torch.no_grad():
            model.logits(one)  # that they are finite is for the report to say
    except Exception as error:
        shape = tuple(one.shape)
        raise UsageError(
            f"--model: the forward pass of one input of shape {shape} failed: {reason(error)}"
        ) from error
    try:
        rows = torch.arange(len(data))
        checks.labels_within("labels", data.y, model.num_classes, rows)
        checks.labels("labels", data.y, data.x)
    except ValueError as error:
        raise UsageError(f"--data: {error}") from error


def _about(args: argparse.Namespace, data: Dataset) -> dict[str, str]:
    about = {"data": data.name}
    if args.model:
        about["net"] = args.model + (f" with {args.weights}" if args.weights else "")
    return {**about, "seed": str(args.seed)}


def writable(folder: Path) -> Path:
    """`folder`, made now: an hour's work must not end at a typo.

    Raises:
        UsageError: nothing can be written to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # without a name that a kill could leave
            pass
    except FileExistsError as error:
        raise UsageError(f"--out: cannot write to {folder}: it is not a folder") from error
    except OSError as error:
        raise UsageError(f"--out: cannot write to {folder}: {reason(error)}") from error
    return folder


def writable_file(path: Path) -> Path:
    """Return `path`, a regular file or none yet, in a folder that is made now.

    Raises:
        UsageError: it is a folder or a special file, or nothing can be written to it.
    """
    try:
        target = target_of(path)
    except OSError as error:
        raise UsageError(f"--out: {error}") from error
    writable(target.parent)
    return path
