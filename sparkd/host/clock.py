"""Which boot this is, and how long ago it began."""

from __future__ import annotations

import time
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
UPTIME = Path("/proc/uptime")


def boot_id() -> str:
    """The kernel's id of this boot: a UUID in lower case, another one at each boot."""
    return BOOT_ID.read_text(encoding="ascii").strip()


def boot_id_short() -> str:
    """Its first 8 hex digits, as launch ids carry it."""
    return boot_id().replace("-", "")[:8]


def uptime_s() -> float:
    """Seconds since boot, suspended time included."""
    return float(UPTIME.read_text(encoding="ascii").split()[0])


def monotonic() -> float:
    """Seconds on a clock that nobody can set (CLOCK_MONOTONIC)."""
    return time.monotonic()
