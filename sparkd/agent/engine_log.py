"""An engine's log has a limit: a launch lives for weeks, vLLM writes a line for each request, and the disk is not its own.

The beginning stays (arguments, version, KV cache), the newest lines stay, and what lies between them moves into one older
file beside it. The engine goes on writing into the same file: whoever holds it open appends (`>>`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path

from sparkd.agent.launching import LOG_MODE
from sparkd.agent.loop import Agent
from sparkd.control.state import NodeState
from sparkd.host.clock import monotonic
from sparkd.host.files import tail
from sparkd.host.paths import Paths
from sparkd.model.report import launch_id

log = logging.getLogger(__name__)

LOOK_EVERY_S = 60.0
HEAD_BYTES = 1 << 20
TAIL_BYTES = 256 * 1024  # as much as an autopsy reads
BLOCK_BYTES = 1 << 20
CATCH_UP_MAX = 8  # rounds of copying what was written while the round before was copied


class EngineLogLimit:
    """Follows the state: looks at the log of the launch that lives here once a minute, in a thread."""

    def __init__(self, agent: Agent, paths: Paths, max_bytes: int) -> None:
        self._agent, self._paths, self._max_bytes = agent, paths, max_bytes
        self._due = 0.0
        self._looking: asyncio.Task[None] | None = None
        agent.on_turn.append(self.follow)

    def follow(self, before: NodeState, after: NodeState) -> None:
        if after.launch is None or monotonic() < self._due:
            return
        self._due = monotonic() + LOOK_EVERY_S
        if self._looking is None or self._looking.done():
            path = self._paths.engine_log(launch_id(after.me.boot_id, after.launch.epoch))
            self._looking = asyncio.get_running_loop().create_task(self._look(path))

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look(self, path: Path) -> None:
        try:
            says = await asyncio.to_thread(limit, path, self._max_bytes)
        except OSError as error:
            log.warning("the log of the engine could not be shortened: %s", error)
            return
        if says:
            self._agent.note("engine.log-shortened", says)


def older(path: Path) -> Path:
    """Where what was taken out of a log lies."""
    return path.with_name(path.name + ".1")


def limit(path: Path, max_bytes: int) -> str:
    """Shorten a log that is larger. Returns a sentence, empty where there was nothing to do. Raises OSError.

    A line that is written in the moment of the cut may be lost, as with logrotate's copytruncate. Where the disk has no
    room for the older file, that one is given up, and not the disk.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= max_bytes:
            return ""
        head = _head_bytes(file.read(min(HEAD_BYTES, max_bytes // 4)))
        moved = f"lines before the newest were moved to {older(path).name}"
        try:
            _copy(path, older(path), head)
        except OSError as error:
            older(path).unlink(missing_ok=True)
            moved = f"lines before the newest were given up, for they could not be moved: {error.strerror}"
        newest = tail(path, min(TAIL_BYTES, max_bytes // 4))
        os.truncate(path, head)
    with path.open("ab") as file:  # one write: the engine appends too
        file.write(f"--- sparkd: {size} bytes were too many for one log: {moved} ---\n{newest}".encode())
    return f"the engine's log had {size >> 20} MiB: {moved}"


def _head_bytes(beginning: bytes) -> int:
    """Up to the last whole line."""
    return beginning.rfind(b"\n") + 1


def _copy(path: Path, target: Path, begin: int) -> None:
    """What stands from `begin` on, with what comes meanwhile; whole or not at all."""
    beside = target.with_name(target.name + ".new")
    try:
        with path.open("rb") as source, beside.open("wb") as copy:
            os.fchmod(copy.fileno(), LOG_MODE)
            source.seek(begin)
            for _ in range(CATCH_UP_MAX):
                copied = 0
                while block := source.read(BLOCK_BYTES):
                    copied += copy.write(block)
                if not copied:
                    break
            copy.flush()
            with contextlib.suppress(OSError):  # a node under load has no page cache to spare for it
                os.fdatasync(copy.fileno())
                os.posix_fadvise(copy.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        beside.replace(target)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
