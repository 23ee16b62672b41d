"""The texts in which incidents are looked for: engine logs, the container's output, the journal, the kernel's log.

Each source has its own limit and is read beside the others; one that cannot be read is told, not taken for a quiet one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from sparkd.doctor.ask import at_once
from sparkd.doctor.facts import DOOR_MAX_S, Facts, container
from sparkd.doctor.signatures import Text
from sparkd.doctor.timeline import BEFORE_S, Event, Launch, Present, present, split
from sparkd.host import clock, event_file
from sparkd.host.files import opened
from sparkd.host.kernel_log import journal, kernel_log, pstore
from sparkd.model.diagnosis import Source
from sparkd.model.errors import SparkdError, UnreachableError

HEAD_BYTES = 64 * 1024
TAIL_BYTES = 256 * 1024
OLDER_TAIL_BYTES = 64 * 1024  # of launches before the newest: how they ended is in there
OLDER_HEAD_BYTES = 16 * 1024
WHOLE_MAX_BYTES = 64 * 1024 * 1024  # even when asked to be thorough, and the most of a log that is scanned
EVENTS_MAX_BYTES = 256 * 1024
HOST_LINES_MAX = 2000
HOST_LINES_THOROUGH = 50_000
OUTPUT_LINES_MAX = 200
DAY_S = 86400.0

OUR_UNITS = ("sparkd.service", "sparkd-engine.service", "docker.service")
READY = b"Application startup complete"


@dataclass(frozen=True)
class Reading:
    """One text, and where its lines stand in the file: `skipped` lines after the first `head` are not in it."""

    text: Text
    head: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Gathered:
    readings: tuple[Reading, ...]
    present: Present
    unseen: tuple[str, ...] = ()  # what could not be read, and why


def texts(facts: Facts, thorough: bool = False) -> tuple[list[Text], tuple[str, ...]]:
    """Everything there is to read on this node, and what could not be read."""
    found = gather(facts, thorough)
    return [reading.text for reading in found.readings], found.unseen


def gather(facts: Facts, thorough: bool = False, *, limit_s: float = DOOR_MAX_S) -> Gathered:
    """Everything there is to read on this node, within `limit_s`, and where in it the present begins."""
    unseen: list[str] = []
    files = _engine_logs(facts.paths.engine_logs, unseen)
    booted_at = time.time() - clock.uptime_s()
    here = present(
        [Launch(path.stem, at) for path, at in files],
        events(facts.paths.events),
        facts.status,
        boot=clock.boot_id_short(),
        booted_at=booted_at,
        now=time.time(),
    )
    lines = HOST_LINES_THOROUGH if thorough else HOST_LINES_MAX
    work: dict[str, Callable[[], list[Reading]]] = {
        "engine logs": partial(_read_logs, [path for path, _ in files], here, facts.node, thorough),
        "the container's output": partial(_output, facts, here),
        "the journal": partial(_journal, facts, here, lines),
        "the kernel log": partial(_kernel, facts, here, lines),
        "the kernel log of the previous boot": partial(_kernel_before, facts, here, lines, thorough),
        "pstore": partial(_pstore, facts, here, booted_at),
    }
    found = at_once(work, limit_s=limit_s)
    readings: list[Reading] = []
    for name in work:
        answer = found.get(name)
        if isinstance(answer, list):
            readings += answer
        elif isinstance(answer, (SparkdError, OSError)):
            unseen.append(f"{name}: {answer}")
        elif answer is not None:
            unseen.append(f"{name}: {type(answer).__name__}: {answer}")
        else:
            unseen.append(f"{name}: could not be read in {limit_s:g} s")
    return Gathered(tuple(readings), here, tuple(unseen))


# --- what the daemon and the engine wrote ---------------------------------------------------------


def events(path: Path) -> list[Event]:
    """The daemon's last events, oldest first; none where they cannot be read."""
    try:
        return list(event_file.read(path, EVENTS_MAX_BYTES))
    except OSError:
        return []


def _engine_logs(directory: Path, unseen: list[str]) -> list[tuple[Path, float]]:
    """The logs of every kept launch and when each was last written, newest first."""
    try:
        found = [(path, path.stat().st_mtime) for path in directory.iterdir() if path.suffix == ".log"]
    except FileNotFoundError:
        return []
    except OSError as error:
        unseen.append(f"engine logs: {directory} cannot be read: {error.strerror}")
        return []
    return sorted(found, key=lambda item: item[1], reverse=True)


def _read_logs(paths: list[Path], here: Present, node: str, thorough: bool) -> list[Reading]:
    readings = []
    for place, path in enumerate(paths):
        head_bytes, tail_bytes = (OLDER_HEAD_BYTES, OLDER_TAIL_BYTES) if place else (HEAD_BYTES, TAIL_BYTES)
        try:
            text, head, skipped = read_ends(path, head_bytes, WHOLE_MAX_BYTES if thorough else tail_bytes)
        except FileNotFoundError:  # a launch has just begun, and the oldest log went
            continue
        told = Text(Source.VLLM_LOG, without_routine(text), str(path), node, current=path.stem == here.launch)
        readings.append(Reading(told, head, skipped))
    return readings


