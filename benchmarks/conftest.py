"""The table at the end of a run."""

from __future__ import annotations

from typing import Any

from benchmarks.table import ENTRIES, tables


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    """Print what was measured, unless the clock was off."""
    if ENTRIES and not config.getoption("benchmark_disable"):
        terminalreporter.section("the table")
        terminalreporter.write_line(tables(ENTRIES))
