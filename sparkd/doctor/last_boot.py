"""How the boot before this one ended: read from what it left, kept while this boot lasts, asked for by the doctor."""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import ValidationError

from sparkd.doctor.boot_end import Ending, LastBoot, Left, how_it_ended
from sparkd.doctor.check import Answers, cannot_tell, check, doubtful, yes
from sparkd.doctor.facts import Facts
from sparkd.host import clock, kernel_log, samples
from sparkd.host.files import whole, write_atomically
from sparkd.host.paths import Paths
from sparkd.host.samples import Sample
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Cure, Layer

FILE = "last-boot.json"
JOURNAL_LINES = 120
KERNEL_LINES = 300
JOURNALCTL_MAX_S = 8.0
CLOCK_S = 60.0  # a node may boot with a clock that is a little slow
WITHOUT_DAEMON_MAX_S = 0.7  # for each of three calls, when the doctor asks by itself


# --- gathering -------------------------------------------------------------------------------------


def gather(ring: Path, boot_id: str, *, timeout_s: float = JOURNALCTL_MAX_S) -> Left:
    """What the boot before `boot_id` left on this node. A few short subprocesses: in a thread, never before READY."""
    unseen: list[str] = []
    taken = _before(ring, boot_id, unseen)
    began = time.time() - clock.uptime_s()
    before, journal, kernel = _logged(timeout_s, unseen)
    last_id = before.id if before is not None else taken[-1].boot_id if taken else ""
    of_it = samples.of_boot(taken, last_id)
    first = before.first if before is not None else of_it[0].at - of_it[0].uptime_s if of_it else began
    return Left(
        boot_id=last_id,
        samples=tuple(of_it),
        journal=journal or None,
        kernel=kernel,
        pstore=kernel_log.pstore(since=first, archived_since=began - CLOCK_S),
        watchdog_reset=_watchdog_reset(),
        next_began=began,
        unseen=tuple(unseen),
    )


def _logged(timeout_s: float, unseen: list[str]) -> tuple[kernel_log.Boot | None, str | None, str | None]:
    """The boot before this one as the journal has it, its last lines, and the kernel's."""
    before, journal = None, None
    try:
        before = next((boot for boot in kernel_log.boots(timeout_s) if boot.index == -1), None)
        if before is None:
            unseen.append("the journal has nothing of it")
            return None, None, None
        journal = kernel_log.journal((), boot=-1, lines_max=JOURNAL_LINES, timeout_s=timeout_s)
        return before, journal, kernel_log.kernel_log(-1, lines_max=KERNEL_LINES, timeout_s=timeout_s)
    except SparkdError as error:
        unseen.append(str(error))
        return before, journal, None


def _before(ring: Path, boot_id: str, unseen: list[str]) -> list[Sample]:
    """The samples of other boots than this one."""
    try:
        taken = samples.read(ring)
    except SparkdError as error:
        unseen.append(str(error))
        return []
    here = boot_id.replace("-", "")
    return [one for one in taken if one.boot_id.replace("-", "") != here]


def _watchdog_reset(directory: Path = Path("/sys/class/watchdog")) -> bool:
    """WDIOF_CARDRESET (linux/watchdog.h): this boot was begun by the watchdog."""
    for file in directory.glob("*/bootstatus"):
        try:
            if int(file.read_text()) & 0x20:
                return True
        except (OSError, ValueError):
            continue
    return False


# --- kept for the doctor ---------------------------------------------------------------------------


def store(paths: Paths, verdict: LastBoot) -> None:
    """Raises OSError."""
    write_atomically(paths.state / FILE, verdict.model_dump_json())


def load(paths: Paths, boot_id: str) -> LastBoot | None:
    """What the daemon found in this boot; None where it has not looked yet. Raises SparkdError where it may not be read."""
    try:
        kept = LastBoot.model_validate_json(whole(paths.state / FILE))
    except (FileNotFoundError, ValidationError):
        return None
    except OSError as error:
        raise SparkdError(
            f"cannot be read: {error.strerror}", where=str(paths.state / FILE), hint="run it as root"
        ) from None
    return kept if kept.seen_by == boot_id else None


@check(
    "unit.last-boot",
    layer=Layer.UNIT,
    question="Did the boot before this one end as it should?",
    how="what sparkd found after the boot: the journal's end, kernel log and pstore of the boot before, its own last samples",
    means="The machine went down without a shutdown: a panic, a hang or a loss of power. Nothing is wrong now because of "
    "it; until the cluster has served again, what it was doing in its last seconds is the best evidence of why.",
    remedy="read the evidence; `journalctl -b -1 -e` and `sparkd events` show more",
    sample="the last boot ended: power loss (its journal stops without a word); last sign of life at 2026-11-21 14:39:43 UTC, "
    "95 s before this boot began; then serving epoch 18, 3.9 GiB of memory available, load 2.1, link up",
    cure=Cure.PERSON,
    symptom=True,
)
def last_boot(facts: Facts) -> Answers:
    here = clock.boot_id()
    kept = load(facts.paths, here)
    if kept is None and facts.status is None:  # no daemon that would have looked
        kept = how_it_ended(gather(facts.paths.state / samples.FILE, here, timeout_s=WITHOUT_DAEMON_MAX_S))
    if kept is None or kept.ending is Ending.UNKNOWN:
        yield cannot_tell(kept.says if kept else "sparkd has not looked yet how the last boot ended")
    elif kept.unclean and not has_served(facts, here):
        yield doubtful(kept.says, evidence=kept.evidence)
    else:
        yield yes(kept.says)


def has_served(facts: Facts, boot_id: str) -> bool:
    """In this boot."""
    if facts.status is not None and facts.status.get("serving"):
        return True
    taken = samples.of_boot(samples.read(facts.paths.state / samples.FILE), boot_id)
    return any(one.phase == "serving" for one in taken)
