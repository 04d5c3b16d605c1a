"""The command `advkit`, also run as `python -m advkit`."""

import os
import signal
import sys
from typing import Any, NoReturn

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


def run() -> NoReturn:
    """Run the command and exit.

    Ctrl-C, SIGTERM and SIGHUP end it at any moment with one line, and with a status of 128 plus the
    number of the signal. What is finished is saved.
    """
    if sys.stderr is None:  # closed by the caller
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the end of the process
    _on_signals(_leave)
    try:
        status = _status()
    except SystemExit as end:  # of the parser: --help, --version and errors
        status = end.code
    finally:
        _on_signals(signal.SIG_DFL)  # from here on there is no result to save
    status = _flushed(status)
    # Python ends with SIGINT, whatever the status, if a KeyboardInterrupt has passed through `exec`
    # of a string, as in dataclasses, even if it was caught. Another such `exec` makes it forget.
    exec("")
    sys.exit(status)


def _status() -> Any:
    """Run the command and return its exit status."""
    from advkit.cli.errors import exit_status
    from advkit.cli.main import command

    run_command = command()  # imports torch, which takes seconds
    try:
        _on_signals(_interrupt)
        return run_command()
    except KeyboardInterrupt as interrupt:  # outside of what the command itself handles
        _print_interrupted()
        return exit_status(interrupt)


def _on_signals(handler: Any) -> None:
    """Set the handler of the signals, except those that the caller ignores, as `nohup` does."""
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _interrupt(number: int, _: object) -> NoReturn:
    raise KeyboardInterrupt(number)


def _leave(number: int, _: object) -> NoReturn:
    """End the process at once, since an import may catch a KeyboardInterrupt or change it."""
    _print_interrupted()
    os._exit(128 + number)


def _print_interrupted() -> None:
    os.write(2, b"advkit: interrupted\n")


def _flushed(status: Any) -> Any:
    """Flush standard output, and return `status`, or that of the error if there is none so far."""
    from advkit.cli.errors import BAD_INPUT, BROKEN_PIPE

    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # the interpreter flushes once more at the end, and would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return status or (BROKEN_PIPE if isinstance(error, BrokenPipeError) else BAD_INPUT)
    return status


if __name__ == "__main__":
    run()
