"""Reports of `advkit evaluate` and `advkit merge`: their files and their text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from advkit.cli.errors import GATE_FAILED, UsageError, one_line, reason
from advkit.cli.gates import Gating, gated, write_files
from advkit.cli.outputs import listed
from advkit.cli.printing import show, warn
from advkit.cli.subject import writable, writable_file
from advkit.core.extras import require
from advkit.eval import Report
from advkit.eval.page.render import NEEDED
from advkit.eval.robustness.report import FILES


def warn_of_missing_extra() -> None:
    """Warn before the work if the page cannot be drawn after it."""
    try:
        for module in NEEDED:
            require(module, extra="report", needed_by="report.html")
    except ImportError as error:
        warn(f"the report is written without report.html. {error}")


def check_out(folder: str) -> Path:
    """Create and return the output folder, so that a wrong path fails before the work.

    Raises:
        UsageError: a report cannot be written to it.
    """
    out = writable(Path(folder))
    for name in FILES:
        writable_file(out / name)
    return out


def deliver(report: Report, out: Path, gating: Gating, args: argparse.Namespace) -> int:
    """Save the report and the files about its gates, print it, and return the exit status.

    A report that cannot be saved is printed in any case. The status is 1 if a gate failed, with a
    line on standard error that says why.

    Raises:
        UsageError: a file or standard output cannot be written, or a gate cannot be tested.
    """
    report, failure = gated(report, gating)
    args.outputs.expect(*(out / name for name in FILES), *gating.files)
    try:
        written = _saved(report, out)
    except OSError as error:
        show(str(report))
        raise UsageError(f"--out: cannot write to {out}: {reason(error)}") from error
    more, unwritten = write_files(report, gating)
    if not args.quiet:
        show(f"{report}\n\nsaved {listed([*written, *more])}")
    for gate in report.gates:
        if not gate.passed:
            line = one_line(f"{gate.name}: {gate.message}")
            print(f"advkit {args.command}: gate failed: {line}", file=sys.stderr)  # noqa: T201
    for late in (failure, unwritten):
        if late is not None:
            raise late
    return 0 if report.passed else GATE_FAILED


def _saved(report: Report, out: Path) -> tuple[Path, ...]:
    """Save the report, without the page if it cannot be drawn; return the paths of the files.

    The page of an earlier run is then removed, since it would not belong to the new report.json.
    """
    try:
        return report.save(out)
    except ImportError:  # the other files are written first
        (out / FILES[-1]).unlink(missing_ok=True)
        return tuple(out / name for name in FILES[:-1])
