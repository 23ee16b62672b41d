"""Subprocesses: exit, signal, missing program and timeout told apart."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from sparkd.host.run import run
from sparkd.model.errors import SparkdError


def test_status_output_and_input() -> None:
    ran = run(["cat"], timeout_s=10, input="grüße\n")
    assert (ran.status, ran.signal, ran.stdout, ran.ok) == (0, None, "grüße\n", True)
    assert run(["sh", "-c", "echo no >&2; exit 3"], timeout_s=10).status == 3


def test_a_signal_is_not_a_status() -> None:
    ran = run(["sh", "-c", "kill -TERM $$"], timeout_s=10)
    assert (ran.status, ran.signal, ran.ok) == (None, 15, False)
    assert ran.ending == "was killed by SIGTERM"


def test_check_says_what_the_program_said_last() -> None:
    with pytest.raises(SparkdError, match=r"exited with status 127 .* not found") as raised:
        run(["sh", "-c", "no-such-program-anywhere"], timeout_s=10, check=True)
    assert "no-such-program-anywhere" in raised.value.where


def test_missing_and_unexecutable_programs_are_named(tmp_path: Path) -> None:
    with pytest.raises(SparkdError, match="no such program"):
        run(["no-such-program-anywhere"], timeout_s=10)
    with pytest.raises(SparkdError, match="cannot run"):
        run([str(tmp_path)], timeout_s=10)


def test_output_that_is_no_text_does_not_hurt() -> None:
    assert run(["printf", r"\377ok"], timeout_s=10).stdout == "\ufffdok"


def test_a_timeout_ends_the_whole_group(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(SparkdError, match=r"did not end within 0\.5 s"):
        run(["sh", "-c", f"sleep 60 & echo $! > {note}; wait"], timeout_s=0.5)
    child = int(note.read_text())
    for _ in range(100):
        if not _lives(child):
            return
        time.sleep(0.05)
    pytest.fail(f"the child {child} outlived its group")


def test_the_environment_is_what_was_given() -> None:
    ran = run(
        [sys.executable, "-c", "import os; print(os.environ.get('A'), 'HOME' in os.environ)"],
        timeout_s=30,
        env={"A": "1"},
    )
    assert ran.stdout == "1 False\n"


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
