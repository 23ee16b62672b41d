"""The events: every decision is a sentence, kept on disk, followed by `sparkd events -f`, and copied to the journal."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from sparkd.host import event_file
from sparkd.host.event_file import Record
from sparkd.host.files import append_whole
from sparkd.model.outside import clean

log = logging.getLogger("sparkd")

KEPT = 500  # in memory, for readers
FILE_MAX_BYTES = 1_000_000  # then the file is turned over once; one old file is kept
FOLLOWER_QUEUE_MAX = 1000


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
            line = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
            try:
                append_whole(self._path, line)
            except (PermissionError, IsADirectoryError) as error:
                # Somebody else's: root without CAP_DAC_OVERRIDE may only put it aside, a file as the older half.
                aside = ".corrupt" if isinstance(error, IsADirectoryError) else ".1"
                self._path.replace(self._path.with_name(self._path.name + aside))
                append_whole(self._path, line)
            self._disk_complained = False
        except OSError as error:
            if not self._disk_complained:
                log.warning("events cannot be written to %s: %s", self._path, error)
            self._disk_complained = True


def _tail(path: Path) -> list[Record]:
    try:
        return event_file.read(path, FILE_MAX_BYTES)[-KEPT:]
    except OSError:
        return []
