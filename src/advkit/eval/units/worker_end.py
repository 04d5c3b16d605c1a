"""The end of a worker of a process pool: with the process that created it."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading


@functools.cache
def end_with_parent(pid: int) -> None:
    """End this process when its parent has ended, if that is the process `pid`.

    Workers of a `ProcessPoolExecutor` whose process is killed wait for work forever and keep their
    memory.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid == pid:

        def wait() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=wait, name="advkit end with parent", daemon=True).start()
