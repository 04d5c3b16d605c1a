"""A progress bar on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from advkit.core.extras import require


@contextmanager
def progress_bar(label: str, total: int | None, show: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error if `show`, and give a function that advances it.

    Raises:
        ImportError: `show` is true and tqdm is missing. The message names the extra with it.
    """
    if not show:
        yield lambda _: None
        return
    tqdm = require("tqdm.auto", extra="report", needed_by="progress").tqdm
    with tqdm(total=total, desc=label) as bar:

        def advance(amount: int) -> None:
            bar.update(amount)

        yield advance
