"""Executors for tests."""

import random
import threading
import time
from concurrent.futures import Executor, Future


class Shuffled(Executor):
    """One thread that takes the submitted calls in a random order, and counts them."""

    def __init__(self, seed=0, *, workers=3, delay=0.002):
        self.num_workers = workers
        self.most = 0  # calls that were in flight at once
        self._random, self._delay = random.Random(seed), delay
        self._pending, self._changed, self._ended = [], threading.Condition(), False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        with self._changed:
            self._pending.append((future, lambda: fn(*args, **kwargs)))
            self.most = max(self.most, len(self._pending))
            self._changed.notify()
        return future

    def shutdown(self, wait=True, *, cancel_futures=False):
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def _run(self):
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._ended)
                if not self._pending:
                    return
            time.sleep(self._delay)  # until there are several
            with self._changed:
                future, call = self._pending.pop(self._random.randrange(len(self._pending)))
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - it is for the caller
                future.set_exception(error)
