"""Text on standard output, which may be closed, full, or unable to show a character."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec

from advkit.cli.errors import UsageError, one_line, reason
from advkit.core.progress import is_terminal


def warn(sentence: object) -> None:
    """Print a warning on standard error, in one line."""
    print(f"advkit: warning: {one_line(str(sentence))}", file=sys.stderr)  # noqa: T201


def shows_progress(args: argparse.Namespace) -> bool:
    """Return whether the status of an evaluation is shown.

    Without a terminal it is written as plain lines, which need no package. A terminal shows it by
    tqdm, and nothing without tqdm.
    """
    return not args.quiet and (not is_terminal(sys.stderr) or _has_tqdm())


def shows_bar(args: argparse.Namespace) -> bool:
    """Return whether a progress bar is wanted, seen by anyone, and installed."""
    return not args.quiet and is_terminal(sys.stderr) and _has_tqdm()


def _has_tqdm() -> bool:
    return find_spec("tqdm") is not None


def show(text: str) -> None:
    """Print `text` at once; characters that the encoding lacks are escaped.

    The text is flushed, so that an error belongs to this call and not to the end of the process.

    Raises:
        BrokenPipeError: the reader has closed the pipe.
        UsageError: standard output cannot be written, for example on a full device.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, flush=True)  # noqa: T201 - this is the command line
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"standard output cannot be written: {reason(error)}") from error
