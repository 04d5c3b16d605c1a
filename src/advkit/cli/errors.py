"""Errors and exit statuses of the command line."""

from __future__ import annotations

import re

GATE_FAILED = 1
BAD_INPUT = 2  # or a file that cannot be written
UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
BROKEN_PIPE = 141  # as a shell reports a process that SIGPIPE has ended
_SIGINT = 2

# Arguments of functions that are options, too.
_OPTIONS = r"`(bounds|layout|mean|std|eps|store|shard|fail_under|against)`"
# Arguments with values in messages, and the options for them.
_VALUES = {"shard=(number, count)": "--shard I/N", "identity='...'": "--identity TEXT"}
_MAX_LENGTH = 1200  # of a message, in characters; more come from the user's text or other code
_MAX_REASON = 500  # of the message of an exception from other code, in characters


class UsageError(Exception):
    """Error in the user's arguments: one line that names the argument and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str, length: int = _MAX_LENGTH) -> str:
    """Return `text` without line breaks, cut in the middle if it is longer than `length`."""
    text = " ".join(text.split())
    half = length // 2
    return text if len(text) <= length else f"{text[:half]} ... {text[-half:]}"


def reason(error: BaseException) -> str:
    """Return the type and message of an exception from other code, in one line."""
    try:
        text = one_line(str(error), _MAX_REASON)
    except Exception:  # noqa: BLE001 - the method is code of the user
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """Return 128 plus the number of the signal behind an interrupt: 130 for Ctrl-C."""
    number = interrupt.args[0] if interrupt.args else _SIGINT
    return 128 + (number if isinstance(number, int) else _SIGINT)


def with_options(error: Exception | str) -> str:
    """Return the message of `error` with the names of options in place of arguments."""
    text = str(error)
    for argument, option in _VALUES.items():
        text = text.replace(argument, option)
    return re.sub(_OPTIONS, lambda found: f"--{found[1].replace('_', '-')}", text)
