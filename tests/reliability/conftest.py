"""Tallies: how often each promise was tried and held, printed at the end of a run."""

from collections import defaultdict

import pytest

from .tally import Tally

_PROPERTY = "tally"


@pytest.fixture
def tally(request):
    """A function that begins the tally of a promise; all tallies are checked after the test."""
    begun = []

    def begin(promise):
        begun.append(Tally(promise))
        return begun[-1]

    yield begin
    for one in begun:
        request.node.user_properties.append((_PROPERTY, (one.promise, one.tried, one.held)))
    for one in begun:
        one.check()


def pytest_terminal_summary(terminalreporter):
    """Print the table of `docs/reliability.md`."""
    found = defaultdict(lambda: [0, 0])
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) != "teardown":
                continue
            for name, value in report.user_properties:
                if name == _PROPERTY:
                    promise, tried, held = value
                    found[promise][0] += tried
                    found[promise][1] += held
    if found:
        terminalreporter.section("promises: tried, held")
        for promise, (tried, held) in sorted(found.items()):
            terminalreporter.line(f"{promise}: {tried:,}, {held:,}")
