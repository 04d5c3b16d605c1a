"""Table at the end of a run."""

from __future__ import annotations

from typing import Any

from benchmarks.table import ENTRIES, tables


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    """Print the measurements, unless benchmarks are disabled."""
    if ENTRIES and not config.getoption("benchmark_disable"):
        terminalreporter.section("benchmark results")
        terminalreporter.write_line(tables(ENTRIES))
