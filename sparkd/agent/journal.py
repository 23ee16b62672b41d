"""The events: every decision is a sentence, kept on disk, followed by `sparkd events -f`, and copied to the journal."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import stat
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sparkd.host.files import tail
from sparkd.model.outside import clean, parsed

log = logging.getLogger("sparkd")

KEPT = 500  # in memory, for readers
FILE_MAX_BYTES = 1_000_000  # then the file is turned over once; one old file is kept
FOLLOWER_QUEUE_MAX = 1000
READ_MAX_BYTES = (
    FILE_MAX_BYTES + 64 * 1024
)  # of what is on disk: a file that is larger is none of ours, its end is read
FIELDS = ("at", "id", "says", "epoch", "phase", "alarm")

Record = dict[str, Any]


class Journal:
    """Append-only. A disk that refuses is said once and never stops the daemon."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._recent: deque[Record] = deque(_tail(path), maxlen=KEPT)
        self._followers: set[asyncio.Queue[Record]] = set()
        self._disk_complained = False

    def add(self, id: str, says: str, *, epoch: int, phase: str, alarm: bool = False) -> None:
        says = clean(says)
        at = datetime.now(UTC).astimezone().isoformat(timespec="milliseconds")
        record: Record = {"at": at, "id": id, "says": says, "epoch": epoch, "phase": phase, "alarm": alarm}
        log.log(logging.WARNING if alarm else logging.INFO, "%s: %s", id, says)
        self._recent.append(record)
        self._write(record)
        for queue in self._followers:
            if queue.qsize() < FOLLOWER_QUEUE_MAX:
                queue.put_nowait(record)

    def last(self, count: int) -> list[Record]:
        return list(self._recent)[-count:] if count > 0 else []

    async def follow(self) -> AsyncIterator[Record]:
        queue: asyncio.Queue[Record] = asyncio.Queue()
        self._followers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._followers.discard(queue)

    def _write(self, record: Record) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size > FILE_MAX_BYTES:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
            with os.fdopen(_appending(self._path), "a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._disk_complained = False
        except OSError as error:
            if not self._disk_complained:
                log.warning("events cannot be written to %s: %s", self._path, error)
            self._disk_complained = True


def _appending(path: Path) -> int:
    """Raises OSError where something else than a file stands there: a FIFO would hold the daemon's only loop."""
    descriptor = os.open(
        path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o600
    )
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a file")
    return descriptor


def _tail(path: Path) -> list[Record]:
    """The last events on disk; lines that are not whole are skipped."""
    try:
        lines = tail(path, READ_MAX_BYTES).split("\n")[-KEPT - 1 :]
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            record = parsed(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("says"), str) and isinstance(record.get("id"), str):
            records.append({name: record[name] for name in FIELDS if isinstance(record.get(name), str | int)})
    return records
