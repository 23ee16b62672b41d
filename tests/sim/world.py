"""The world: a heap of events on a virtual clock, hosts with power and daemons, the link between them.

Nothing here decides anything for a node: each daemon is `sparkd.control.node.step` with the state it holds. Everything
random comes from one seeded generator, so a seed is a whole history.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable

from sim import effects
from sim.engines import COUNT_S, Engines
from sim.invariants import Invariants
from sim.messages import Messages
from sim.truth import QUICK, Epoch, Host, Violation
from sim.vitals import measure_regularly
from sparkd.control import node
from sparkd.control.state import (
    Action,
    Asked,
    Counted,
    EngineReady,
    Event,
    Heard,
    Inputs,
    Me,
    NodeState,
    Note,
    Save,
    Silent,
    Started,
    Tell,
    Tick,
    Told,
)
from sparkd.model.cluster import Limits
from sparkd.model.report import Phase

LINK_BLAME_S = 0.5  # of `link_loss_max_s`: shorter interruptions must not end anything


class World:
    def __init__(
        self,
        size: int = 2,
        *,
        seed: int = 0,
        limits: Limits = QUICK,
        load_s: float = 20.0,
        survives_s: float = 75.0,
        lost: float = 0.0,
    ) -> None:
        """`load_s`: from the last rank's start to a listening endpoint. `survives_s`: how long a link may be down before
        the engine's connections break (TCP: minutes, RoCE: seconds). `lost`: the share of messages that get lost."""
        self.seed, self.limits, self.load_s, self.survives_s, self.lost = seed, limits, load_s, survives_s, lost
        self.rng = random.Random(seed)
        self.now = 0.0
        self.hosts = [Host(rank, f"spark{rank + 1}") for rank in range(size)]
        self.epochs: dict[int, Epoch] = {}
        self.forgetful = False  # a state file was lost
        self.loaded = False  # clients send requests all the time
        self.vitals = True  # the nodes can look at their part of the engine from outside
        self.notes: list[tuple[float, str, Note]] = []
        self.starts: dict[str, list[int]] = {host.name: [] for host in self.hosts}  # epochs whose Start was asked for
        self.stops: dict[str, list[int]] = {host.name: [] for host in self.hosts}
        self.trace: deque[str] = deque(maxlen=250)
        self.invariants = Invariants(self)
        self.engines = Engines(self)
        self.messages = Messages(self)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.after(COUNT_S, self.engines.serve_clients)
        measure_regularly(self)

    # --- time ------------------------------------------------------------------------------------

    def after(self, delay_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay_s, next(self._order), do))

    def run(self, seconds: float) -> None:
        self.run_until(lambda: False, seconds)

    def run_until(self, reached: Callable[[], bool], limit_s: float) -> bool:
        """Go on until `reached`, for at most `limit_s` virtual seconds. True when it was reached."""
        end = self.now + limit_s
        while not reached():
            if not self._heap or self._heap[0][0] > end:
                self.now = end
                return False
            self.now, _, do = heapq.heappop(self._heap)
            do()
        return True

    def between(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)

    # --- what tests look at ------------------------------------------------------------------------

    @property
    def head(self) -> Host:
        return self.hosts[0]

    def phases(self) -> list[str]:
        return [str(h.state.phase) if h.state else "no daemon" if h.up else "off" for h in self.hosts]

    def reasons(self) -> list[str]:
        return [self.reason(h) for h in self.hosts]

    def reason(self, host: Host) -> str:
        return node.reason(host.state, self.clock(host)) if host.state else "no daemon"

    def serving(self) -> bool:
        """Every node says that it serves, in one epoch."""
        states = [host.state for host in self.hosts]
        return (
            all(s is not None and s.phase is Phase.SERVING for s in states) and len({s.epoch for s in states if s}) == 1
        )

    def noted(self, id: str) -> list[str]:
        return [note.says for _, _, note in self.notes if note.id == id]

    def log(self, text: str, host: Host | None = None) -> None:
        self.trace.append(f"{self.now:9.2f} {host.name if host else 'world ':6} {text}")

    def fail(self, what: str) -> None:
        lines = "\n".join(self.trace)
        where = "\n".join(
            f"{h.name}: {phase}: {self.reason(h)}" for h, phase in zip(self.hosts, self.phases(), strict=True)
        )
        raise Violation(f"seed {self.seed} at {self.now:.2f} s: {what}\n{lines}\n{where}\n{what}")

    # --- power, daemons, links -----------------------------------------------------------------------

    def clock(self, host: Host) -> float:
        """A daemon knows only the monotonic clock of its host, which starts anew at boot."""
        return self.now - host.booted_at + 5.0

    def power_on(self, host: Host, *, docker_s: float = 1.0) -> None:
        if host.up:
            return
        host.up, host.boot, host.booted_at = True, host.boot + 1, self.now
        host.docker_at, host.memory_at = self.now + docker_s, self.now
        self.log(f"boots ({host.boot_id})", host)
        boot = host.boot
        self.after(self.between(1.0, 2.0), lambda: self.daemon_up(host) if host.up and host.boot == boot else None)

    def power_off(self, host: Host) -> None:
        if not host.up:
            return
        self.log("loses power", host)
        if host.engine is not None:
            self.blame(host.engine.epoch, f"{host.name} lost power")
            self.engines.died(host, host.engine)
        self.daemon_down(host)
        host.up, host.engine, host.spawning = False, None, None

    def daemon_up(self, host: Host) -> None:
        if not host.up or host.daemon:
            return
        names = tuple(h.name for h in self.hosts)
        host.life, host.life_began_at = host.life + 1, self.now
        host.state = node.begin(Me(host.name, host.rank, names, host.boot_id, "0.1.0", self.limits))
        engine = host.engine
        intact = (engine.epoch,) if engine is not None and engine.whole else ()
        broken = (engine.epoch,) if engine is not None and not engine.whole else ()
        self.invariants.daemon_starts(host)
        self.deliver(host, Started(host.disk, intact, broken))
        if engine is not None and engine.ready and engine.whole:
            self.later(host, 0.3, EngineReady(engine.epoch))
        self._tick(host, host.life)
        for peer in self.messages.counterparts(host):
            self.messages.exchange_regularly(host, peer, host.life)

    def daemon_down(self, host: Host) -> None:
        if host.state is None:
            return
        self.log("sparkd ends", host)
        if host.state.phase in (Phase.ARMED, Phase.LAUNCHING) or self.half_open():
            self.blame(host.state.intent.epoch, "sparkd ended between the barrier and the launch")
        host.state, host.lane_busy = None, False
        host.lane.clear()
        host.exchanging.clear()
        host.life += 1

    def epoch_wanted(self) -> int:
        return self.head.state.intent.epoch if self.head.state else 0

    def half_open(self) -> bool:
        return self.head.state is not None and self.head.state.intent.gate == "workers"

    def lose_state(self, host: Host) -> None:
        """The state file is gone when the daemon looks for it next."""
        self.log("state file lost", host)
        host.disk, host.disk_lost, self.forgetful = None, True, True
        for engine in (h.engine for h in self.hosts if h.engine is not None):
            self.blame(engine.epoch, f"{host.name} forgot it")

    def set_link(self, host: Host, up: bool) -> None:
        if host.link == up:
            return
        self.log(f"link {'up' if up else 'down'}", host)
        host.link, host.link_changed_at = up, self.now
        if not up:
            self.after(1.0, lambda: self._link_is_down(host, host.link_changed_at))

    def _link_is_down(self, host: Host, since: float) -> None:
        if host.link or host.link_changed_at != since:
            return
        for epoch in self._living_epochs():
            epoch.link_down_s += 1.0
            if epoch.link_down_s > LINK_BLAME_S * self.limits.link_loss_max_s:
                self.blame(epoch.number, "the link was down for long")
            if self.now - since >= self.survives_s:
                self.tear(epoch, "the link was down for longer than its connections live")
        self.after(1.0, lambda: self._link_is_down(host, since))

    def linked(self, a: Host, b: Host) -> bool:
        return a.up and b.up and a.link and b.link

    def reach(self, a: Host, b: Host) -> str:
        if not self.linked(a, b):
            return "unreachable"
        return "yes" if b.daemon else "refused"

    # --- the daemon's loop ---------------------------------------------------------------------------

    def deliver(self, host: Host, event: Event) -> None:
        if host.state is None:
            return
        before = host.state
        host.state, actions = node.step(before, event, self.clock(host))
        self._trace_step(host, before, event, host.state)
        self.invariants.after_step(host, before, event, host.state, actions)
        for action in actions:
            self._act(host, action)

    def later(self, host: Host, delay_s: float, event: Event) -> None:
        """Deliver to this life of the daemon, or not at all."""
        life = host.life
        self.after(delay_s, lambda: self.deliver(host, event) if host.life == life else None)

    def _trace_step(self, host: Host, before: NodeState, event: Event, after: NodeState) -> None:
        if not isinstance(event, Tick | Heard | Told | Counted | Silent | Inputs) or before.phase is not after.phase:
            self.log(f"< {event}"[:230], host)
        if before.phase is not after.phase or before.intent.gate != after.intent.gate:
            self.log(f"  is {after.phase} (epoch {after.epoch}; intent {after.intent.epoch} {after.intent.gate})", host)

    def _act(self, host: Host, action: Action) -> None:
        match action:
            case Save(saved=saved):
                host.disk, host.disk_lost = saved, False
            case Note():
                self.notes.append((self.now, host.name, action))
                self.log(f"* {action.id}: {action.says}"[:230], host)
            case Tell():
                for peer in self.messages.counterparts(host):
                    self.messages.tell(host, peer)
            case _:
                effects.carry_out(self, host, action)

    def _tick(self, host: Host, life: int) -> None:
        if host.life != life:
            return
        self.deliver(host, Tick())
        self.after(1.0, lambda: self._tick(host, life))

    def operator(self, verb: str) -> None:
        if self.head.state is None:
            return
        self.log(f"operator: {verb}")
        for engine in (h.engine for h in self.hosts if h.engine is not None):
            self.blame(engine.epoch, f"operator: {verb}")
        self.blame(self.head.state.intent.epoch, f"operator: {verb}")
        self.invariants.operator_spoke()
        self.deliver(self.head, Asked(verb))

    # --- the ledger of epochs ---

    def epoch(self, number: int) -> Epoch:
        return self.epochs.setdefault(number, Epoch(number))

    def blame(self, number: int, why: str) -> None:
        """From now on the end of this epoch is nobody's mistake."""
        if why not in self.epoch(number).blames:
            self.epoch(number).blames.append(why)

    def _living_epochs(self) -> list[Epoch]:
        return [self.epoch(n) for n in sorted({h.engine.epoch for h in self.hosts if h.engine is not None})]

    def tear(self, epoch: Epoch, why: str) -> None:
        if not epoch.torn:
            self.log(f"epoch {epoch.number}: {why}")
        epoch.torn = True
        self.blame(epoch.number, why)
