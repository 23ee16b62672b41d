"""Which boot this is, and how long ago it began."""

from __future__ import annotations

import time
from pathlib import Path

# As PID 1 sees it: a node that is itself a container has a boot id of its own, mounted over the kernel's, and the mount
# namespace that systemd makes for a unit with protected kernel tunables does not have that mount.
BOOT_IDS = (Path("/proc/1/root/proc/sys/kernel/random/boot_id"), Path("/proc/sys/kernel/random/boot_id"))
UPTIME = Path("/proc/uptime")


def boot_id() -> str:
    """The kernel's id of this boot: a UUID in lower case, another one at each boot."""
    try:
        return BOOT_IDS[0].read_text(encoding="ascii").strip()
    except OSError:  # not root
        return BOOT_IDS[1].read_text(encoding="ascii").strip()


def boot_id_short() -> str:
    """Its first 8 hex digits, as launch ids carry it."""
    return boot_id().replace("-", "")[:8]


def uptime_s() -> float:
    """Seconds since boot, suspended time included."""
    return float(UPTIME.read_text(encoding="ascii").split()[0])


def monotonic() -> float:
    """Seconds on a clock that nobody can set (CLOCK_MONOTONIC)."""
    return time.monotonic()
