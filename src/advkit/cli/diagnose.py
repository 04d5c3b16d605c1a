"""`advkit diagnose`: reasons to doubt the robust accuracy of a net."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from advkit.attacks import probes
from advkit.cli.defaults import DIAGNOSE_DIGITS_EPS, SUITES
from advkit.cli.demo import one_thread
from advkit.cli.errors import UsageError, reason
from advkit.cli.printing import show, shows_bar, shows_progress
from advkit.cli.specs import attacks_from
from advkit.cli.subject import Subject, check_combination, result_file, subject_from
from advkit.eval import Diagnosis, Report, diagnose, evaluate


def run(args: argparse.Namespace) -> int:
    """Run the diagnosis of `args`, save and print it, and return the exit status."""
    with nullcontext() if args.model else one_thread():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    check_combination(args)
    if args.quiet and not args.out:
        raise UsageError("--out must be given with --quiet. Otherwise the result is lost.")
    if args.unit != "feature" and args.norm != "l0":
        raise UsageError(f"--unit must be given with --norm l0, got --norm {args.norm}.")
    eps = _eps(args)
    attacks = _attacks(args, eps)
    subject = subject_from(args, bar=shows_bar(args))
    out = result_file(args)
    try:
        result = _diagnosis(subject, attacks, eps, args)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UsageError(f"the diagnosis failed: {reason(error)}") from error
    _deliver(result, out, args)
    return 0


def _eps(args: argparse.Namespace) -> float:
    """Return the budget, which has a default for the digits in linf only."""
    if args.eps is not None:
        return float(args.eps)
    if args.model or args.norm != "linf":
        raise UsageError("--eps must be given. Otherwise the budget is unknown.")
    return DIAGNOSE_DIGITS_EPS


def _attacks(args: argparse.Namespace, eps: float) -> list[Any]:
    """Create the attacks whose figure is diagnosed; none for that of the probes."""
    specs = [*([_suite(args)] if args.suite else []), *(args.attack or ())]
    return attacks_from(specs, (), args.seed, (eps,), args.norm) if specs else []


def _suite(args: argparse.Namespace) -> str:
    """Return the Suite of the arguments in the notation of --attack."""
    spec = SUITES[args.suite]
    if args.unit == "feature":
        return spec
    return f"{spec}{',' if ':' in spec else ':'}unit={args.unit}"


def _diagnosis(
    subject: Subject, attacks: list[Any], eps: float, args: argparse.Namespace
) -> Diagnosis:
    """Evaluate the attacks, if there are any, and diagnose their figure."""
    bounds = tuple(args.bounds or (0.0, 1.0))
    chosen = probes(eps, args.norm, unit=args.unit, bounds=bounds, seed=args.seed)
    for role in args.without or ():
        chosen.pop(role, None)
    options: dict[str, Any] = {
        "batch_size": args.batch_size,
        "device": subject.device,
        "progress": shows_progress(args),
    }
    report: Report | None = None
    if attacks:
        report = evaluate(subject.model, subject.data, attacks=attacks, **options)
    return diagnose(subject.model, subject.data, probes=chosen, report=report, **options)


def _deliver(result: Diagnosis, out: Path | None, args: argparse.Namespace) -> None:
    """Save the result, then print it; a result that cannot be saved is printed in any case."""
    if out is None:
        show(str(result))
        return
    args.outputs.expect(out)
    try:
        result.save_json(out)
    except OSError as error:
        show(str(result))
        raise UsageError(f"--out: cannot write {out}: {reason(error)}") from error
    if not args.quiet:
        show(f"{result}\n\nsaved {out}")
