"""Threads that take turns as often as Python can, and whose errors are raised."""

import sys
import threading
from contextlib import contextmanager


@contextmanager
def switching():
    """Let threads take turns every microsecond."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def in_threads(jobs):
    """Run each of `jobs` in a thread of its own, all at once; raise the first error of one."""
    jobs, errors = list(jobs), []
    start = threading.Barrier(len(jobs))

    def run(job):
        start.wait()
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
