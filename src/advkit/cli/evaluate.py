"""`advkit evaluate`: a robustness report of a net."""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advkit.cli.demo import digits_net, one_thread
from advkit.cli.errors import UsageError, reason
from advkit.cli.loading import device_from, load_data, load_factory, load_weights
from advkit.cli.specs import attacks_from
from advkit.core import checks
from advkit.data import Dataset, digits
from advkit.eval import Report, evaluate_stream
from advkit.models import Normalize, TorchClassifier, hold

_DIGITS_EPS = (0.05, 0.1, 0.15, 0.2)
_DIGITS_ATTACKS = (
    "FGSM",
    "PGD",
    "BIM:eps=0.1",
    "FGM:eps=0.5",
    "PGD:norm=l2,eps=0.5",
    "PGD:norm=l1,eps=2",
    "DeepFool",
    "CarliniWagnerL2:steps=50",  # half its cost, for a first look
    "LBFGS",
    "FAB",
    "FAB:norm=linf",
    "JSMA",
    "Square:eps=0.1,queries=200",
    "HopSkipJump:queries=300",
)
_ATTACKS = ("FGSM", "PGD")
_INTERRUPTED = 130
_FILES = ("report.json", "report.html")


def run(args: argparse.Namespace) -> int:
    """Evaluate as `args` say, print the table, write the report; the exit status."""
    with nullcontext() if args.model else one_thread():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    _check_combination(args)
    _check_extra()
    default, default_eps = (_ATTACKS, ()) if args.model else (_DIGITS_ATTACKS, _DIGITS_EPS)
    attacks = attacks_from(args.attack or default, args.eps or (), args.seed, default_eps)
    bar = not args.quiet and sys.stderr.isatty()
    device = device_from(args.device)
    model = _model(args, device, bar=bar)
    data = _data(args)
    _check_together(model, data, device)
    out = _check_out(args.out)
    return _evaluate(model, data, attacks, args, out, device, bar=bar)


def _check_combination(args: argparse.Namespace) -> None:
    if args.model and not args.data:
        raise UsageError("--data is missing: --model needs the images to attack it on")
    for name in ("data", "weights", "mean", "std"):
        if getattr(args, name) and not args.model:
            raise UsageError(f"--model is missing: --{name} goes with a model of your own")
    if bool(args.mean) != bool(args.std):
        raise UsageError("--mean and --std go together")
    if args.bounds and not args.model:
        raise UsageError("--model is missing: --bounds goes with a model of your own")


def _check_extra() -> None:
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import tqdm  # noqa: F401
    except ImportError as error:
        raise UsageError(f"the report needs {error.name}: pip install 'advkit[report]'") from error


def _check_out(folder: str) -> Path:
    """The folder to write to, made now: an hour's work must not end at a typo."""
    out = Path(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(f"--out: cannot write to {out}: {reason(error)}") from error
    for name in _FILES:
        if (out / name).is_dir():
            raise UsageError(f"--out: {out / name} is a folder")
    return out


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
        with hold(model):
            model.predict(one)
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


def _evaluate(
    model: TorchClassifier,
    data: Dataset,
    attacks: list[Any],
    args: argparse.Namespace,
    out: Path,
    device: torch.device,
    *,
    bar: bool,
) -> int:
    report: Report | None = None
    status = 0
    failure: UsageError | None = None
    stream = evaluate_stream(
        model,
        data.x,
        data.y,
        attacks=attacks,
        batch_size=args.batch_size,
        device=device,
        progress=bar,
    )
    try:
        for report in stream:  # noqa: B007
            pass
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        failure = UsageError(f"the evaluation failed: {reason(error)}")
        failure.__cause__ = error
    if report is not None:
        _deliver(replace(report, about=_about(args, data)), out, quiet=args.quiet)
    if failure is not None:
        raise failure
    if report is None:
        raise KeyboardInterrupt
    return status


def _about(args: argparse.Namespace, data: Dataset) -> dict[str, str]:
    about = {"data": data.name}
    if args.model:
        about["net"] = args.model + (f" with {args.weights}" if args.weights else "")
    return {**about, "seed": str(args.seed)}


def _deliver(report: Report, out: Path, *, quiet: bool) -> None:
    if not quiet:
        print(report)  # noqa: T201 - this is the command line
    json, html = (out / name for name in _FILES)
    try:
        written = report.save_json(json), report.save_html(html)
    except OSError as error:
        raise UsageError(f"--out: cannot write to {out}: {reason(error)}") from error
    if not quiet:
        print("\nsaved " + " and ".join(map(str, written)))  # noqa: T201
