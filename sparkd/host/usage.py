"""What each process takes and what the kernel allows it: memory, swap, state, limits, from /proc/PID/{status,limits}."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sparkd.host import procfs

SIGKILL_BIT = 1 << 8  # SIGKILL is 9, and the first bit is signal 1
CAP_IPC_LOCK_BIT = 1 << 14  # linux/capability.h: with it the limit on locked memory does not bind

_LIMIT = re.compile(r"^(Max [a-z ]+?) {2,}(\S+) +(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Usage:
    """One process. A kernel thread and a zombie hold no memory: 0."""

    pid: int
    ppid: int
    comm: str  # at most 15 bytes
    state: str  # one letter: R running, S sleeping, D uninterruptible, Z zombie
    uid: int
    rss_bytes: int
    swap_bytes: int
    kill_pending: bool  # SIGKILL was sent and has not taken effect
    may_lock: bool  # CAP_IPC_LOCK


def everybody(proc: Path = procfs.PROC) -> list[Usage]:
    """Every process in one pass, in the order of pids. Those that vanish meanwhile are not among them."""
    found = (usage(pid, proc) for pid in sorted(procfs.pids(proc)))
    return [one for one in found if one is not None]


def usage(pid: int, proc: Path | str = procfs.PROC) -> Usage | None:
    """None when the process is gone. Raises OSError where the failure is our own (`procfs.ours`)."""
    text = procfs.read_living(f"{proc}/{pid}/status").decode("utf-8", "replace")
    if not text:
        return None
    fields = dict(line.partition(":\t")[::2] for line in text.splitlines())
    pending = int(fields.get("SigPnd", "0"), 16) | int(fields.get("ShdPnd", "0"), 16)
    return Usage(
        pid=pid,
        ppid=int(fields.get("PPid", "0")),
        comm=fields.get("Name", "?"),
        state=fields.get("State", "?")[:1],
        uid=int(fields.get("Uid", "0").split()[0]),
        rss_bytes=_kib(fields.get("VmRSS", "")),
        swap_bytes=_kib(fields.get("VmSwap", "")),
        kill_pending=bool(pending & SIGKILL_BIT),
        may_lock=bool(int(fields.get("CapEff", "0"), 16) & CAP_IPC_LOCK_BIT),
    )


def largest(processes: Iterable[Usage], *, count: int) -> list[Usage]:
    return sorted(processes, key=lambda one: one.rss_bytes, reverse=True)[:count]


def limits(pid: int, proc: Path | str = procfs.PROC) -> dict[str, tuple[int | None, int | None]]:
    """Name ("Max locked memory") to (soft, hard); None is unlimited. Raises OSError: it is gone, or not ours to read."""
    text = procfs.read(f"{proc}/{pid}/limits").decode()
    return {name: (_limit(soft), _limit(hard)) for name, soft, hard in _LIMIT.findall(text)}


def open_files(pid: int, proc: Path | str = procfs.PROC) -> int:
    """How many descriptors it holds. Raises OSError: it is gone, or not ours to look into."""
    return sum(1 for _ in procfs.descriptors(pid, proc))


def waits_in(pid: int, proc: Path | str = procfs.PROC) -> str:
    """The function of the kernel in which it waits; "0" where it runs or the kernel does not tell. Raises OSError."""
    return procfs.read(f"{proc}/{pid}/wchan").decode() or "0"


def _kib(text: str) -> int:
    number = text.split()[:1]
    return 1024 * int(number[0]) if number and number[0].isdigit() else 0


def _limit(text: str) -> int | None:
    return int(text) if text.isdigit() else None
