"""The parser of the command, and its errors: one line on standard error and status 2."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import advkit
from advkit.cli.defaults import (
    BENCH_DIGITS_LINF,
    BENCH_LIMIT,
    DIAGNOSE_DIGITS_EPS,
    NORMS,
    ROLES,
    SUITES,
)
from advkit.cli.errors import (
    BAD_INPUT,
    BROKEN_PIPE,
    UNEXPECTED,
    UsageError,
    exit_status,
    one_line,
    reason,
)
from advkit.cli.help_texts import (
    BENCH_DESCRIPTION,
    BENCH_EXAMPLES,
    COMPARE_DESCRIPTION,
    DIAGNOSE_DESCRIPTION,
    DIAGNOSE_EXAMPLES,
    EVALUATE_EXAMPLES,
    MERGE_DESCRIPTION,
)
from advkit.cli.numbers import count, number
from advkit.cli.options import (
    add_attacks,
    add_gates,
    add_messages,
    add_report_folder,
    add_store,
    add_subject,
    add_work,
)
from advkit.cli.outputs import Outputs
from advkit.cli.printing import warn

_Run = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)}. See {self.prog} --help.\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit status.

    It is 0, 1 if a gate failed or a compared report is worse, 2 for bad input or a file that cannot
    be written, 70 for an unexpected error, 141 for a closed pipe, and 128 plus the number of a
    signal: 129, 130 or 143.
    """
    return command(argv)()


def command(argv: Sequence[str] | None = None) -> Callable[[], int]:
    """Parse the arguments, import what they need, and return the function that runs the command.

    Only a complete command imports torch, which takes seconds: `--help`, `--version` and errors of
    the parser do not.

    Raises:
        SystemExit: the arguments are wrong, or ask for the help or the version.
    """
    args = build_parser().parse_args(argv)
    args.outputs = Outputs()
    try:
        run = args.imported()
    except Exception as error:
        if args.traceback:
            raise
        _report_unexpected(args.command, error)
        return lambda: UNEXPECTED
    return partial(_status_of, run, args)


