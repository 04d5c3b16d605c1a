"""Errors of the command line."""

import re

_OPTIONS = r"`(bounds|layout|mean|std)`"  # arguments of functions that are options of the command


class UsageError(Exception):
    """Error in the user's arguments: one line that names the argument and the remedy."""


def reason(error: BaseException) -> str:
    """Return the type and message of an exception from other code, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def with_options(error: ValueError | OSError) -> str:
    """Return the message of `error` with the names of options in place of arguments."""
    return re.sub(_OPTIONS, r"--\1", str(error))
