"""For every test: the checkout can be imported, hypothesis has no stopwatch, and what could not run is said at the end.

With CI=true in the environment a test that could not run is a failure: nobody would read the list.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

settings.register_profile("sparkd", deadline=None)  # no test asserts on time, and a slow machine is no failure
settings.load_profile("sparkd")


def _skipped(reporter: pytest.TerminalReporter) -> Iterator[tuple[str, str]]:
    """(test, reason) of each that did not run."""
    for report in reporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        yield report.nodeid, reason.removeprefix("Skipped: ")


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("true", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if _in_ci() and exitstatus == pytest.ExitCode.OK and any(_skipped(reporter)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [f"{test}: {reason}" for test, reason in _skipped(terminalreporter)]
    if not lines:
        return
    verdict = " (a failure, because CI=true)" if _in_ci() else ""
    terminalreporter.section(f"could not run{verdict}")
    for line in lines:
        terminalreporter.write_line(line)
    if told := os.environ.get("SPARKD_TEST_NOT_RUN"):  # scripts/test gathers them over its parts
        with Path(told).open("a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
