"""The daemon stays small: what only a doctor needs is loaded by the doctor that it starts, never by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]

ONLY_THE_DOCTOR = {
    "sparkd.cli",
    *(f"sparkd.doctor.{name}" for name in ("baselines", "boundary", "bundle", "drift", "examine", "fixes", "judge")),
    *(f"sparkd.doctor.{name}" for name in ("screen", "searching", "signatures", "texts", "timeline")),
    *(f"sparkd.doctor.checks.{name}" for name in ("client", "driver", "endpoint", "memory", "pair", "shm")),
}


def test_the_daemon_and_its_launch_gate_load_nothing_that_only_the_doctor_needs() -> None:
    code = """
import sys
import sparkd.agent.main
from sparkd.doctor import gate
from sparkd.doctor.check import Gate
assert gate.checks(tuple(Gate))
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    loaded = set(done.stdout.split())
    assert "sparkd.doctor.checks.unit" in loaded
    assert not loaded & ONLY_THE_DOCTOR
