"""`advkit merge`: the report of an evaluation from its store, without its net and data."""

from __future__ import annotations

import argparse

from advkit.cli.errors import UsageError, reason
from advkit.cli.gates import gating_from
from advkit.cli.reports import check_out, deliver, warn_of_missing_extra
from advkit.cli.stores import store_error
from advkit.eval import Report, merge


def run(args: argparse.Namespace) -> int:
    """Make the report of the store of `args`, write and print it, and return the exit status."""
    warn_of_missing_extra()
    report = _merged(args.store)
    gating = gating_from(args, list(report.worst_cases))
    return deliver(report, check_out(args.out), gating, args)


def _merged(store: str) -> Report:
    """Return the report of a store, and name the argument of the command in errors."""
    try:
        return merge(store)
    except (OSError, ValueError) as error:
        message = store_error(error) or reason(error)
        raise UsageError(message.replace("`store`", "DIR")) from error
