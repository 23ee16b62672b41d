"""What happens to the engine becomes events: its processes appear and die, its log tells progress, its endpoint answers.

Every process that matters is watched through a pidfd: the kernel tells of a death at once, idle or not. What is watched
follows the state (`align` after each turn): nothing has to be switched on or off by hand.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from sparkd.agent import launching
from sparkd.agent.effects import Effects
from sparkd.agent.loop import Agent
from sparkd.agent.tasks import unfailing
from sparkd.agent.vitals import GpuReading, VitalSigns
from sparkd.control import wedge
from sparkd.control.state import (
    Counted,
    Counters,
    EngineGone,
    EngineProgress,
    EngineReady,
    EngineSeen,
    Measured,
    NodeState,
)
from sparkd.engine import process as engine_process
from sparkd.engine.log import LaunchProgress
from sparkd.host import processes, units
from sparkd.host.clock import monotonic
from sparkd.host.files import opened
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Cure, bad
from sparkd.model.report import Phase, launch_id

if TYPE_CHECKING:
    from sparkd.agent.store import Store

log = logging.getLogger(__name__)

SCAN_S = {Phase.LAUNCHING: 0.15, Phase.LOADING: 1.0, Phase.PROVING: 1.0, Phase.SERVING: 15.0}
LOG_READ_S = 0.5
PROGRESS_S = 2.0  # an ETA that only counts down is told this often
COUNT_S = 10.0
LOOK_S = 10.0  # at this node's part of the engine, while there is doubt; sooner where the limits are short
HEALTH_MAX_S = 2.0
FILES_S = 5.0
LOG_READ_MAX_BYTES = 1 << 20


class EngineWatch:
    """One launch, watched from the start of its unit to the end of its last process that matters."""

    def __init__(
        self,
        agent: Agent,
        effects: Effects,
        store: Store,
        epoch: int,
        *,
        adopted: bool,
        gpu: Callable[[], GpuReading | None],
    ) -> None:
        self.epoch = epoch
        self._agent, self._effects, self._store = agent, effects, store
        self._id = launch_id(agent.me.boot_id, epoch)
        self._fds: dict[tuple[int, int], int] = {}  # (pid, start ticks) -> pidfd
        self._titles: dict[tuple[int, int], str] = {}
        self._adopted = self._seen = adopted
        self._ready = False
        self.requests: tuple[int, int, int] | None = None  # running, waiting, generated tokens: as last counted
        self._progress = LaunchProgress(rank=agent.me.rank, started=monotonic(), learned=store.load_learned() or None)
        self._lane = ThreadPoolExecutor(1, "watch")
        self._loop = asyncio.get_running_loop()
        self._vitals = VitalSigns(self._id, effects.configuration.settings.cluster.link.interface, gpu)
        watches = [self._watch_processes, self._watch_log, self._watch_vitals]
        if agent.me.is_head:
            watches.append(self._watch_endpoint)
        self._tasks = [self._loop.create_task(unfailing(watch.__name__, watch)) for watch in watches]

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for fd in self._fds.values():
            self._loop.remove_reader(fd)
            os.close(fd)
        self._fds.clear()
        self._lane.shutdown(wait=False, cancel_futures=True)

    def learn(self) -> None:
        """A good launch teaches how long each step takes on this node."""
        durations = {} if self._adopted else self._progress.durations()
        if durations:
            try:
                self._store.save_learned(durations)
            except OSError as error:
                log.warning("learned durations could not be saved: %s", error)

    # --- processes ---

    async def _watch_processes(self) -> None:
        while True:
            found = await self._loop.run_in_executor(self._lane, launching.living, self._id)
            self._look_at(found)
            if not any(processes.is_top(process) for process in found):
                await self._without_top()
            await asyncio.sleep(SCAN_S.get(self._agent.state.phase, 1.0))

    def _look_at(self, found: list[processes.EngineProcess]) -> None:
        pids = {process.pid for process in found}
        for process in found:
            # A forked child carries its parent's command line until it takes a title of its own: only the top one and
            # the titled ones are known to matter, a helper that comes and goes is not a death.
            matters = processes.is_titled(process) or (processes.is_top(process) and process.ppid not in pids)
            if matters:
                self._follow(process)
        top = next((p for p in found if processes.is_top(p) and p.ppid not in pids), None)
        if top is not None and not self._seen:
            self._verify(top)

    def _follow(self, process: processes.EngineProcess) -> None:
        key = (process.pid, process.start_ticks)
        self._titles[key] = process.title if processes.is_titled(process) else "vllm serve"
        if key in self._fds:
            return
        fd = processes.open_pidfd(process)
        if fd is None:
            self._died(key)
            return
        self._fds[key] = fd
        self._loop.add_reader(fd, self._died, key)

    def _died(self, key: tuple[int, int]) -> None:
        fd = self._fds.pop(key, None)
        if fd is not None:
            self._loop.remove_reader(fd)
            os.close(fd)
        says = f"{self._titles.get(key, 'a process')} (pid {key[0]}) of launch {self._id} died on {self._agent.me.node}"
        self._agent.post(EngineGone(self.epoch, bad("engine.rank-died", says, cure=Cure.RELAUNCH)))

    def _verify(self, top: processes.EngineProcess) -> None:
        """What vLLM received is proven, not assumed: argv and environment as the kernel has them."""
        try:
            environment = processes.launch_environment(top.pid)
        except SparkdError:
            return  # gone again: the pidfd tells
        findings = engine_process.compare(
            self._effects.plan, argv=top.argv, environment=environment, launch_id=self._id
        )
        self._seen = True
        self._agent.post(EngineSeen(self.epoch, tuple(finding for finding in findings if finding.is_bad)))

    async def _without_top(self) -> None:
        """No top process: not there yet, or gone before it could be watched, or its unit has ended."""
        if self._seen and not self._fds:
            says = f"no process of launch {self._id} lives on {self._agent.me.node} any more"
            self._agent.post(EngineGone(self.epoch, bad("engine.lost", says, cure=Cure.RELAUNCH)))
            return
        state = self._agent.state
        if self._seen or state.phase is not Phase.LAUNCHING or state.busy:
            return
        try:
            unit = await self._loop.run_in_executor(self._lane, units.unit_state, launching.ENGINE_UNIT)
        except SparkdError:
            return
        if unit.active_state in ("inactive", "failed"):
            self._agent.post(await self._loop.run_in_executor(self._lane, self._effects.ended, self.epoch))
            await asyncio.sleep(1)

    # --- log and endpoint ---

    async def _watch_log(self) -> None:
        """Follow the launch's log until the engine serves: phases, shards, ETA."""
        path = self._effects.paths.engine_log(self._id)
        offset, said, said_at = 0, "", 0.0
        while self._agent.state.phase is not Phase.SERVING:
            data, now = _read_from(path, offset), monotonic()
            offset += len(data)
            self._progress.feed(data, now)
            progress = self._progress.progress(now)
            if progress.says != said or now - said_at > PROGRESS_S:
                self._agent.post(EngineProgress(self.epoch, progress))
                said, said_at = progress.says, now
            await asyncio.sleep(LOG_READ_S)

    async def _watch_endpoint(self) -> None:
        """Until it listens: /health, which proves nothing but that asking makes sense. Then its counters."""
        while not self._ready:
            if self._seen and await self._health() == 200:
                self._ready = True
                self._agent.post(EngineReady(self.epoch))
            await asyncio.sleep(0.5)
        every_s = min(COUNT_S, self._agent.me.limits.hang_max_s * wedge.DOUBT_SHARE)
        while True:
            await asyncio.sleep(every_s)
            if self._agent.state.phase in (Phase.PROVING, Phase.SERVING):
                counters = await self._count()
                if counters is not None:
                    self._agent.post(Counted(self.epoch, counters))

    async def _health(self) -> int | None:
        return await self._loop.run_in_executor(self._lane, self._effects.endpoint.health, HEALTH_MAX_S)

    async def _count(self) -> Counters | None:
        read = await self._loop.run_in_executor(self._lane, self._effects.endpoint.counters, HEALTH_MAX_S)
        if read is None:
            return None
        self.requests = (read.running, read.waiting, read.generation_tokens)
        movement = read.generation_tokens + read.prompt_tokens + read.iterations
        return Counters(read.successes, movement, read.running + read.waiting, read.waiting, read.cache)

    async def _watch_vitals(self) -> None:
        """Only while the head doubts that the engine works: its own word, or what a worker heard of it."""
        every_s = min(LOOK_S, self._agent.me.limits.hang_max_s * wedge.DOUBT_SHARE)
        while True:
            await asyncio.sleep(every_s)
            state = self._agent.state
            if not (state.doubt if state.me.is_head else state.intent.doubt):
                self._vitals.forget()
                continue
            self._agent.post(Measured(self.epoch, await self._loop.run_in_executor(self._lane, self._vitals.take)))


