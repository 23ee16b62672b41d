"""Put the daemon together and run it until systemd says stop."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sparkd import __version__
from sparkd.agent import heap, view
from sparkd.agent.asked import Clean, Events, Intent, Throughput, told
from sparkd.agent.baselines import BaselineWriter
from sparkd.agent.effects import Effects
from sparkd.agent.engine_log import EngineLogLimit
from sparkd.agent.exchange import HeadExchange, WorkerExchange
from sparkd.agent.fresh_start import FreshStart
from sparkd.agent.journal import Journal
from sparkd.agent.loop import Agent
from sparkd.agent.ourselves import Ourselves
from sparkd.agent.questions import Questions
from sparkd.agent.sampling import Sampler, look_back
from sparkd.agent.socket import ControlServer, Line
from sparkd.agent.sources import Sources
from sparkd.agent.store import Store
from sparkd.agent.tasks import fault_teller
from sparkd.config.identity import identify_here
from sparkd.config.load import Configuration, load
from sparkd.control.state import Asked, Me, Started
from sparkd.engine import cleaning
from sparkd.engine.container import Docker
from sparkd.host import processes
from sparkd.host.clock import boot_id, monotonic
from sparkd.host.paths import Paths
from sparkd.model.errors import SparkdError, UsageError
from sparkd.model.report import Saved, launch_id
from sparkd.peer.keys import Keyring, load_keys

log = logging.getLogger(__name__)

Answer = AsyncIterator[Line]
# What members of the group may ask; anything else is root's. A measurement loads the link, so it is not among them.
LOOKING = frozenset({"status", "watch", "events", "diagnose", "keys"})


def run(configuration_path: Path, node: str | None) -> int:
    """The daemon, until SIGTERM or SIGINT. Raises SparkdError before anything was started where it cannot run."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    for noisy in ("httpx", "httpcore", "urllib3", "docker", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    configuration = load(configuration_path)
    me = who_am_i(configuration, node)
    paths = Paths.from_environment()
    keyring = Keyring(load_keys(paths.key) if len(me.names) > 1 else ())
    asyncio.run(Daemon(me, configuration, paths, keyring).run())
    return 0


def who_am_i(configuration: Configuration, node: str | None) -> Me:
    """This node in the cluster, found by `--node`, its addresses or its host name."""
    cluster = configuration.settings.cluster
    found = identify_here(cluster, node)
    names = tuple(node.name for node in cluster.nodes)
    rank = names.index(found.name)
    return Me(found.name, rank, names, boot_id(), __version__, configuration.settings.limits)


def started(me: Me, saved: Saved | None) -> Started:
    """Which of this boot's launches are alive. Whole means: its top process, and once it served its titled ones too."""
    launches: dict[int, list[processes.EngineProcess]] = {}
    for process in processes.engine_processes():
        epoch = _epoch_of(process.launch_id, me.boot_id)
        if epoch is not None:
            launches.setdefault(epoch, []).append(process)
    intact: list[int] = []
    broken: list[int] = []
    for epoch, found in launches.items():
        titled = sum(processes.is_titled(process) for process in found)
        needed = 0 if saved is None or not saved.serving else 2 if me.is_head else 1
        whole = any(processes.is_top(process) for process in found) and titled >= needed
        (intact if whole else broken).append(epoch)
    return Started(saved, tuple(intact), tuple(broken))


def _epoch_of(id: str | None, boot: str) -> int | None:
    if id is None or not id.rpartition("-")[2].isdigit():
        return None
    epoch = int(id.rpartition("-")[2])
    return epoch if id == launch_id(boot, epoch) else None


