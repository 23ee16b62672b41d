"""The world: a heap of events on a virtual clock, hosts with power and daemons, the link between them.

Nothing here decides anything for a node: each daemon is `sparkd.control.node.step` with the state it holds. Everything
random comes from generators that are seeded with the schedule, so a schedule is a whole history.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable

from sim import effects, statefile
from sim.engines import COUNT_S, Engines
from sim.invariants import WORDS, Invariants
from sim.messages import Messages
from sim.truth import QUICK, Epoch, Host, Trip, Violation
from sim.vitals import measure_regularly
from sparkd.control import node, telling
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
TICK_S = 1.0  # a turn that nothing else asked for
TRACE_LINES = 250
QUIET = (Tick, Heard, Told, Counted, Silent, Inputs)  # too frequent to be told of


class World:
    def __init__(
        self,
        size: int = 2,
        *,
        seed: int = 0,
        limits: Limits = QUICK,
        load_s: float = 20.0,
        survives_s: float = 75.0,
    ) -> None:
        """`load_s`: from the last rank's start to a listening endpoint. `survives_s`: how long a link may be down before
        the engine's connections break (TCP: minutes, RoCE: seconds)."""
        self.seed, self.limits, self.load_s, self.survives_s = seed, limits, load_s, survives_s
        self.rng = random.Random(seed)
        self.now = 0.0
        self.hosts = [Host(rank, f"spark{rank + 1}", random.Random(f"{seed}/{rank}")) for rank in range(size)]
        self.epochs: dict[int, Epoch] = {}
        self.forgetful = False  # a state file was lost, or is not what was saved last
        self.faults_end_at = 0.0
        self.loaded = False  # clients send requests all the time
        self.watchdog_s = limits.link_loss_max_s * 2 / 3  # as 30 s are to 45 s
        self.vitals = True  # the nodes can look at their part of the engine from outside
        self.notes: list[tuple[float, str, Note]] = []
        self.starts: dict[str, list[int]] = {host.name: [] for host in self.hosts}  # epochs whose Start was asked for
        self.stops: dict[str, list[int]] = {host.name: [] for host in self.hosts}
        self.trace: deque[tuple[float, str, object]] = deque(maxlen=TRACE_LINES)
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
        end, heap = self.now + seconds, self._heap
        while heap and heap[0][0] <= end:
            self.now, _, do = heapq.heappop(heap)
            do()
        self.now = end

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
        return telling.reason(host.state, self.clock(host)) if host.state else "no daemon"

    def serving(self) -> bool:
        """Every node says that it serves, in one epoch."""
        epoch = self.head.state.epoch if self.head.state else None
        return all(
            h.state is not None and h.state.phase is Phase.SERVING and h.state.epoch == epoch for h in self.hosts
        )

    def noted(self, id: str) -> list[str]:
        return [note.says for _, _, note in self.notes if note.id == id]

    def log(self, text: str, host: Host | None = None) -> None:
        self.trace.append((self.now, host.name if host else "world", text))

    def lines(self) -> list[str]:
        """What happened last, for a person. Put into words only here: nobody reads the trace of a good history."""
        return [f"{at:9.2f} {who:6} {_line(what)}" for at, who, what in self.trace]

    def fail(self, invariant: int, what: str) -> None:
        where = [f"{h.name}: {phase}: {self.reason(h)}" for h, phase in zip(self.hosts, self.phases(), strict=True)]
        broken = f"invariant {invariant} ({WORDS[invariant]}) does not hold at {self.now:.2f} s: {what}"
        raise Violation(invariant, what, "\n".join([broken, *self.lines(), *where, broken]))

    # --- power, daemons, links -----------------------------------------------------------------------

    def clock(self, host: Host) -> float:
        """A daemon knows only the monotonic clock of its host, which starts anew at boot."""
        return self.now - host.booted_at + 5.0

    def power_on(self, host: Host, *, docker_s: float = 1.0) -> None:
        if host.up:
            return
        host.up, host.boot, host.booted_at, host.power_changed_at = True, host.boot + 1, self.now, self.now
        host.docker_at, host.memory_at = self.now + docker_s, self.now
        host.launched.clear()
        host.claimed.clear()
        self.log(f"boots ({host.boot_id})", host)
        boot = host.boot
        self.after(host.rng.uniform(1.0, 2.0), lambda: self.daemon_up(host) if host.up and host.boot == boot else None)

    def power_off(self, host: Host) -> None:
        if not host.up:
            return
        self.log("loses power", host)
        if host.engine is not None:
            self.blame(host.engine.epoch, f"{host.name} lost power")
            self.engines.died(host, host.engine)
        host.up, host.power_changed_at = False, self.now
        self.daemon_down(host)
        host.engine, host.spawning, host.strangers, host.port_taken = None, None, 0, False
        host.stale.clear()

    def daemon_up(self, host: Host) -> None:
        if not host.up or host.daemon:
            return
        names = tuple(h.name for h in self.hosts)
        host.life, host.life_began_at, host.said = host.life + 1, self.now, None
        host.state = node.begin(Me(host.name, host.rank, names, host.boot_id, "0.1.0", self.limits))
        saved = statefile.load(self, host)
        engine = host.engine
        intact = (engine.epoch,) if engine is not None and engine.whole else ()
        broken = tuple(sorted(host.stale | {engine.epoch})) if engine is not None and not engine.whole else ()
        broken = broken or tuple(sorted(host.stale))
        adopts = saved is not None and saved.launch_epoch in intact and host.kept_plan is not None
        host.loaded, host.profile = host.kept_plan if adopts and host.kept_plan else (host.digests.plan, None)
        self.invariants.daemon_starts(host, saved)
        life = host.life
        self.deliver(host, Started(saved, intact, broken))
        if host.life != life:
            return
        if engine is not None and engine.ready and engine.whole:
            self.later(host, 0.3, EngineReady(engine.epoch))
        self.after(TICK_S, lambda: self._tick(host, life))
        self.messages.start(host)

    def daemon_down(self, host: Host) -> None:
        if host.state is None:
            return
        self.log("sparkd ends", host)
        if host.state.phase in (Phase.ARMED, Phase.LAUNCHING) or self.half_open():
            self.blame(host.state.intent.epoch, "sparkd ended between the barrier and the launch")
        host.state, host.lane_busy, host.inbox = None, False, None
        host.lane.clear()
        host.life += 1
        self.messages.stop(host)

    def freeze(self, host: Host, seconds: float) -> None:
        """SIGSTOP: the daemon stands still until SIGCONT, or until the watchdog ends it. The engine does not notice."""
        if not host.awake:
            return
        self.log(f"sparkd is frozen for {seconds:.1f} s", host)
        host.inbox, host.frozen_at = [], self.now
        life, since = host.life, self.now
        if seconds > LINK_BLAME_S * self.limits.link_loss_max_s:
            for epoch in self._living_epochs():
                self.blame(epoch.number, f"{host.name} was frozen for long")
        if seconds > self.watchdog_s:
            self.after(self.watchdog_s, lambda: self._watchdog(host, life, since))
        else:
            self.after(seconds, lambda: self.thaw(host, life))

    def _watchdog(self, host: Host, life: int, since: float) -> None:
        """It ends what stands still, not what was woken meanwhile."""
        if host.life == life and host.inbox is not None and host.frozen_at == since:
            self.end_daemon(host, 1.5)

    def thaw(self, host: Host, life: int) -> None:
        if host.life != life or host.inbox is None:
            return
        self.log("sparkd goes on", host)
        waiting, host.inbox, host.thawed_at = host.inbox, None, self.now
        for do in waiting:
            if host.life == life:
                do()

    def end_daemon(self, host: Host, away_s: float) -> None:
        self.daemon_down(host)
        boot = host.boot
        self.after(away_s, lambda: self.daemon_up(host) if host.boot == boot else None)

    def epoch_wanted(self) -> int:
        return self.head.state.intent.epoch if self.head.state else 0

    def half_open(self) -> bool:
        return self.head.state is not None and self.head.state.intent.gate == "workers"

    def lose_state(self, host: Host, fate: str = "lost") -> None:
        """The state file is not what was saved last when the daemon looks for it next: see statefile.py."""
        self.log(f"state file {fate}", host)
        host.fate, host.disk_lost, self.forgetful = fate, True, True
        for engine in (h.engine for h in self.hosts if h.engine is not None):
            self.blame(engine.epoch, f"{host.name}: state file {fate}")
        self.blame(self.epoch_wanted(), f"{host.name}: state file {fate}")

    def set_link(self, host: Host, up: bool, *, hears: bool = True, is_heard: bool = True) -> None:
        if (host.link, host.hears, host.is_heard) == (up, hears, is_heard):
            return
        self.log(f"link {'up' if up else 'down'}{'' if hears else ', deaf'}{'' if is_heard else ', mute'}", host)
        host.link, host.hears, host.is_heard, host.link_changed_at = up, hears, is_heard, self.now
        if not (up and hears and is_heard):
            since = self.now
            self.after(1.0, lambda: self._link_is_down(host, since))

    def _link_is_down(self, host: Host, since: float) -> None:
        if host.link_changed_at != since or (host.link and host.hears and host.is_heard):  # it came back, maybe at once
            return
        for epoch in self._living_epochs():
            epoch.link_down_s += 1.0
            if epoch.link_down_s > LINK_BLAME_S * self.limits.link_loss_max_s:
                self.blame(epoch.number, "the link was down for long")
            if self.now - since >= self.survives_s:
                self.tear(epoch, "the link was down for longer than its connections live")
        self.after(1.0, lambda: self._link_is_down(host, since))

    def linked(self, a: Host, b: Host) -> bool:
        """Both ways."""
        return a.up and b.up and a.link and b.link and a.hears and b.hears and a.is_heard and b.is_heard

    # --- the daemon's loop ---------------------------------------------------------------------------

    def deliver(self, host: Host, event: Event) -> None:
        before = host.state
        if before is None:
            return
        if host.inbox is not None:
            host.inbox.append(lambda: self.deliver(host, event))
            return
        host.turned_at = self.now
        host.state, actions = node.step(before, event, self.clock(host))
        if host.state is before and not actions:
            self.invariants.as_time_passes(host, before)
            return
        self._trace_step(host, before, event, host.state)
        self.invariants.after_step(host, before, event, host.state, actions)
        life = host.life
        for action in actions:
            if host.trip is not None and self._trips(host, action, is_after=False):
                return
            self._act(host, action)
            if host.life != life or (host.trip is not None and self._trips(host, action, is_after=True)):
                return

    def later(self, host: Host, delay_s: float, event: Event) -> None:
        """Deliver to this life of the daemon, or not at all."""
        life = host.life
        self.after(delay_s, lambda: self.deliver(host, event) if host.life == life else None)

    def _trips(self, host: Host, action: Action, *, is_after: bool) -> bool:
        """Whether the daemon's life ends here, in the middle of what it does."""
        trip = host.trip
        if trip is None or trip.on not in ("any", type(action).__name__):
            return False
        if self.now > trip.until:
            host.trip = None
            return False
        if trip.is_after is not is_after:
            return False
        if trip.left > 0:
            host.trip = Trip(trip.on, trip.left - 1, trip.is_after, trip.takes_power, trip.away_s, trip.until)
            return False
        host.trip = None
        self.log(f"ends {'after' if is_after else 'before'} {type(action).__name__}", host)
        if trip.takes_power:
            self.power_off(host)
            self.after(trip.away_s, lambda: self.power_on(host))
        else:
            self.end_daemon(host, trip.away_s)
        return True

    def _trace_step(self, host: Host, before: NodeState, event: Event, after: NodeState) -> None:
        moved = before.phase is not after.phase
        if moved or not isinstance(event, QUIET):
            self.trace.append((self.now, host.name, event))
        if moved or before.intent.gate is not after.intent.gate:
            self.trace.append((self.now, host.name, (after.phase, after.epoch, after.intent.epoch, after.intent.gate)))

    def _act(self, host: Host, action: Action) -> None:
        match action:
            case Save(saved=saved):
                host.disk, host.disk_lost, host.fate = saved, False, "kept"
                host.saves.append(saved)
            case Note():
                self.notes.append((self.now, host.name, action))
                self.trace.append((self.now, host.name, action))
            case Tell():
                self.messages.tell(host)
            case _:
                effects.carry_out(self, host, action)

    def _tick(self, host: Host, life: int) -> None:
        if host.life != life:
            return
        if host.inbox is None and self.now >= host.turned_at + TICK_S - 1e-6:
            self.deliver(host, Tick())
        self.after(max(0.1, host.turned_at + TICK_S - self.now), lambda: self._tick(host, life))

    def operator(self, verb: str, profile: str | None = None) -> None:
        if not self.head.awake:
            return
        self.log(f"operator: {verb} {profile or ''}")
        for engine in (h.engine for h in self.hosts if h.engine is not None):
            self.blame(engine.epoch, f"operator: {verb}")
        self.blame(self.epoch_wanted(), f"operator: {verb}")
        self.invariants.operator_spoke()
        self.deliver(self.head, Asked(verb, profile))

    # --- the ledger of epochs ---

    def epoch(self, number: int) -> Epoch:
        found = self.epochs.get(number)
        if found is None:
            found = self.epochs[number] = Epoch(number)
        return found

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


def _line(what: object) -> str:
    if isinstance(what, str):
        return what
    if isinstance(what, Note):
        return f"* {what.id}: {what.says}"[:230]
    if isinstance(what, tuple):
        phase, epoch, wanted, gate = what
        return f"  is {phase} (epoch {epoch}; intent {wanted} {gate})"
    return f"< {what}"[:230]
