"""Errors and exit statuses of the command line."""

import re

BAD_INPUT = 2  # or a file that cannot be written
UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
BROKEN_PIPE = 141  # as a shell reports a process that SIGPIPE has ended
_SIGINT = 2

_OPTIONS = r"`(bounds|layout|mean|std)`"  # arguments of functions that are options of the command


class UsageError(Exception):
    """Error in the user's arguments: one line that names the argument and the remedy."""


def reason(error: BaseException) -> str:
    """Return the type and message of an exception from other code, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """Return 128 plus the number of the signal behind an interrupt: 130 for Ctrl-C."""
    number = interrupt.args[0] if interrupt.args else _SIGINT
    return 128 + (number if isinstance(number, int) else _SIGINT)


def with_options(error: ValueError | OSError) -> str:
    """Return the message of `error` with the names of options in place of arguments."""
    return re.sub(_OPTIONS, r"--\1", str(error))
