"""The kernel's log and the journal, of this boot and of earlier ones, and what a crashed kernel left in pstore.

Journalctl costs 20 to 200 ms a call, more where the journal is large. A node may keep no journal over a boot
(`Storage=volatile`, no /var/log/journal): then only this boot can be read, and an error says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sparkd.host.run import Ran, run
from sparkd.model.errors import SparkdError, UnreachableError

PSTORE = Path("/sys/fs/pstore")
PSTORE_ARCHIVE = Path("/var/lib/systemd/pstore")  # systemd-pstore.service moves the records there at boot
PSTORE_MAX_BYTES = 64 * 1024  # of one record
PSTORE_RECORDS_MAX = 64
LINE_MAX_CHARS = 2000
JOURNALS = (Path("/var/log/journal"), Path("/run/log/journal"))

_NO_SUCH_BOOT = ("No such boot ID", "no persistent journal", "Data from the specified boot is not available",
                 "Specifying boot ID", "no boot")  # fmt: skip
_MAY_NOT = ("not seeing messages", "Permission denied", "insufficient permissions", "Operation not permitted")
_BOOT = re.compile(r"^\s*(-?\d+)\s+([0-9a-f]{32})\s+(.*)$")
_TIME = re.compile(r"(\d{4}-\d{2}-\d{2}) (\d{2}:\d{2}:\d{2})")


@dataclass(frozen=True)
class Boot:
    """One boot that the journal knows. Times are the journal's first and last line (Unix, seconds)."""

    index: int  # 0: this one, -1: the one before
    id: str  # 32 hex digits
    first: float
    last: float


def kernel_log(
    boot: int = 0, *, lines_max: int, timeout_s: float, journals: Sequence[Path] = JOURNALS
) -> str:
    """The kernel's last lines of that boot (0: this one, -1: the one before), each with its time in ISO 8601.

    Empty where the journal is kept and has no kernel lines (a node that is itself a container). Raises SparkdError with
    the reason where it cannot be read, UnreachableError where that boot is not kept.
    """
    try:
        text = _journalctl(["-k"], boot, lines_max, timeout_s)
    except UnreachableError:
        raise
    except SparkdError:
        if boot != 0:
            raise
        text = ""
    if text or boot != 0 or _is_kept(journals):
        return text
    return _dmesg(lines_max, timeout_s)


def journal(units: Sequence[str], *, boot: int = 0, lines_max: int, timeout_s: float) -> str:
    """The last lines of these units (none: of everything) of that boot. Raises as `kernel_log` does."""
    return _journalctl([f"--unit={unit}" for unit in units], boot, lines_max, timeout_s)


def boots(timeout_s: float) -> list[Boot]:
    """Every boot that the journal knows, oldest first; none where it knows none. Raises SparkdError."""
    ran = _run(["journalctl", "--list-boots", "--quiet", "--no-pager", "--utc"], timeout_s)
    if not ran.ok and not ran.stdout:
        raise _unreadable(ran)
    return parse_boots(ran.stdout)


def parse_boots(text: str) -> list[Boot]:
    """`journalctl --list-boots --utc`. Pure. Before 254 the two times are joined by a dash, with no heading."""
    found = []
    for line in text.splitlines():
        match = _BOOT.match(line)
        times = [_seconds(f"{day} {clock}") for day, clock in _TIME.findall(match.group(3))] if match else []
        if match and len(times) == 2:
            found.append(Boot(int(match.group(1)), match.group(2), *times))
    return sorted(found, key=lambda boot: boot.index)


def pstore(
    directory: Path = PSTORE, archive: Path = PSTORE_ARCHIVE, *, since: float = 0.0, archived_since: float = 0.0
) -> dict[str, str]:
    """What crashed kernels left: record -> text. Unreadable ones are left out; a record is cut at 64 KiB.

    A record is as old as the crash (`since`, Unix seconds); an archived one as old as the boot after it.
    """
    found: dict[str, str] = {}
    for root, after in ((directory, since), (archive, archived_since)):
        for path in _files(root)[:PSTORE_RECORDS_MAX]:
            try:
                if path.stat().st_mtime < after:
                    continue
                with path.open("rb") as file:
                    found[str(path)] = file.read(PSTORE_MAX_BYTES).decode("utf-8", "replace")
            except OSError:
                continue
    return found


# --- how it is asked ------------------------------------------------------------------------------


def _journalctl(what: Sequence[str], boot: int, lines_max: int, timeout_s: float) -> str:
    chosen = [f"--boot={boot}", f"--lines={lines_max}", "--output=short-iso", "--quiet", "--no-pager", "--all"]
    ran = _run(["journalctl", *what, *chosen], timeout_s)
    if not ran.ok or (not ran.stdout and _says(ran, (*_NO_SUCH_BOOT, *_MAY_NOT))):
        raise _unreadable(ran, boot)
    return _cut(ran.stdout)


def _run(argv: Sequence[str], timeout_s: float) -> Ran:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0", "TZ": "UTC"}
    return run(argv, timeout_s=timeout_s, env=environment)


def _cut(text: str) -> str:
    return "".join(f"{line[:LINE_MAX_CHARS]}\n" for line in text.splitlines())


def _says(ran: Ran, words: Sequence[str]) -> bool:
    return any(word in ran.stderr for word in words)


def _unreadable(ran: Ran, boot: int = 0) -> SparkdError:
    if _says(ran, _NO_SUCH_BOOT) and boot != 0:
        return UnreachableError(
            "the journal has nothing of the boot before this one",
            hint="mkdir -p /var/log/journal && systemctl restart systemd-journald keeps it from now on",
        )
    if _says(ran, _MAY_NOT) or os.geteuid() != 0:
        return SparkdError("the journal cannot be read by this user", hint="run it as root")
    said = (ran.stderr.strip() or ran.stdout.strip()).splitlines()
    return SparkdError(f"journalctl {ran.ending}" + (f": {said[-1]}" if said else ""))


def _is_kept(journals: Sequence[Path]) -> bool:
    """There is a journal here: then no kernel line in it means that this node has no kernel log of its own."""
    return any(any(directory.glob("*/*.journal")) for directory in journals)


def _dmesg(lines_max: int, timeout_s: float) -> str:
    ran = _run(["dmesg", "--time-format=iso", "--color=never"], timeout_s)
    if not ran.ok:
        said = ran.stderr.strip().splitlines()
        raise SparkdError(f"the kernel log cannot be read: {said[-1] if said else ran.ending}", hint="run it as root")
    return _cut("\n".join(ran.stdout.splitlines()[-lines_max:]))


def _files(root: Path) -> list[Path]:
    """Newest first: the archive has a directory for each crash."""
    try:
        found = [path for path in root.rglob("*") if path.is_file()]
        return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        return []


def _seconds(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