def _read_from(path: Path, offset: int) -> bytes:
    try:
        with opened(path) as file:
            file.seek(offset)
            return file.read(LOG_READ_MAX_BYTES)
    except OSError:
        return b""


class Sources:
    """Keeps what is watched in line with the state."""

    def __init__(self, agent: Agent, effects: Effects, store: Store) -> None:
        self._agent, self._effects, self._store = agent, effects, store
        self._watch: EngineWatch | None = None
        self.gpu: Callable[[], GpuReading | None] = lambda: None  # the sampler's, once it is there
        self._files = asyncio.get_running_loop().create_task(
            unfailing("the watch over the configuration", self._watch_files)
        )
        agent.on_turn.append(self.align)

    def align(self, before: NodeState, after: NodeState) -> None:
        launch = after.launch if after.phase.has_engine else None
        if self._watch is not None and (launch is None or launch.epoch != self._watch.epoch):
            self._watch.close()
            self._watch = None
        if self._watch is None and launch is not None:
            self._watch = EngineWatch(
                self._agent, self._effects, self._store, launch.epoch, adopted=launch.adopted, gpu=lambda: self.gpu()
            )
        if self._watch is not None and after.phase is Phase.SERVING and before.phase is not Phase.SERVING:
            self._watch.learn()

    def requests(self) -> tuple[int, int, int] | None:
        """Running and waiting requests and generated tokens, as the engine of this node last counted them."""
        return self._watch.requests if self._watch is not None else None

    def close(self) -> None:
        self._files.cancel()
        if self._watch is not None:
            self._watch.close()

    async def _watch_files(self) -> None:
        """A changed configuration file is noticed, checked and shown as pending."""
        known = self._stamp()
        while True:
            await asyncio.sleep(FILES_S)
            stamp = self._stamp()
            if stamp == known:
                continue
            known = stamp
            says = await asyncio.get_running_loop().run_in_executor(None, self._effects.notice_files)
            if says is not None:
                self._agent.note("config.pending", says)

    def _stamp(self) -> list[tuple[str, int, int]]:
        stamp = []
        for file in self._effects.configuration.files:
            try:
                stat = file.stat()
                stamp.append((str(file), stat.st_mtime_ns, stat.st_size))
            except OSError:
                stamp.append((str(file), 0, 0))
        return stamp
