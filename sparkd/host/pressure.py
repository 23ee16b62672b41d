"""How hard the kernel has to work for memory, in the whole machine and in one control group."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sparkd.host import procfs
from sparkd.model.errors import SparkdError

PRESSURE = Path("/proc/pressure/memory")
CGROUPS = Path("/sys/fs/cgroup")

NO_LIMIT_BYTES = 1 << 60  # cgroup v1 writes "no limit" as a number near 2^63

_LINE = re.compile(r"^(some|full) avg10=([\d.]+) avg60=([\d.]+) ", re.MULTILINE)


@dataclass(frozen=True)
class Pressure:
    """Shares of time, in per cent, in which some or all processes waited for memory."""

    some_10s: float
    full_10s: float
    full_60s: float


@dataclass(frozen=True)
class Group:
    """A process's control group for memory. None: without a limit, or not told."""

    path: Path
    limit_bytes: int | None
    oom_kills: int | None  # of this group, since it was made


def memory_pressure(path: Path = PRESSURE) -> Pressure:
    """Raises SparkdError: this kernel does not measure it (psi=1 on its command line), or it cannot be read."""
    try:
        text = path.read_text(encoding="ascii")
    except OSError as error:
        raise SparkdError(f"cannot read it: {error.strerror}", where=str(path)) from None
    found = {kind: (float(avg10), float(avg60)) for kind, avg10, avg60 in _LINE.findall(text)}
    if set(found) != {"some", "full"}:
        raise SparkdError("is not as expected", where=str(path))
    return Pressure(some_10s=found["some"][0], full_10s=found["full"][0], full_60s=found["full"][1])


def memory_group(pid: int, proc: Path = procfs.PROC, root: Path = CGROUPS) -> Group:
    """The group of a process, cgroup v2 or v1. Raises SparkdError where it is gone or its files are not to be seen here."""
    try:
        text = procfs.read(f"{proc}/{pid}/cgroup").decode()
    except OSError as error:
        raise SparkdError(f"cannot read it: {error.strerror}", where=f"{proc}/{pid}/cgroup") from None
    for line in text.splitlines():
        _, controllers, where = line.split(":", 2)
        if "memory" in controllers.split(","):
            path = root / "memory" / where.lstrip("/")
            if (path / "memory.oom_control").exists():
                return Group(path, _amount(path / "memory.limit_in_bytes"), _event(path / "memory.oom_control"))
        elif not controllers:
            path = root / where.lstrip("/")
            if (path / "memory.events").exists():
                return Group(path, _amount(path / "memory.max"), _event(path / "memory.events"))
    raise SparkdError(f"the memory control group of process {pid} is not to be seen here", where=str(root))


def _amount(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < NO_LIMIT_BYTES else None


def _event(path: Path) -> int | None:
    try:
        found = re.search(r"^oom_kill (\d+)$", path.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) if found else None
