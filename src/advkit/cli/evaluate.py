"""`advkit evaluate`: a report on the robustness of a net."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

from advkit.cli.defaults import CHUNK_SIZE, EVALUATE_DIGITS_EPS, SUITES
from advkit.cli.demo import one_thread
from advkit.cli.errors import UsageError, exit_status, reason, with_options
from advkit.cli.gates import check_number, gating_from, no_gates
from advkit.cli.printing import show, shows_bar, shows_progress
from advkit.cli.repeat import repeating_command
from advkit.cli.reports import check_out, deliver, warn_of_missing_extra
from advkit.cli.specs import attacks_from
from advkit.cli.stores import shard_from, shard_line, store_error
from advkit.cli.subject import Subject, check_combination, subject_from
from advkit.eval import Report, evaluate_stream
from advkit.eval.budgets import distinct_budgets, format_budget
from advkit.eval.store.shards import Shard

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


def run(args: argparse.Namespace) -> int:
    """Run the evaluation of `args`, write the report, print the table, return the exit status."""
    with nullcontext() if args.model else one_thread():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    check_combination(args)
    shard = shard_from(args)
    alone = shard.count == 1  # the reports of several shards would overwrite each other
    if alone:
        warn_of_missing_extra()
    else:
        no_gates(args)
    attacks = _attacks(args)
    gating = gating_from(args, [format_budget(*budget) for budget in distinct_budgets(attacks)])
    subject = subject_from(args, bar=shows_bar(args))
    check_number(gating, len(subject.data))
    out = check_out(args.out) if alone else None
    report, error = _evaluate(subject, attacks, args, shard)
    status = 0
    if report is not None and out is not None:
        status = deliver(report, out, gating, args)
    elif report is not None and not args.quiet:
        show(shard_line(shard, report, len(subject.data), args.store))
    if isinstance(error, KeyboardInterrupt) and report is not None:
        return exit_status(error)
    if error is not None:
        raise error
    return status


def _attacks(args: argparse.Namespace) -> list[Any]:
    """Create the attacks of the arguments; equal ones, such as --suite --attack all, run once."""
    default, default_eps = (_ATTACKS, ()) if args.model else (_DIGITS_ATTACKS, EVALUATE_DIGITS_EPS)
    suite = [SUITES[args.suite]] if args.suite else []
    specs = [*suite, *(args.attack or ())] or default
    return list(dict.fromkeys(attacks_from(specs, args.eps or (), args.seed, default_eps)))


def _evaluate(
    subject: Subject, attacks: list[Any], args: argparse.Namespace, shard: Shard
) -> tuple[Report | None, KeyboardInterrupt | UsageError | None]:
    """Return the report so far, if there is one, and the error that ended the evaluation."""
    report: Report | None = None
    try:
        stream = evaluate_stream(
            subject.model,
            subject.data,
            attacks=attacks,
            batch_size=args.batch_size,
            device=subject.device,
            progress=shows_progress(args),
            store=args.store,
            shard=None if args.store is None else (shard.number, shard.count),
            chunk_size=args.chunk_size or CHUNK_SIZE,
            identity=args.identity,
            about=subject.about,
            class_names=subject.class_names,
            command=repeating_command(args),
        )
        args.outputs.keep(args.store)
        for report in stream:  # noqa: B007
            pass
    except KeyboardInterrupt as interrupt:
        return report, interrupt
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        return report, _failure(error)
    return report, None


def _failure(error: BaseException) -> UsageError:
    """Return the error for the user: about the store, or about the evaluation."""
    message = store_error(error)
    failure = UsageError(
        f"the evaluation failed: {reason(error)}" if message is None else with_options(message)
    )
    failure.__cause__ = error
    return failure
