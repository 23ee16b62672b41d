"""The few ways in which this room reads /proc: fast, and indifferent to processes that vanish meanwhile."""

# A Path for each of thousands of entries would double the time of every look:
# ruff: noqa: PTH115, PTH208

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CHUNK_BYTES = 64 * 1024


def pids(proc: Path = PROC) -> list[int]:
    """Every process (thread group) visible there, in no order that matters."""
    return [int(name) for name in os.listdir(proc) if name.isdigit()]


def read(path: str) -> bytes:
    """A whole /proc file. Raises OSError; `gone` tells whether the process is simply no longer there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(descriptor, CHUNK_BYTES):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def gone(error: OSError) -> bool:
    """A read failed because the process (or the descriptor) ended, not because we may not look."""
    return isinstance(error, FileNotFoundError | ProcessLookupError)


def ours(error: OSError) -> bool:
    """A read failed because this process has no descriptor or memory left: it tells nothing about what was to be read, and
    must never be taken for a death."""
    return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def read_living(path: str) -> bytes:
    """A file of a process; empty where that is gone or does not let us look. Raises OSError where the failure is `ours`."""
    try:
        return read(path)
    except OSError as error:
        if ours(error):
            raise
        return b""


@dataclass(frozen=True)
class Stat:
    """What we need of /proc/PID/stat. `start_ticks` (since boot) with the pid names a process for good."""

    comm: str
    state: str  # one letter; Z and X are dead
    ppid: int
    start_ticks: int
    cpu_ticks: int = 0  # in user and kernel mode, all threads

    @property
    def dead(self) -> bool:
        return self.state in "ZX"


def stat(pid: int, proc: Path | str = PROC) -> Stat | None:
    """None when the process is gone. Raises OSError where the failure is `ours`."""
    text = read_living(f"{proc}/{pid}/stat")
    if not text:
        return None
    # comm may hold spaces and brackets of its own: it ends at the last bracket
    opened, closed = text.index(b"("), text.rindex(b")")
    fields = text[closed + 2 :].split()
    return Stat(
        comm=os.fsdecode(text[opened + 1 : closed]),
        state=fields[0].decode("ascii"),
        ppid=int(fields[1]),
        start_ticks=int(fields[19]),
        cpu_ticks=int(fields[11]) + int(fields[12]),
    )


def descriptors(pid: int, proc: Path | str = PROC) -> Iterator[tuple[str, str]]:
    """(path of the descriptor in /proc, what it links to) of each open one. Raises OSError where we may not look."""
    directory = f"{proc}/{pid}/fd"
    for name in os.listdir(directory):
        path = f"{directory}/{name}"
        try:
            yield path, os.readlink(path)
        except OSError as error:
            if not gone(error):
                raise
