"""When a launch has proven itself and held, the boundary around it is written as the baseline. Decides nothing else."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from pathlib import Path

from sparkd.agent.loop import Agent
from sparkd.agent.ourselves import Ourselves
from sparkd.control.state import NodeState
from sparkd.host.clock import monotonic, uptime_s
from sparkd.host.paths import Paths
from sparkd.model.errors import SparkdError
from sparkd.model.report import Phase

WRITE_MAX_S = 60.0
TRIES_MAX = 2
AGAIN_S = 120.0


@dataclass(frozen=True)
class Held:
    """How long an epoch has been serving, and what was tried for it."""

    epoch: int = -1
    since: float | None = None  # None: it does not serve now
    tries: int = 0
    tried_at: float = 0.0


def hold(held: Held, *, epoch: int, serving: bool, now: float) -> Held:
    """Pure. Tries count for the epoch, the time only while it serves without a pause."""
    if epoch != held.epoch:
        held = Held(epoch)
    if not serving:
        return replace(held, since=None)
    return held if held.since is not None else replace(held, since=now)


def is_due(held: Held, *, hold_s: float, now: float) -> bool:
    """Pure."""
    if held.since is None or now - held.since < hold_s or held.tries >= TRIES_MAX:
        return False
    return held.tries == 0 or now - held.tried_at >= AGAIN_S


class BaselineWriter:
    """Follows the state. At most once an epoch, and once more where it failed; what exists is not written again."""

    def __init__(self, agent: Agent, ourselves: Ourselves, paths: Paths) -> None:
        self._agent, self._ourselves = agent, ourselves
        self._directory = paths.state / "baselines"
        self._held = Held()
        self._writing: asyncio.Task[None] | None = None
        agent.on_turn.append(self.follow)

    def follow(self, before: NodeState, after: NodeState) -> None:
        now = monotonic()
        serving = after.phase is Phase.SERVING and after.intent.serving  # of the head, on a worker what it last said
        self._held = hold(self._held, epoch=after.epoch, serving=serving, now=now)
        idle = self._writing is None or self._writing.done()
        if idle and is_due(self._held, hold_s=after.me.limits.hold_s, now=now):
            self._held = replace(self._held, tries=self._held.tries + 1, tried_at=now)
            self._writing = asyncio.get_running_loop().create_task(self._write(after.epoch))

    async def close(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    async def _write(self, epoch: int) -> None:
        if exists(self._directory, epoch):  # written before this daemon was started
            self._held = replace(self._held, tries=TRIES_MAX) if self._held.epoch == epoch else self._held
            return
        try:
            says = await self._ourselves.write_baseline(epoch, limit_s=WRITE_MAX_S)
        except SparkdError as error:
            self._agent.note("baseline.not-written", f"the baseline of epoch {epoch} could not be written: {error}")
            return
        self._agent.note("baseline.written", says)
        if self._held.epoch == epoch:
            self._held = replace(self._held, tries=TRIES_MAX)


def exists(directory: Path, epoch: int) -> bool:
    """Whether one of that epoch was written in this boot. A node that lost its state may give a number again."""
    began = time.time() - uptime_s()
    try:
        return any(file.stat().st_mtime >= began for file in directory.glob(f"epoch-{epoch}-*.json"))
    except OSError:
        return False
