"""`advkit evaluate`: a report on the robustness of a net."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from advkit.cli.defaults import EVALUATE_DIGITS_EPS, SUITES
from advkit.cli.demo import one_thread
from advkit.cli.errors import UsageError, exit_status, reason
from advkit.cli.printing import show, shows_progress, warn
from advkit.cli.specs import attacks_from
from advkit.cli.subject import (
    Subject,
    check_combination,
    subject_from,
    writable,
    writable_file,
)
from advkit.core.extras import require
from advkit.eval import Report, evaluate_stream

_DIGITS_ATTACKS = (
    "Suite:eps=0.15",
    "FGSM",
    "PGD",
    "BIM:eps=0.1",
    "FGM:eps=0.5",
    "PGD:norm=l2,eps=0.5",
    "PGD:norm=l1,eps=2",
    "APGD:eps=0.1",
    "DeepFool",
    "CarliniWagnerL2:steps=30",  # a third of the default cost, for a first result
    "FAB",
    "MinimumNorm:steps=50",  # half of the default, like the next ones
    "MinimumNorm:norm=linf,steps=50",
    "MinimumNorm:norm=l1,steps=50",
    "MinimumNorm:norm=l0,steps=50",
    "Square:eps=0.1,max_queries=200",
    "HopSkipJump:max_queries=300",
)
_ATTACKS = (SUITES["fast"],)
_FILES = ("report.json", "report.html")


def run(args: argparse.Namespace) -> int:
    """Run the evaluation of `args`, write the report, print the table, return the exit status."""
    with nullcontext() if args.model else one_thread():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    check_combination(args)
    _warn_of_missing_extra()
    attacks = _attacks(args)
    bar = shows_progress(args)
    subject = subject_from(args, bar=bar)
    out = _check_out(args.out)
    return _evaluate(subject, attacks, args, out, bar=bar)


def _attacks(args: argparse.Namespace) -> list[Any]:
    """Create the attacks of the arguments; equal ones, such as --suite --attack all, run once."""
    default, default_eps = (_ATTACKS, ()) if args.model else (_DIGITS_ATTACKS, EVALUATE_DIGITS_EPS)
    suite = [SUITES[args.suite]] if args.suite else []
    specs = [*suite, *(args.attack or ())] or default
    return list(dict.fromkeys(attacks_from(specs, args.eps or (), args.seed, default_eps)))


def _warn_of_missing_extra() -> None:
    """Warn before the work if the page cannot be drawn after it."""
    try:
        for module in ("jinja2", "matplotlib"):
            require(module, extra="report", needed_by="report.html")
    except ImportError as error:
        warn(f"the report is written as report.json alone. {error}")


def _check_out(folder: str) -> Path:
    """Create and return the output folder, so that a wrong path fails before the work."""
    out = writable(Path(folder))
    for name in _FILES:
        writable_file(out / name)
    return out


def _evaluate(
    subject: Subject,
    attacks: list[Any],
    args: argparse.Namespace,
    out: Path,
    *,
    bar: bool,
) -> int:
    report: Report | None = None
    interrupt: KeyboardInterrupt | None = None
    failure: UsageError | None = None
    stream = evaluate_stream(
        subject.model,
        subject.data.x,
        subject.data.y,
        attacks=attacks,
        batch_size=args.batch_size,
        device=subject.device,
        progress=bar,
    )
    try:
        for report in stream:  # noqa: B007
            pass
    except KeyboardInterrupt as error:
        interrupt = error
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        failure = UsageError(f"the evaluation failed: {reason(error)}")
        failure.__cause__ = error
    if report is not None:
        args.outputs.expect(*(out / name for name in _FILES))
        _deliver(replace(report, about=subject.about), out, quiet=args.quiet)
    if failure is not None:
        raise failure
    if report is None and interrupt is not None:
        raise interrupt
    return 0 if interrupt is None else exit_status(interrupt)


def _deliver(report: Report, out: Path, *, quiet: bool) -> None:
    """Save the report, then print it; a report that cannot be saved is printed in any case."""
    try:
        written = _saved(report, out)
    except OSError as error:
        show(str(report))
        raise UsageError(f"--out: cannot write to {out}: {reason(error)}") from error
    if not quiet:
        show(f"{report}\n\nsaved {' and '.join(map(str, written))}")


def _saved(report: Report, out: Path) -> tuple[Path, ...]:
    """Save the report, without the page if it cannot be drawn; return the paths of the files.

    The page of an earlier run is then removed, since it would not belong to the new report.json.
    """
    try:
        return report.save(out)
    except ImportError:  # report.json is written first
        (out / "report.html").unlink(missing_ok=True)
        return (out / "report.json",)
