"""The time of day as this host has it: nothing of sparkd depends on it, certificates and the logs of an incident do."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

STA_UNSYNC = 0x40  # linux/timex.h
EPOCH_FILES = (
    Path("/usr/lib/clock-epoch"),
    Path("/etc/os-release"),
    Path(__file__),
)  # the clock cannot be before these


def now() -> float:
    """Seconds since 1970."""
    return time.time()


def not_before(files: tuple[Path, ...] = EPOCH_FILES) -> float:
    """The latest time at which one of the files was last written: what is installed was made in the past."""
    times = []
    for path in files:
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def date(at: float) -> str:
    """ "2026-11-21", UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def synchronised() -> bool | None:
    """What the kernel was told by an NTP client. None: the question cannot be asked here."""
    buffer = ctypes.create_string_buffer(512)  # struct timex, modes 0: only look; `status` is its sixth long
    try:
        state: int = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except (OSError, AttributeError):
        return None
    if state < 0:
        return None
    offset = 5 * ctypes.sizeof(ctypes.c_long)
    status = ctypes.c_int.from_buffer_copy(buffer.raw[offset : offset + ctypes.sizeof(ctypes.c_int)]).value
    return not status & STA_UNSYNC
