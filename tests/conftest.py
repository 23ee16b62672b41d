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

from tests.opt_in import LEFT_OUT, leave_out

REAL_ENGINE = "--real-engine"

settings.register_profile("sparkd", deadline=None)  # no test asserts on time, and a slow machine is no failure
settings.load_profile("sparkd")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(REAL_ENGINE, action="store_true", help="also tests/real_engine: the real vLLM in the lab, 3 GB, once")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    real = [item for item in items if item.path.parent.name == "real_engine"]
    for item in real:
        item.add_marker("real_engine")
    if not config.getoption(REAL_ENGINE):
        leave_out(config, items, real, "tests/real_engine: nobody asked for the real vLLM; scripts/test --real-engine runs it")


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
    if left_out := terminalreporter.config.stash.get(LEFT_OUT, []):
        terminalreporter.section("was not asked for")
        for line in left_out:
            terminalreporter.write_line(line)
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
