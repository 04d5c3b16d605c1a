"""The command `advkit`, also run as `python -m advkit`."""

import os
import signal
import sys
from typing import Any, NoReturn

_INTERRUPTED = 130  # what a shell reports for a process that Ctrl-C ended


def run() -> NoReturn:
    """Run the command and exit. Ctrl-C ends it with one line and status 130, at any moment."""
    _on_interrupt(_leave)
    from advkit.cli import main  # imports torch, which takes seconds

    _on_interrupt(signal.default_int_handler)
    try:
        status = main()
    except KeyboardInterrupt:  # outside of what `main` handles: its parser and its last message
        status = _INTERRUPTED
        _say_so()
    finally:
        _on_interrupt(signal.SIG_DFL)  # from here on nothing is left to save
    sys.exit(status)


def _on_interrupt(handler: Any) -> None:
    """Set what Ctrl-C does, unless the caller has it ignored, as `nohup` and `&` do."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def _leave(*_: object) -> NoReturn:
    """End the process at once: an import may swallow a KeyboardInterrupt or change it."""
    _say_so()
    os._exit(_INTERRUPTED)


def _say_so() -> None:
    os.write(2, b"advkit: interrupted\n")


if __name__ == "__main__":
    run()
