"""Gates of `advkit evaluate` and `advkit merge`: conditions on the report, and files about them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from advkit.cli.errors import UsageError, reason, with_options
from advkit.cli.outputs import check_apart
from advkit.cli.subject import input_files, writable_file
from advkit.eval import Report, gate, load_report
from advkit.eval.gates.gate import check_baseline, no_common_budget
from advkit.eval.gates.thresholds import thresholds
from advkit.eval.robustness.report import FILES
from advkit.integrations.junit import save_junit
from advkit.integrations.markdown import save_markdown

_FILES = ("junit", "markdown")
_OPTIONS = ("fail_under", "against", *_FILES)


class Gating(NamedTuple):
    """Conditions on a report, and the files that tell whether it meets them.

    Attributes:
        fail_under: least robust accuracy, for the only budget or by budget; `None` for none.
        against: older report, `None` for none.
        junit: JUnit file to write, `None` for none.
        markdown: Markdown file to write, `None` for none.
    """

    fail_under: float | Mapping[str, float] | None
    against: Report | None
    junit: Path | None
    markdown: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that are written in addition to the report."""
        return tuple(path for path in (self.junit, self.markdown) if path is not None)


def gating_from(args: argparse.Namespace, budgets: Sequence[str]) -> Gating:
    """Return the conditions of `args`, checked before the work as far as they can be.

    Args:
        args: parsed arguments.
        budgets: the budgets that the report will have, as text.

    Raises:
        UsageError: a condition is about another budget, the older report cannot be loaded, or a
            file cannot be written.
    """
    fail_under = _fail_under(args.fail_under)
    if isinstance(fail_under, float) and len(budgets) > 1:
        raise UsageError(
            f"--fail-under must name its budget if there are several, got {fail_under:g} for "
            f'{"; ".join(budgets)}. Write --fail-under "{budgets[0]}={fail_under:g}".'
        )
    if fail_under is not None:
        _named(thresholds, fail_under, budgets)
    against = None if args.against is None else _baseline(args, budgets)
    new = [(f"--{name}", Path(path)) for name in _FILES if (path := getattr(args, name))]
    check_apart(new, _files_to_keep(args), args.store)
    return Gating(fail_under, against, _file(args, "junit"), _file(args, "markdown"))


def _files_to_keep(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Yield option and path of each file of the report, the older report and the inputs."""
    yield from (("--out", Path(args.out) / name) for name in FILES)
    if args.against is not None:
        yield from files_of(args.against, "--against")
    yield from input_files(args)


def files_of(report: str, argument: str) -> Iterator[tuple[str, Path]]:
    """Yield the argument and the path of each file of a saved report."""
    folder = Path(report) if os.path.isdir(report) else Path(report).parent
    yield from ((argument, folder / name) for name in FILES)


def check_number(gating: Gating, inputs: int) -> None:
    """Raise if the older report is on another number of images than will be evaluated.

    Raises:
        UsageError: it is.
    """
    if gating.against is not None and len(gating.against.inputs) != inputs:
        raise UsageError(
            f"--against must be a report on the same images, {inputs:,}, got one on "
            f"{len(gating.against.inputs):,}."
        )


def no_gates(args: argparse.Namespace) -> None:
    """Raise if a shard, which writes no report, is given gates.

    Raises:
        UsageError: an option of gates is given.
    """
    for name in _OPTIONS:
        if getattr(args, name) is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} must be omitted with a share of the inputs, which "
                "has no report. Give it to advkit merge."
            )


def gated(report: Report, gating: Gating) -> tuple[Report, UsageError | None]:
    """Return the report with its gates, and the error of one that cannot be tested.

    An older report on other data is such an error. The other gates are in the report.
    """
    if gating.fail_under is None and gating.against is None:
        return report, None
    try:
        return gate(report, fail_under=gating.fail_under, against=gating.against), None
    except ValueError as error:
        failure = UsageError(with_options(error))
        failure.__cause__ = error
    if gating.fail_under is not None and gating.against is not None:
        return gated(report, gating._replace(against=None))[0], failure
    return report, failure


def write_files(report: Report, gating: Gating) -> tuple[list[Path], UsageError | None]:
    """Write the files of the gates; return those written, and the error of one that cannot be."""
    written: list[Path] = []
    failure: UsageError | None = None
    for option, path in (("--junit", gating.junit), ("--markdown", gating.markdown)):
        try:
            if path is not None and option == "--junit":
                written.append(save_junit(report, path))
            elif path is not None:
                written.append(save_markdown(report, path, append=_is_step_summary(path)))
        except (OSError, ValueError) as error:
            failure = UsageError(f"{option}: cannot write to {path}: {reason(error)}")
            failure.__cause__ = error
    return written, failure


def loaded(folder: str, argument: str) -> Report:
    """Load a report, and name the argument of the command in errors.

    Raises:
        UsageError: it cannot be loaded.
    """
    try:
        return load_report(folder)
    except (OSError, ValueError) as error:
        text = str(error)
        named = text.replace("`path`", argument) if "`path`" in text else f"{argument}: {text}"
        raise UsageError(named) from error


def _baseline(args: argparse.Namespace, budgets: Sequence[str]) -> Report:
    """Load the older report and check it.

    Raises:
        UsageError: it cannot be loaded, is not complete, has none of the `budgets`, or would be
            replaced by the new report, so that the next run compares with a worse one.
    """
    report = loaded(args.against, "--against")
    folder = args.against if os.path.isdir(args.against) else os.path.dirname(args.against)
    if os.path.realpath(folder) == os.path.realpath(args.out):
        raise UsageError(
            f"--out must be another folder than that of --against, got {args.out} for both. "
            "Otherwise the new report replaces the older one, also if it is worse."
        )
    _named(check_baseline, report)
    if not set(budgets) & set(report.worst_cases):
        raise UsageError(with_options(no_common_budget(report.worst_cases, budgets)))
    return report


def _named(check: Callable[..., object], *values: object) -> None:
    """Call a check, and name the options in its error."""
    try:
        check(*values)
    except ValueError as error:
        raise UsageError(with_options(error)) from error


def _fail_under(given: Sequence[tuple[str, float]] | None) -> float | dict[str, float] | None:
    """Return what `gate` takes: a share alone, or shares by budget.

    Raises:
        UsageError: a budget is given twice, or a share without a budget next to another one.
    """
    if given is None:
        return None
    found = dict(given)
    if len(found) < len(given) or ("" in found and len(found) > 1):
        raise UsageError(
            '--fail-under must name each budget once, such as --fail-under "linf 8/255=0.45", or '
            f"be given once for the only budget, got it {len(given)} times."
        )
    return found.get("", found)


def _file(args: argparse.Namespace, name: str) -> Path | None:
    given = getattr(args, name)
    return None if given is None else writable_file(Path(given), f"--{name}")


def _is_step_summary(path: Path) -> bool:
    """Return whether `path` is the summary of a step of GitHub Actions, which steps append to."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    return bool(summary) and os.path.realpath(path) == os.path.realpath(str(summary))