def without_routine(log: str) -> str:
    """Of each run of lines about nothing but served requests the first and the last; the others are empty.

    They are most of the log of an engine that serves for days. Lines keep their numbers.
    """
    lines = log.split("\n")
    routine = [_is_routine(line) for line in lines]
    last = len(lines) - 1
    return "\n".join(
        "" if _is_ours(line) or (0 < at < last and routine[at] and routine[at - 1] and routine[at + 1]) else line
        for at, line in enumerate(lines)
    )


def _is_ours(line: str) -> bool:
    """The doctor's own question whether the endpoint answers without its key is no client that was refused."""
    return "127.0.0.1:" in line and '"GET /v1/models HTTP/1.1" 401' in line


def _is_routine(line: str) -> bool:
    return '" 200 OK' in line or ("throughput: " in line and " Waiting: 0 reqs" in line)


def read_ends(path: Path, head_bytes: int, tail_bytes: int) -> tuple[str, int, int]:
    """Beginning and end of a log in whole lines, how many lines the beginning has, and how many were left out after it.

    A start that completed in what is left out stays to be seen: what went wrong before it is history.
    """
    with opened(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size <= head_bytes + tail_bytes:
            return file.read().decode("utf-8", "replace"), 0, 0
        head = _whole_lines(file.read(head_bytes))
        file.seek(len(head))
        skipped, ready = _scan(file, size - tail_bytes - len(head))
        tail = file.read(tail_bytes)
    rest, _, tail = tail.partition(b"\n")  # the end of a line that began before it
    if ready and READY not in tail:
        head += b"INFO:     " + READY + b".\n"
    lines = head.count(b"\n")
    return (head + tail).decode("utf-8", "replace"), lines, skipped + bool(rest) - int(ready and READY not in tail)


def _whole_lines(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1] or data


def _scan(file: BinaryIO, length: int) -> tuple[int, bool]:
    """How many lines end in the next `length` bytes, and whether the engine says there that it is ready."""
    lines, ready = 0, False
    end = min(length, WHOLE_MAX_BYTES)
    position = file.tell()
    while end > 0 and (block := file.read(min(1024 * 1024, end))):
        lines += block.count(b"\n")
        ready = ready or READY in block
        end -= len(block)
    file.seek(position + length)
    return lines, ready


# --- what the host wrote ----------------------------------------------------------------------------


def _output(facts: Facts, here: Present) -> list[Reading]:
    """What the container's own first process said: that is the engine where somebody runs vLLM without sparkd."""
    state = container(facts) if facts.cluster_plan is not None else None
    if state is None:
        return []
    output = "\n".join(facts.docker.last_output(state.name, lines=OUTPUT_LINES_MAX))
    where = f"docker logs {state.name}"
    return [Reading(Text(Source.VLLM_LOG, output, where=where, node=facts.node, current=not here.proven))]


def _journal(facts: Facts, here: Present, lines: int) -> list[Reading]:
    units = [*OUR_UNITS, *facts.operator_units]
    log = journal(units, boot=0, lines_max=lines, timeout_s=DOOR_MAX_S)
    return list(_in_time(Text(Source.JOURNAL, log, where="journal", node=facts.node), here.journal_since))


def _kernel(facts: Facts, here: Present, lines: int) -> list[Reading]:
    log = kernel_log(0, lines_max=lines, timeout_s=DOOR_MAX_S)
    return list(_in_time(Text(Source.KERNEL_LOG, log, where="kernel log", node=facts.node), here.since))


def _kernel_before(facts: Facts, here: Present, lines: int, thorough: bool) -> list[Reading]:
    """The end of the boot before this one: of the present where it ended badly and nothing has served since."""
    if here.proven and not thorough:
        return []
    ended_at = _ended_badly_at(facts) if here.earlier_boot else None
    try:
        log = kernel_log(-1, lines_max=lines, timeout_s=DOOR_MAX_S)
    except UnreachableError:  # not kept, or this is the first one
        if ended_at is None:
            return []
        raise
    text = Text(Source.KERNEL_LOG, log, where="kernel log of the previous boot", node=facts.node)
    return list(_in_time(text, ended_at - BEFORE_S if ended_at is not None else float("inf")))


def _ended_badly_at(facts: Facts) -> float | None:
    """When the boot before this one ended, where it ended by a panic, a hang or a loss of power."""
    from sparkd.doctor import last_boot

    ended = last_boot.load(facts.paths, clock.boot_id())
    return ended.ended_at if ended is not None and ended.unclean else None


def _pstore(facts: Facts, here: Present, booted_at: float) -> list[Reading]:
    """What the kernel kept of a panic over the reboot; the last panic is of the present until something has served."""
    recent = set(pstore(since=booted_at - DAY_S)) if here.earlier_boot else set()
    return [
        Reading(Text(Source.KERNEL_LOG, text, where=name, node=facts.node, current=name in recent))
        for name, text in pstore().items()
    ]


def _in_time(text: Text, since: float) -> Iterator[Reading]:
    """A host log in two: history and the present."""
    before, now = split(text.text, since)
    if before:
        yield Reading(replace(text, text=before, current=False))
    if now:
        yield Reading(replace(text, text=now, current=True))
