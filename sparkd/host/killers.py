"""Programs that end others when memory runs short, beside the kernel's own OOM killer: earlyoom, systemd-oomd, ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparkd.host import marks, procfs
from sparkd.host.memory import Memory

NAMES = ("earlyoom", "systemd-oomd", "nohang", "nohang-desktop", "oomd", "dgx-anti-oom")
EARLYOOM_PERCENT = 10.0  # earlyoom(1): both memory and swap


@dataclass(frozen=True)
class Killer:
    """A killer that runs. `floor_bytes`: it ends a process once available memory is below; None where it does not say.

    `swap_percent`: and free swap is below that share too; 100 where swap does not matter to it.
    """

    name: str
    pid: int
    floor_bytes: int | None = None
    swap_percent: float = 100.0

    def strikes_at(self, now: Memory) -> int | None:
        """The available memory below which it ends a process as swap is now; None where it would not, or is not known."""
        free_swap_percent = 100 * now.swap_free / now.swap_total if now.swap_total else 0.0
        return self.floor_bytes if free_swap_percent <= self.swap_percent else None


def killers(now: Memory, proc: Path = procfs.PROC) -> list[Killer]:
    """Those that run, in the order of pids. One pass over /proc/*/cmdline."""
    found = []
    for pid in sorted(procfs.pids(proc)):
        try:
            argv = marks.argv(procfs.read(f"{proc}/{pid}/cmdline"))
        except OSError:
            continue
        name = killer_name(argv)
        if name == "earlyoom":
            found.append(_earlyoom(pid, argv, now))
        elif name:
            found.append(Killer(name, pid))
    return found


def killer_name(argv: Sequence[str]) -> str | None:
    """Pure. Of a program, or of a script that an interpreter runs: "/usr/bin/python3 /usr/local/bin/dgx-anti-oom"."""
    for word in [word for word in argv[:3] if not word.startswith("-")][:2]:
        name = word.rpartition("/")[2].removesuffix(".py").removesuffix(".sh")
        if name in NAMES:
            return name
    return None


def _earlyoom(pid: int, argv: Sequence[str], now: Memory) -> Killer:
    """-m PERCENT[,KILL], -M KiB[,KILL], -s PERCENT[,KILL], -S KiB[,KILL]: where both are given, the lower one counts."""
    options = dict(_options(argv[1:]))
    percent = _first(options.get("-m")) if "-m" in options or "-M" not in options else None
    floors = [now.total * (percent if percent is not None else EARLYOOM_PERCENT) / 100]
    if (kib := _first(options.get("-M"))) is not None:
        floors = [1024 * kib] if percent is None else [*floors, 1024 * kib]
    swap = _first(options.get("-s"))
    if (kib := _first(options.get("-S"))) is not None and now.swap_total:
        share = 100 * 1024 * kib / now.swap_total
        swap = share if swap is None else min(swap, share)
    return Killer("earlyoom", pid, int(min(floors)), swap if swap is not None else EARLYOOM_PERCENT)


def _options(words: Sequence[str]) -> list[tuple[str, str]]:
    """Short options with their values, written apart ("-m 5") or together ("-m5")."""
    found, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-m", "-M", "-s", "-S") and rest:
            found.append((word, rest.pop(0)))
        elif word[:2] in ("-m", "-M", "-s", "-S") and len(word) > 2:
            found.append((word[:2], word[2:]))
    return found


def _first(value: str | None) -> float | None:
    try:
        return float((value or "").partition(",")[0])
    except ValueError:
        return None
