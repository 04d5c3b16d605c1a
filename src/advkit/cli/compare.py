"""`advkit compare`: whether a net has become less robust, from two reports."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from advkit.cli.errors import GATE_FAILED, UsageError, one_line, reason
from advkit.cli.gates import files_of, loaded
from advkit.cli.outputs import check_apart, listed
from advkit.cli.printing import show
from advkit.cli.subject import writable_file
from advkit.eval import Comparison, compare


def run(args: argparse.Namespace) -> int:
    """Compare the reports of `args`, print the comparison, and return the exit status."""
    out = None if args.out is None else Path(args.out)
    if out is not None:
        check_apart([("--out", out)], [*files_of(args.old, "OLD"), *files_of(args.new, "NEW")])
        writable_file(out)
    comparison = _compared(args)
    if out is not None:
        args.outputs.expect(out)
        _save(comparison, out)
    if not args.quiet:
        saved = "" if out is None else f"\n\nsaved {listed([out])}"
        show(f"{comparison}{saved}")
    if not comparison.worse:
        return 0
    line = one_line(comparison.verdict.removeprefix("Verdict: "))
    print(f"advkit compare: {line}", file=sys.stderr)  # noqa: T201
    return GATE_FAILED


def _compared(args: argparse.Namespace) -> Comparison:
    old, new = loaded(args.old, "OLD"), loaded(args.new, "NEW")
    try:
        return compare(old, new)
    except ValueError as error:
        raise UsageError(str(error).replace("`old`", "OLD").replace("`new`", "NEW")) from error


def _save(comparison: Comparison, out: Path) -> None:
    try:
        comparison.save_json(out)
    except OSError as error:
        raise UsageError(f"--out: cannot write to {out}: {reason(error)}") from error
