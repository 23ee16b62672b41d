"""Engines: how they start, load, answer, hang and die. FIELD.md section 2 is the source of each rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sim.truth import Engine, Epoch, Host
from sim.vitals import Pastime
from sparkd.control.state import Counted, Counters, EngineGone, EngineReady
from sparkd.model.finding import Cure, bad

if TYPE_CHECKING:
    from sim.world import World

COUNT_S = 5.0  # how often the engine's counters are read


class Engines:
    def __init__(self, world: World) -> None:
        self.world = world
        self.requests = 0  # in flight at the endpoint, ours
        self.counters = Counters()
        self.began: Pastime | None = None  # what healthy ranks are busy with, without an answer
        self.worked_at = 0.0  # the last moment of that

    @property
    def pastime(self) -> Pastime | None:
        if self.began is None or self.world.now >= self.began.until:
            return None
        self.worked_at = self.world.now
        return self.began

    def spawn(self, host: Host, number: int) -> None:
        """systemd started the script: the engine's top process and its rank exist."""
        if not host.up or host.spawning != number or host.stillborn:
            return
        host.spawning = None
        self.world.invariants.before_spawn(host, number)
        host.engine = Engine(number, host.prepared, flaw=host.bad_engine)
        if host.doomed:
            self.world.after(host.doomed.pop(0), lambda: self.kill(host, number, "all", "dies while it starts"))
        host.autopsy.pop(number, None)
        epoch = self._attempt(host, number)
        epoch.spawns[host.rank] = self.world.now
        epoch.deaths.pop(host.rank, None)  # a node that forgot the first one may start a second
        if host.bad_engine is not None:
            self.world.blame(number, host.bad_engine.says)
            self.world.after(host.rng.uniform(3, 10), lambda: self._dies_of_flaw(host, number))
        ranks = [
            h.engine for h in self.world.hosts if h.engine is not None and h.engine.whole and h.engine.epoch == number
        ]
        if len(ranks) == len(self.world.hosts) and not epoch.loading:
            epoch.loading = True
            self.world.after(self.world.load_s, lambda: self._loaded(epoch))

    def _attempt(self, host: Host, number: int) -> Epoch:
        """A number names one attempt for ever, unless every node that knew it has lost its state."""
        epoch = self.world.epoch(number)
        if host.rank in epoch.spawns:
            self.world.invariants.number_is_new(host, number)
            if not any(h.engine and h.engine.epoch == number for h in self.world.hosts if h is not host):
                epoch = self.world.epochs[number] = Epoch(number, blames=epoch.blames)
        return epoch

    def _dies_of_flaw(self, host: Host, number: int) -> None:
        engine = host.engine
        if engine is not None and engine.epoch == number and engine.flaw is not None:
            host.autopsy[number] = engine.flaw
            self.kill(host, number, "all", "exits by itself")

    def _loaded(self, epoch: Epoch) -> None:
        engine = self.world.head.engine
        if engine is None or engine.epoch != epoch.number or epoch.torn_in_init:
            return  # a peer that died during init leaves the head hanging silently
        if not all(h.up and self.world.linked(h, self.world.head) for h in self.world.hosts):
            self.world.after(1.0, lambda: self._loaded(epoch))
            return
        engine.ready = True
        self.world.later(self.world.head, 0.2, EngineReady(epoch.number))

    def kill(self, host: Host, number: int, what: str, why: str) -> None:
        """`what`: "top", "rank" or "all" of the launch dies."""
        engine = host.engine
        if engine is None or engine.epoch != number or not host.up:
            return
        self.world.log(f"{what} of epoch {number} {why}", host)
        self.died(host, engine)
        if what == "top":  # the orphan goes on serving
            self.world.blame(number, f"{host.name}: the top process died")
        else:
            self.world.tear(self.world.epoch(number), f"{host.name}: a rank died")
        engine.top = engine.top and what == "rank"
        engine.rank = engine.rank and what == "top"
        if host.rank == 0 and not engine.top:
            engine.ready = False
        if engine.gone:
            host.engine = None
        elif not engine.rank:
            self.world.after(host.rng.uniform(0.5, 2.5), lambda: self.kill(host, number, "top", "follows its rank"))
        says = f"the engine's {what} was killed by signal 9"
        self.world.later(host, 0.01, EngineGone(number, bad("engine.rank-died", says, cure=Cure.RELAUNCH)))

    def died(self, host: Host, engine: Engine) -> None:
        epoch = self.world.epoch(engine.epoch)
        epoch.deaths.setdefault(host.rank, self.world.now)
        head = self.world.head.engine
        if head is None or head.epoch != engine.epoch or not head.ready:
            epoch.torn_in_init = True
        if host.rank != 0:
            epoch.torn = True

    def end_engine(self, host: Host, number: int | None) -> None:
        """sparkd's own stop has had its way (`None`: whatever lives there)."""
        if host.spawning is not None and number in (None, host.spawning):
            host.spawning = None
        engine = host.engine
        if engine is not None and number in (None, engine.epoch):
            self.died(host, engine)
            self.world.epoch(engine.epoch).torn = True
            host.engine = None
        if number is None:
            host.stale.clear()
        else:
            host.stale.discard(number)

    def answer(self, number: int) -> str:
        """What a request sent now would meet: "ok", "error" (500 or refused) or "hang"."""
        head = self.world.head.engine
        if head is None or head.epoch != number or not head.ready or not head.whole:
            return "error"
        workers = [(host, host.engine) for host in self.world.hosts[1:]]
        if any(not self.world.linked(self.world.head, host) for host, _ in workers):
            return "hang"
        if any(engine is not None and engine.hung for engine in [head, *(e for _, e in workers)]):
            return "hang"
        if any(engine is None or engine.epoch != number or not engine.rank for _, engine in workers):
            return "error"
        if self.world.epoch(number).torn:
            return "error"
        return "hang" if self.pastime is not None else "ok"

    def ask(self, number: int, limit_s: float, done: Callable[[str], None]) -> None:
        """A completion: `done` gets "ok", "error" or "timeout"."""
        self.requests += 1
        self.world.after(self.world.between(0.1, 0.6), lambda: self._asked(number, self.world.now + limit_s, done))

    def _asked(self, number: int, deadline: float, done: Callable[[str], None]) -> None:
        met = self.answer(number)
        if met == "hang" and self.world.now < deadline:
            self.world.after(0.5, lambda: self._asked(number, deadline, done))
            return
        self.requests -= 1
        if met == "ok":
            self.world.epoch(number).answered_at = self.world.now
        if met == "error":
            self._fatal(number)
        done("timeout" if met == "hang" else met)

    def _fatal(self, number: int) -> None:
        """A request met a dead rank: 500, and the head's engine exits (with status 0) soon after."""
        engine = self.world.head.engine
        if engine is not None and engine.epoch == number and engine.ready:
            self.world.after(0.3, lambda: self.kill(self.world.head, number, "all", "exits after a fatal error"))

    def serve_clients(self) -> None:
        """Clients' requests, and the agent's reading of the counters. vLLM tells its gauges after each step: while one lasts
        they stay what they were, and what was sent meanwhile shows nowhere."""
        self.world.after(COUNT_S, self.serve_clients)
        engine = self.world.head.engine
        if engine is None or not engine.ready:
            return
        met, was, loaded = self.answer(engine.epoch), self.counters, self.world.loaded
        if met == "ok":
            active = self.requests + loaded
            self.counters = Counters(was.successes + loaded, was.movement + 100 * loaded, active, cache=0.1 * loaded)
            if loaded:
                self.world.epoch(engine.epoch).answered_at = self.world.now
        elif met == "error" and loaded:
            self._fatal(engine.epoch)
        elif met == "hang" and self.pastime is not None:
            self.counters = self.pastime.counted(was)
        self.world.later(self.world.head, 0.05, Counted(engine.epoch, self.counters))
