"""How a boot ended, and how the node was in its last seconds. Pure: decided from what the boot left behind.

    pstore or the kernel log tell of a panic    -> kernel panic
    the journal ends as a shutdown ends it      -> clean
    lockups, stalled tasks, memory exhausted    -> hang
    nothing at all: it simply stops             -> power loss

A journal that is not kept over a boot leaves only our own ring of samples: its last mark says whether the daemon was told
to stop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from sparkd.host.samples import Sample
from sparkd.model.redact import redact
from sparkd.model.report import Frozen

LAST_S = 15 * 60.0  # what the kernel said longer before the end did not end it
THRASHING = 40.0  # per cent of ten seconds in which every task waited for memory
GONE_S = (
    90.0  # an engine was being sampled every 10 s: the journal going on for so long without a sample is no accident
)
SHOWN = 3

PANIC = re.compile(r"Kernel panic - not syncing.*|^Panic#\d+ Part\d+.*", re.MULTILINE)
OOPS = re.compile(
    r"(?:Internal error: Oops|BUG: unable to handle|Unable to handle kernel|Oops: \w+ \[#).*|^Oops#\d+ Part\d+.*",
    re.MULTILINE,
)
STALL = re.compile(
    r"soft lockup|hard LOCKUP|detected stalls? on CPU|rcu_\w+ (?:self-)?detected|blocked for more than \d+ seconds"
    r"|Watchdog detected|watchdog: BUG|workqueue lockup"
)
SHORT = re.compile(r"Out of memory: Killed process|oom-kill:|invoked oom-killer|page allocation failure")
GPU_FAULT = re.compile(r"NVRM: Xid|has fallen off the bus|NVRM: GPU .* RmInitAdapter failed")
# The last words of a shutdown: late enough that what came after it did not matter any more.
ENDED = re.compile(
    r"systemd-journald?\[\d+\]: Journal stopped|Received SIGTERM from PID 1 \(systemd-shutdow|systemd-shutdown\[\d+\]: "
    r"|systemd\[1\]: Shutting down\.|systemd\[1\]: Reached target .*(?:(?:reboot|poweroff|halt|kexec|final|shutdown|umount)"
    r"\.target|System Reboot|Power-Off|System Power Off|System Halt|System Shutdown|Unmount All Filesystems)"
)
BEGUN = re.compile(
    r"systemd-logind\[\d+\]: (?:The system will|System is) (?:reboot|power|halt)"
    r"|systemd\[1\]: Stopped target (?:multi-user\.target|Multi-User System)"
)
STARTED = re.compile(r"systemd-journald?\[\d+\]: Journal started|systemd\[1\]: Startup finished")


class Ending(StrEnum):
    CLEAN = "clean"
    PANIC = "kernel panic"
    POWER = "power loss"
    HANG = "hang"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Left:
    """What one boot left behind. None: could not be read, `unseen` says why."""

    boot_id: str = ""
    samples: tuple[Sample, ...] = ()  # of that boot, oldest first
    journal: str | None = None  # its last lines
    kernel: str | None = None
    pstore: Mapping[str, str] = field(default_factory=dict)
    watchdog_reset: bool = False  # the hardware says that its watchdog began this boot
    next_began: float = 0.0  # when this boot began (Unix, seconds)
    unseen: tuple[str, ...] = ()


class LastBoot(Frozen):
    """The verdict, as it is kept for the doctor while the boot lasts that came to it."""

    boot_id: str = ""  # of the boot that ended
    seen_by: str = ""  # the boot that looked
    ending: Ending = Ending.UNKNOWN
    says: str = ""
    evidence: tuple[str, ...] = ()
    ended_at: float | None = None  # the last sign of life (Unix, seconds)

    @property
    def unclean(self) -> bool:
        return self.ending in (Ending.PANIC, Ending.POWER, Ending.HANG)


# --- the decision ----------------------------------------------------------------------------------


def how_it_ended(left: Left) -> LastBoot:
    """Pure."""
    ended_at = _last_sign(left)
    ending, why, evidence = _ending(left, ended_at)
    says = (
        f"the last boot ended: {ending.value}"
        if ending is not Ending.UNKNOWN
        else "how the last boot ended cannot be told"
    )
    parts = [says + (f" ({why})" if why else "")]
    if ending is not Ending.CLEAN:
        parts += [part for part in (_when(left, ended_at), _last_seconds(left.samples)) if part]
        evidence = [*evidence, *_tail(left)]
    shown = tuple(redact(line) for line in evidence)
    return LastBoot(boot_id=left.boot_id, ending=ending, says="; ".join(parts), evidence=shown, ended_at=ended_at)


def _ending(left: Left, ended_at: float | None) -> tuple[Ending, str, list[str]]:
    """Ending, why, and the lines that say so. Lowest first: a panic explains what looks like a power loss."""
    kernel = _late(left.kernel or "", ended_at)
    panic = _panic(left.pstore, kernel)
    if panic:
        return Ending.PANIC, panic[0], panic[1:]
    shutdown = _shutdown(left.journal or "")
    if shutdown == "ended":
        return Ending.CLEAN, "the journal ends as a shutdown ends it", []
    if left.journal is None and left.samples and left.samples[-1].mark == "stopped":
        return Ending.CLEAN, "sparkd was told to stop; no journal of it is kept", []
    oops = _matching(OOPS, "\n".join([*left.pstore.values(), *kernel]).splitlines())
    if oops:
        return Ending.PANIC, "the kernel met a fault and did not shut down", oops
    if not left.samples and left.journal is None and left.kernel is None:
        return Ending.UNKNOWN, "; ".join(left.unseen) or "it left nothing behind", []
    hang, lines = _hang(left, kernel, ended_at)
    if not hang and shutdown == "begun":
        hang = "a shutdown was begun and did not end"
    if hang:
        return Ending.HANG, hang, lines
    known = (
        "no journal of it is kept, by our samples alone" if left.journal is None else "its journal stops without a word"
    )
    gpu = _matching(GPU_FAULT, kernel)
    return Ending.POWER, known + (", after a fault of the GPU" if gpu else ""), gpu


def _panic(pstore: Mapping[str, str], kernel: Sequence[str]) -> list[str]:
    """Why, and the lines; empty where there was none."""
    for record, text in pstore.items():
        found = [match.group(0) for match in PANIC.finditer(text)]
        if found:
            why = next((line for line in found if "not syncing" in line), "the kernel kept its last words in pstore")
            return [why[:200], f"{record}: {found[0][:200]}"]
    found = [line for line in kernel if PANIC.search(line)]
    return [PANIC.search(found[-1]).group(0)[:200], *found[-SHOWN:]] if found else []  # type: ignore[union-attr]


def _shutdown(journal: str) -> str:
    """ "ended", "begun" or "": how far a shutdown had come at the journal's end. journald alone may be restarted too."""
    reached = ""
    for line in journal.splitlines():
        if STARTED.search(line):
            reached = ""
        elif ENDED.search(line):
            reached = "ended"
        elif not reached and BEGUN.search(line):
            reached = "begun"
    return reached