def _status_of(run: _Run, args: argparse.Namespace) -> int:
    """Run a command, report its error, and return the exit status."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = run(args)
    except UsageError as error:
        if args.traceback:
            raise
        print(f"advkit {args.command}: error: {error}", file=sys.stderr)  # noqa: T201
        return BAD_INPUT
    except BrokenPipeError:
        return BROKEN_PIPE
    except KeyboardInterrupt as interrupt:
        print(f"advkit {args.command}: interrupted, {args.outputs}", file=sys.stderr)  # noqa: T201
        return exit_status(interrupt)
    except Exception as error:
        if args.traceback:
            raise
        _report_unexpected(args.command, error)
        return UNEXPECTED
    return status


def _evaluate() -> _Run:
    from advkit.cli.evaluate import run

    return run


def _merge() -> _Run:
    from advkit.cli.merge import run

    return run


def _compare() -> _Run:
    from advkit.cli.compare import run

    return run


def _diagnose() -> _Run:
    from advkit.cli.diagnose import run

    return run


def _bench() -> _Run:
    from advkit.cli.bench import run

    return run


def _attacks() -> _Run:
    from advkit.cli.listing import run

    return run


def _report_unexpected(command: str, error: Exception) -> None:
    print(  # noqa: T201
        f"advkit {command}: unexpected error: {reason(error)}. --traceback shows where it came "
        "from; please report it.",
        file=sys.stderr,
    )


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    warn(message)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(prog="advkit", description=advkit.__doc__)
    parser.add_argument("--version", action="version", version=f"advkit {advkit.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_evaluate(commands)
    _add_merge(commands)
    _add_compare(commands)
    _add_diagnose(commands)
    _add_bench(commands)
    lister = commands.add_parser("attacks", help="list the attacks with their parameters")
    lister.set_defaults(imported=_attacks, traceback=False)
    return parser


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="attack a net and report how robust it is",
        description="Attack a net and report how robust it is.",
        epilog=EVALUATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_subject(parser)
    add = parser.add_argument
    add_attacks(parser)
    add("--limit", type=count, metavar="N",
        help="attack only the first N images; of a folder, N from all classes")  # fmt: skip
    add("--class-names", metavar="FILE",
        help="text file with the name of each class in a line, for the page (default: the names of "
        "the subfolders of --data)")  # fmt: skip
    add_store(parser)
    add_work(parser)
    add_report_folder(parser)
    add_gates(parser)
    parser.set_defaults(imported=_evaluate)


def _add_merge(commands: Any) -> None:
    parser = commands.add_parser(
        "merge",
        help="make the report of an evaluation from its store",
        description=MERGE_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("store", metavar="DIR", help="folder of `advkit evaluate --store DIR`")
    add_report_folder(parser)
    add_gates(parser)
    add_messages(parser)
    parser.set_defaults(imported=_merge)


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="tell whether a net has become less robust",
        description=COMPARE_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("old", metavar="OLD", help="folder of the report before the change")
    add("new", metavar="NEW", help="folder of the report after it, on the same images")
    add("--out", metavar="FILE.json", help="also save the comparison to FILE.json (default: not)")
    add_messages(parser)
    parser.set_defaults(imported=_compare)


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="compare attacks on a net by success and cost",
        description=BENCH_DESCRIPTION,
        epilog=BENCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_subject(parser)
    add = parser.add_argument
    add("--attack", action="append", metavar="NAME[:key=value,...]",
        help="attack to run, repeatable; all means every attack, without --norm those whose "
        "budget is in units of the inputs (default: FGSM, BIM, PGD and, in linf, DeepFool and "
        "FAB; without --model also Square, FGM, CarliniWagnerL2, JSMA, HopSkipJump, and attacks in "
        "l2)")  # fmt: skip
    add("--norm", choices=NORMS,
        help="norm of the attacks that do not set one; without --attack it selects every "
        "minimum-norm attack with a form in this norm and, with a budget, every budget attack but "
        "AutoAttack and RandomNoise")  # fmt: skip
    add("--eps", action="append", type=number,
        help="perturbation budget in units of the inputs, such as 8/255, repeatable; for attacks "
        "that need a budget and do not set one (default without --model: "
        f"{BENCH_DIGITS_LINF})")  # fmt: skip
    add("--limit", type=count, default=BENCH_LIMIT, metavar="N",
        help="attack only the first N images; of a folder, N from all classes (default: "
        f"{BENCH_LIMIT})")  # fmt: skip
    add("--rounds", type=count, default=3, metavar="N",
        help="how often each attack is timed; passes are medians (default: 3)")  # fmt: skip
    add_work(parser)
    add("--out", metavar="FILE.json", help="also save the results to FILE.json (default: not)")
    parser.set_defaults(imported=_bench)


def _add_diagnose(commands: Any) -> None:
    parser = commands.add_parser(
        "diagnose",
        help="find reasons to doubt a robust accuracy",
        description=DIAGNOSE_DESCRIPTION,
        epilog=DIAGNOSE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_subject(parser)
    add = parser.add_argument
    add("--eps", type=number,
        help="perturbation budget in units of the inputs, such as 8/255 (default without --model: "
        f"{DIAGNOSE_DIGITS_EPS})")  # fmt: skip
    add("--norm", choices=NORMS, default="linf", help="norm of the budget (default: linf)")
    add("--unit", choices=("feature", "pixel"), default="feature",
        help="what --eps counts in l0: features, or pixels of all channels (default: "
        "feature)")  # fmt: skip
    add("--suite", nargs="?", choices=tuple(SUITES), const="fast",
        help="diagnose the figure of Suite: fast, the default, or thorough")  # fmt: skip
    add("--attack", action="append", metavar="NAME[:key=value,...]",
        help="attack whose figure is diagnosed, repeatable")  # fmt: skip
    add("--without", action="append", choices=ROLES, metavar="ROLE",
        help=f"leave out a probe, repeatable: {', '.join(ROLES)}")  # fmt: skip
    add("--limit", type=count, default=BENCH_LIMIT, metavar="N",
        help="use only the first N images; of a folder, N from all classes (default: "
        f"{BENCH_LIMIT})")  # fmt: skip
    add_work(parser)
    add("--out", metavar="FILE.json", help="also save the diagnosis to FILE.json (default: not)")
    parser.set_defaults(imported=_diagnose)