class Daemon:
    """Agent, sources, exchange and the local socket, started and stopped together."""

    def __init__(self, me: Me, configuration: Configuration, paths: Paths, keyring: Keyring) -> None:
        self._me, self._configuration, self._paths, self._keyring = me, configuration, paths, keyring

    async def run(self) -> None:
        store, docker = Store(self._paths), Docker()
        self._effects = Effects(self._me, self._configuration, self._paths, store, docker)
        self._journal = Journal(self._paths.events)
        self._agent = Agent(self._me, self._effects, store, self._journal)
        first = started(self._me, store.load())
        plan = store.load_plan()
        if plan is not None and first.saved is not None and first.saved.launch_epoch in first.intact:
            self._effects.adopt_plan(plan)
            self._effects.notice_files()
        directories = (self._paths.state, self._paths.runtime, self._paths.logs)
        fresh_start = FreshStart(self._agent.note, self._agent.settle, directories)
        self._agent.on_turn += [heap.give_back, fresh_start.follow]
        self._agent.note(
            "agent.started", f"sparkd {__version__} on {self._me.node}, rank {self._me.rank} of {len(self._me.names)}"
        )
        for complaint in store.complaints:
            self._agent.note("state.corrupt", complaint, alarm=True)
        sources = Sources(self._agent, self._effects, store)
        ourselves = Ourselves(self._configuration.path, self._me.node)
        self._questions = Questions(self._agent, self._configuration.settings.cluster, self._keyring, ourselves)
        interface = self._configuration.settings.cluster.link.interface
        sampler = Sampler(self._agent, self._paths, interface, sources.requests)
        sources.gpu = sampler.gpu
        baselines = BaselineWriter(self._agent, ourselves, self._paths)
        log_limit = EngineLogLimit(self._agent, self._paths, self._configuration.settings.engine_log_max_mib << 20)
        self._exchange = self._make_exchange()
        control = ControlServer(self._paths.socket, self._verbs(), LOOKING)
        stop = asyncio.Event()
        asyncio.get_running_loop().set_exception_handler(fault_teller())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await control.start()
        if self._exchange is not None:
            await self._exchange.start()
        looking = asyncio.create_task(look_back(self._agent, self._paths))
        try:
            await self._agent.run(first, stop)
        finally:
            looking.cancel()
            sources.close()
            await sampler.close()
            if self._exchange is not None:
                await self._exchange.stop()
            await control.stop()
            await baselines.close()
            await log_limit.close()
            await ourselves.close()

    def _make_exchange(self) -> HeadExchange | WorkerExchange | None:
        cluster = self._configuration.settings.cluster
        if cluster.size == 1:
            return None
        kind = HeadExchange if self._me.is_head else WorkerExchange
        return kind(self._agent, cluster, self._keyring, self._questions)

    # --- what the local socket answers ---

    def _verbs(self) -> dict[str, Any]:
        return {
            "status": self._status,
            "watch": self._watch,
            "events": self._events,
            "start": self._ask,
            "stop": self._ask,
            "restart": self._ask,
            "clean": self._clean,
            "diagnose": self._diagnose,
            "throughput": self._throughput,
            "keys": self._keys,
        }

    def _view(self) -> dict[str, Any]:
        return view.status(self._agent.state, self._effects, monotonic()).model_dump(mode="json")

    async def _status(self, request: dict[str, Any]) -> Answer:
        yield self._view()

    async def _watch(self, request: dict[str, Any]) -> Answer:
        """A status at once, then one whenever the state changed, at least every second."""
        while True:
            known = self._agent.version
            yield self._view()
            await self._agent.wait_changed(known, 1.0)

    async def _events(self, request: dict[str, Any]) -> Answer:
        asked = told(request, Events)
        for record in self._journal.last(asked.last):
            yield record
        if asked.follow:
            async for record in self._journal.follow():
                yield record

    async def _ask(self, request: dict[str, Any]) -> Answer:
        verb, profile = str(request["verb"]), told(request, Intent).profile
        if profile is not None and profile not in self._effects.configuration.profiles:
            known = ", ".join(sorted(self._effects.configuration.profiles)) or "none"
            raise UsageError(f"there is no profile {profile!r}", hint=f"known profiles: {known}")
        if isinstance(self._exchange, WorkerExchange):
            yield {"says": await self._exchange.pass_on(verb, profile)}
            return
        self._agent.post(Asked(verb, profile))
        yield {"says": f"{verb} is under way; `sparkd status --watch` shows it"}

    async def _clean(self, request: dict[str, Any]) -> Answer:
        asked = told(request, Clean)
        dry_run = asked.dry_run
        only = [name for name in cleaning.TIDIED if name in (asked.only or cleaning.TIDIED)]

        def tidy() -> list[str]:
            state = self._agent.state  # as it is when our turn has come
            living = launch_id(self._me.boot_id, state.launch.epoch) if state.launch else None
            plan, docker = self._effects.plan, self._effects.docker
            return cleaning.tidy(plan, docker, living_launch=living, dry_run=dry_run, only=only)

        yield {"lines": await self._agent.between_steps(tidy)}

    async def _diagnose(self, request: dict[str, Any]) -> Answer:
        """What the doctors of the other nodes find, as they come: this node's own asks by itself."""
        async for node, found in self._questions.diagnoses():
            if isinstance(found, SparkdError):
                yield {"node": node, "absent": found.message}
            else:  # not parsed here: it may be large; without line breaks, for it is one line of the answer
                yield b'{"node": %s, "diagnosis": %s}' % (json.dumps(node).encode(), found.replace(b"\n", b" "))

    async def _keys(self, request: dict[str, Any]) -> Answer:
        """Fingerprints: which keys this daemon has, and which the others last signed with."""
        # The head and each worker speak every second; workers do not speak with each other.
        spoken_with = self._me.names[1:] if self._me.is_head else self._me.names[:1]
        yield self._keyring.told(spoken_with)

    async def _throughput(self, request: dict[str, Any]) -> Answer:
        asked = told(request, Throughput)
        name, received = await self._questions.measure(asked.node, asked.seconds)
        yield {
            "node": name,
            "gbps": round(received.gbps, 3),
            "seconds": round(received.seconds, 3),
            "streams": received.streams,
        }
