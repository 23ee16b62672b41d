"""Tests that nobody asked for are left out, said to be, and no failure under CI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
FOUND_NO_TEST = 5


def collect(*options: str, ci: str = "") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "tests/real_engine", *options]
    env = {name: value for name, value in os.environ.items() if name != "SPARKD_TEST_NOT_RUN"} | {"CI": ci}
    return subprocess.run(argv, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("ci", ["", "true"])
def test_the_real_engine_is_left_out_and_that_is_said(ci: str) -> None:
    done = collect(ci=ci)
    assert done.returncode == FOUND_NO_TEST
    assert "scripts/test --real-engine runs it" in done.stdout


def test_who_asks_gets_it() -> None:
    done = collect("--real-engine")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nobody asked" not in done.stdout


def test_in_a_run_of_parts_the_runner_is_told(tmp_path: Path) -> None:
    told = tmp_path / "not-run"
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "tests/real_engine"]
    env = os.environ | {"SPARKD_TEST_NOT_RUN": str(told)}
    subprocess.run(argv, cwd=CHECKOUT, env=env, capture_output=True, timeout=300)
    assert "scripts/test --real-engine runs it" in told.read_text()
