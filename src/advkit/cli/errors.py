"""Errors of the command line."""


class UsageError(Exception):
    """Something that the user gave is wrong: one line that names the argument and the way out."""


def reason(error: BaseException) -> str:
    """An exception of someone else's code in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
