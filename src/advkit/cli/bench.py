"""`advkit bench`: a comparison of attacks on a net by success and cost."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from advkit.cli.defaults import BENCH_DIGITS_L2, BENCH_DIGITS_LINF
from advkit.cli.demo import one_thread
from advkit.cli.errors import UsageError, exit_status, reason
from advkit.cli.printing import show, shows_bar
from advkit.cli.specs import attacks_from, budget_attacks, minimum_norm_attacks
from advkit.cli.subject import Subject, check_combination, result_file, subject_from
from advkit.eval import Benchmark, benchmark

_DIGITS_ATTACKS = (
    "FGSM",
    "BIM",
    "PGD",
    "PGD:restarts=3",
    "Square:max_queries=200",
    f"FGM:norm=l2,eps={BENCH_DIGITS_L2}",
    f"PGD:norm=l2,eps={BENCH_DIGITS_L2}",
    "DeepFool",
    "DeepFool:norm=linf",
    "FAB",
    "FAB:norm=linf",
    "CarliniWagnerL2:steps=50",
    "JSMA",
    "HopSkipJump:max_queries=200",
)
_ATTACKS = ("FGSM", "BIM", "PGD", "DeepFool:norm=linf", "FAB:norm=linf")
# Left out with --norm: a cascade that takes minutes, and the baseline of reports.
_LEFT_OUT = ("AutoAttack", "RandomNoise")
_DIGITS_EPS = {"linf": (BENCH_DIGITS_LINF,), "l2": (BENCH_DIGITS_L2,)}
# Attacks whose defaults would take most of the time of a comparison.
_CHEAPER = {
    "Square": "Square:max_queries=200",
    "CarliniWagnerL2": "CarliniWagnerL2:steps=50",
    "HopSkipJump": "HopSkipJump:max_queries=200",
}


def run(args: argparse.Namespace) -> int:
    """Run the benchmark of `args`, write and print its table, and return the exit status."""
    with nullcontext() if args.model else one_thread():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    check_combination(args)
    if args.quiet and not args.out:
        raise UsageError("--out must be given with --quiet. Otherwise the result is lost.")
    attacks = _attacks(args)
    bar = shows_bar(args)
    subject = subject_from(args, bar=bar)
    out = result_file(args)
    result, error = _benchmark(subject, attacks, args, bar=bar)
    if result is not None:
        if out is not None:
            args.outputs.expect(out)
        _deliver(replace(result, about=subject.about), out, quiet=args.quiet)
    if isinstance(error, KeyboardInterrupt) and result is not None:
        return exit_status(error)
    if error is not None:
        raise error
    return 0


def _attacks(args: argparse.Namespace) -> list[Any]:
    """Create the attacks of the arguments, or the default ones."""
    eps, norm = args.eps or (), args.norm
    default_eps: tuple[float, ...] = () if args.model else _DIGITS_EPS.get(norm or "linf", ())
    if args.attack:
        specs = args.attack
    elif norm is None:
        specs = _ATTACKS if args.model else _DIGITS_ATTACKS
    else:
        specs = _attacks_in(norm, with_budget=bool(eps or default_eps))
    return attacks_from(specs, eps, args.seed, default_eps, norm)


def _attacks_in(norm: str, *, with_budget: bool) -> list[str]:
    """Return the attacks to compare in `norm`; without a budget only minimum-norm attacks."""
    names = minimum_norm_attacks(norm)
    if with_budget:
        names += [name for name in budget_attacks(norm) if name not in _LEFT_OUT]
    return [_CHEAPER.get(name, name) for name in names]


def _benchmark(
    subject: Subject, attacks: list[Any], args: argparse.Namespace, *, bar: bool
) -> tuple[Benchmark | None, KeyboardInterrupt | UsageError | None]:
    """Return the result so far, if there is one, and the error that ended the benchmark."""
    try:
        result = benchmark(
            subject.model,
            subject.data,
            attacks=attacks,
            batch_size=args.batch_size,
            rounds=args.rounds,
            device=subject.device,
            progress=bar,
        )
    except KeyboardInterrupt as interrupt:
        return getattr(interrupt, "benchmark", None), interrupt
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        failure = UsageError(f"the benchmark failed: {reason(error)}")
        failure.__cause__ = error
        return getattr(error, "benchmark", None), failure
    return result, None


def _deliver(result: Benchmark, out: Path | None, *, quiet: bool) -> None:
    """Save the result, then print it; a result that cannot be saved is printed in any case."""
    if out is None:
        show(str(result))
        return
    try:
        result.save_json(out)
    except OSError as error:
        show(str(result))
        raise UsageError(f"--out: cannot write {out}: {reason(error)}") from error
    if not quiet:
        show(f"{result}\n\nsaved {out}")
