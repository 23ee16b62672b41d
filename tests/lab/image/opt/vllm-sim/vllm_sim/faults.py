"""Faults that are switched on from outside: a file of that name in the faults directory, looked at each time it matters.

The directory is /lab/faults, or VLLM_SIM_FAULTS. It belongs to the node: a fault on one node strikes that node's part only.
faults.txt beside this package says what each does, and a test holds it to the names used here.
"""

import os
import time
from pathlib import Path

from vllm_sim.knobs import lab_directory

HANG_POLL_S = 0.1


def directory() -> Path:
    return Path(os.environ.get("VLLM_SIM_FAULTS") or lab_directory() / "faults")


def on(name: str) -> bool:
    return (directory() / name).exists()


def take(name: str) -> bool:
    """Whether a one-shot fault is on; it is switched off by being seen."""
    try:
        (directory() / name).unlink()
    except FileNotFoundError:
        return False
    except OSError:
        return on(name)
    return True


def hang_while(name: str) -> None:
    while on(name):
        time.sleep(HANG_POLL_S)


def hang_for_ever() -> None:
    while True:
        time.sleep(3600)