def _hang(left: Left, kernel: Sequence[str], ended_at: float | None) -> tuple[str, list[str]]:
    """What speaks for a host that lived on and did nothing any more."""
    if left.watchdog_reset:
        return "the hardware watchdog reset it", []
    stalls = _matching(STALL, kernel)
    if stalls:
        return "the kernel saw tasks or processors that did not come back", stalls
    last = left.samples[-1] if left.samples else None
    if last is not None and (last.memory_stall or 0.0) >= THRASHING:
        return f"memory was exhausted: all tasks waited for it {last.memory_stall:.0f} % of the last 10 s", []
    short = _matching(SHORT, kernel)
    if short:
        return "memory was exhausted", short
    if last is not None and not last.mark and ended_at is not None and ended_at - last.at > GONE_S:
        return f"sparkd could not take a sample any more {ended_at - last.at:.0f} s before the end", []
    return "", []


def _matching(pattern: re.Pattern[str], lines: Sequence[str]) -> list[str]:
    return [line.strip()[:300] for line in lines if pattern.search(line)][-SHOWN:]


# --- times and words -------------------------------------------------------------------------------


def _late(text: str, ended_at: float | None) -> list[str]:
    """The lines of the last minutes; those without a time belong to the one before."""
    kept, late = [], True
    for line in text.splitlines():
        at = _time_of(line)
        late = late if at is None or ended_at is None else ended_at - at <= LAST_S
        if late:
            kept.append(line)
    return kept


def _time_of(line: str) -> float | None:
    """Of a line as journalctl -o short-iso writes it: +0000 before systemd 255, +00:00 since."""
    try:
        return datetime.fromisoformat(line.split(" ", 1)[0]).timestamp()
    except ValueError:
        return None


def _last_sign(left: Left) -> float | None:
    """The journal is synced every five minutes only, our ring with each sample: whichever is later."""
    lines = [*(left.journal or "").splitlines()[-SHOWN:], *(left.kernel or "").splitlines()[-SHOWN:]]
    times = [at for at in map(_time_of, lines) if at is not None]
    times += [sample.at for sample in left.samples[-1:]]
    return max(times, default=None)


def _when(left: Left, ended_at: float | None) -> str:
    if ended_at is None:
        return ""
    said = f"last sign of life at {_clock(ended_at)}"
    gap_s = left.next_began - ended_at
    if left.next_began and gap_s >= 0:
        said += f", {_long(gap_s)} before this boot began"
    return said


def _long(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.0f} h"
    )


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _last_seconds(taken: Sequence[Sample]) -> str:
    return f"then {in_words(taken[-1])}" if taken else ""


def in_words(one: Sample) -> str:
    """`serving epoch 18, 3.9 GiB available, load 2.1, GPU 61 °C 45 W 96 %, link up, 1 request running`"""
    said = [f"{one.phase} epoch {one.epoch}"]
    if one.available_mib is not None:
        said.append(f"{one.available_mib / 1024:.1f} GiB of memory available")
    if one.swap_mib and one.swap_free_mib is not None:
        said.append(f"{(one.swap_mib - one.swap_free_mib) / 1024:.1f} GiB swapped out")
    if one.memory_stall:
        said.append(f"{one.memory_stall:.0f} % stalled on memory")
    if one.load is not None:
        said.append(f"load {one.load:.1f}")
    if one.gpu is not None:
        values = ((one.gpu.celsius, "°C"), (one.gpu.watts, "W"), (one.gpu.percent, "%"), (one.gpu.mhz, "MHz"))
        said.append("GPU " + " ".join(f"{value:.0f} {unit}" for value, unit in values if value is not None))
    if one.carrier is not None:
        said.append(f"link {'up' if one.carrier else 'down'}")
    if one.running is not None:
        said.append(f"{one.running} running and {one.waiting or 0} waiting requests")
    return ", ".join(said)


def _tail(left: Left) -> list[str]:
    """The last samples and the journal's last lines."""
    taken = [
        f"{_clock(one.at)}: {in_words(one)}" + (f" [{one.mark}]" if one.mark else "") for one in left.samples[-SHOWN:]
    ]
    return [*taken, *(line[:300] for line in (left.journal or "").splitlines()[-SHOWN:])]
