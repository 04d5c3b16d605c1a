"""The command `advkit`, also run as `python -m advkit`."""

import os
import signal
import sys
from typing import Any, NoReturn

_INTERRUPTED = 130  # status that a shell reports after Ctrl-C


def run() -> NoReturn:
    """Run the command and exit; Ctrl-C ends it with one line and status 130 at any moment."""
    _on_interrupt(_leave)
    from advkit.cli import main  # imports torch, which takes seconds

    _on_interrupt(signal.default_int_handler)
    try:
        status = main()
    except KeyboardInterrupt:  # `main` does not handle it in its parser and its last message
        status = _INTERRUPTED
        _print_interrupted()
    finally:
        _on_interrupt(signal.SIG_DFL)  # from here on there is no result to save
    sys.exit(status)


def _on_interrupt(handler: Any) -> None:
    """Set the handler of Ctrl-C, unless the caller ignores it, as `nohup` and `&` do."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def _leave(*_: object) -> NoReturn:
    """End the process at once, since an import may catch a KeyboardInterrupt or change it."""
    _print_interrupted()
    os._exit(_INTERRUPTED)


def _print_interrupted() -> None:
    os.write(2, b"advkit: interrupted\n")


if __name__ == "__main__":
    run()
