"""What the kernel says of its memory beyond the totals: fragmentation, its own counters, and what nobody accounts for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from sparkd.model.errors import SparkdError

MEMINFO = Path("/proc/meminfo")
BUDDYINFO = Path("/proc/buddyinfo")
VMSTAT = Path("/proc/vmstat")
CMDLINE = Path("/proc/cmdline")

LARGE_BYTES = 2 << 20  # what NVIDIA's driver asks for at once

_ZONE = re.compile(r"^Node +\d+, zone +\S+((?: +\d+)+)\s*$", re.MULTILINE)

# Fields of /proc/meminfo that together hold every page with a known owner. Shmem is part of Cached.
_ACCOUNTED = (
    *("MemFree", "Buffers", "Cached", "SwapCached", "AnonPages", "Slab", "KernelStack", "PageTables", "SecPageTables"),
    *("Percpu", "VmallocUsed", "Hugetlb", "Unaccepted", "HardwareCorrupted", "Zswap"),
)


def meminfo(path: Path = MEMINFO) -> dict[str, int]:
    """Every field that is an amount, in bytes. Raises SparkdError where it cannot be read."""
    fields = {}
    for line in _text(path).splitlines():
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        if number.isdigit() and unit == "kB":
            fields[name] = 1024 * int(number)
    return fields


def unaccounted_bytes(fields: Mapping[str, int]) -> int:
    """Pure. What is neither free nor cache nor any process's: on unified memory that is what the GPU's driver holds."""
    return max(0, fields.get("MemTotal", 0) - sum(fields.get(name, 0) for name in _ACCOUNTED))


def large_free_bytes(path: Path = BUDDYINFO, *, page_bytes: int | None = None) -> int:
    """Free memory that lies in blocks of 2 MiB or more. Raises SparkdError where it cannot be read."""
    page = page_bytes or os.sysconf("SC_PAGE_SIZE")
    zones = _ZONE.findall(_text(path))
    if not zones:
        raise SparkdError("names no zone of memory", where=str(path))
    total = 0
    for zone in zones:
        sizes = ((page << order, int(count)) for order, count in enumerate(zone.split()))
        total += sum(size * count for size, count in sizes if size >= LARGE_BYTES)
    return total


def counters(path: Path = VMSTAT) -> dict[str, int]:
    """The kernel's own counters since it booted (`oom_kill`, `pswpin`, ...). Raises SparkdError where it cannot be read."""
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def kernel_release() -> str:
    """As `uname -r` says it: "6.17.0-1014-nvidia"."""
    return os.uname().release


def boot_options(path: Path = CMDLINE) -> tuple[str, ...]:
    """What the kernel was booted with. Raises SparkdError where it cannot be read."""
    return tuple(_text(path).split())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise SparkdError(f"cannot read it: {error.strerror}", where=str(path)) from None
