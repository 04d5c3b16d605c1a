"""Counts under many threads."""

import io
import json
import threading

import torch

from advkit.detectors.guard import Guard
from tests.detectors.stub_detectors import Identity, Second


class Slow(io.StringIO):
    """Writes piece by piece, so that lines of several threads could meet."""

    def write(self, text):
        for i in range(0, len(text), 50):
            super().write(text[i : i + 50])
            threading.Event().wait(1e-5)


def test_counts_are_exact_and_lines_whole_from_many_threads():
    log = Slow()
    rows = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    guard = Guard(Identity(), Second(), threshold=0.5, outputs="logits", log=log)
    alarms = int((rows[:, 1] > 0.5).sum())
    assert 0 < alarms < 5
    guard.predict(rows[:1])  # the net learns its number of classes
    begin = guard.alarms
    threads = [
        threading.Thread(target=lambda: [guard.predict(rows) for _ in range(20)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert guard.counts() == {"requests": 801, "alarms": begin + 160 * alarms}
    assert len([json.loads(line) for line in log.getvalue().splitlines()]) == guard.alarms


def test_a_log_that_hangs_stops_no_counts():
    """A service is observed while its disk hangs."""
    entered, release = threading.Event(), threading.Event()

    class Hangs:
        def write(self, text):
            entered.set()
            release.wait(20)

    rows = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    guard = Guard(Identity(), Second(), threshold=0.5, outputs="logits", log=Hangs())
    request = threading.Thread(target=guard.predict, args=(rows,), daemon=True)
    request.start()
    assert entered.wait(20)
    found = []
    scrape = threading.Thread(target=lambda: found.append(guard.counts()), daemon=True)
    scrape.start()
    scrape.join(20)
    assert found == [{"requests": 5, "alarms": int((rows[:, 1] > 0.5).sum())}]
    release.set()
    request.join(20)
