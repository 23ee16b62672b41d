"""What must hold after every event, judged by the truth of the world, not by what a state claims (DESIGN.md section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.truth import Host
from sparkd.control import moves, telling
from sparkd.control.state import (
    Action,
    Asked,
    EngineGone,
    Event,
    Inputs,
    NodeState,
    Note,
    Prepare,
    Save,
    Start,
    Started,
    Stop,
)
from sparkd.model.finding import Cure
from sparkd.model.report import Gate, Phase, Saved

if TYPE_CHECKING:
    from sim.world import World

WORDS = {
    0: "a rule of the house besides the ten",
    1: "At most one launch lives on a node, and its launch id is that node's current epoch",
    2: "The head's engine never starts before every worker's engine of that epoch is alive",
    3: "No engine starts over stale processes, taken ports, or too little memory",
    4: "All ranks of an epoch run the same plan, image and weights",
    5: "`serving` is claimed only with a successful real completion on this epoch, no older than the canary allows",
    6: "A failure that a relaunch cannot cure is never retried blindly",
    7: "sparkd never signals a process, unlinks a segment or removes a container that it cannot prove to be its own",
    8: "Restarting or upgrading sparkd never disturbs a serving engine",
    9: "When faults stop, the pair reaches `serving` without a person, unless it is `blocked`",
    10: "A lost or corrupt state file costs at most a restart, never a wrong action",
}
IN_FLIGHT_S = 5.0  # how old a truth may be when another node acts on it: a fresh report, an exchange, a start
TEARDOWN_S = 1.5  # from a death to the Stop on every node
NOISE_S = 5.0  # how long a message may be under way
NOISE_MAX_S = 60.0
BARRIER_MAX_S = 5.0  # an exchange that is resting or waits in vain, and the next one
HALF_MAX_S = 20.0  # beyond `link_loss_max_s`: time-outs of exchanges, a frozen daemon
ACTIONS_MAX_PER_S = 60


class Invariants:
    def __init__(self, world: World) -> None:
        self.world = world
        self._second = -1
        self._actions: dict[str, int] = {}
        self._epoch_seen: dict[str, int] = {}
        self._used: dict[str, int] = {}  # node: what the budget was known to have cost
        self._served_since: float | None = None  # the head, without a pause
        self._needs_person: dict[str, str] = {}  # node: what it was told that only a person can mend
        self._just_told: set[str] = set()  # nodes that were told so in their last step
        self._barrier = 0  # the epoch whose half-open barrier is watched

    # --- a daemon's step ---------------------------------------------------------------------------

    def daemon_starts(self, host: Host, saved: Saved | None) -> None:
        """A number falls only with the memory of it: nothing was told or done that was not saved before."""
        self._epoch_seen[host.name] = saved.epoch if saved is not None else 0
        if saved is not None and saved.launch_epoch is not None and saved.boot_id == host.boot_id:
            host.claimed.add(saved.launch_epoch)
        self._used[host.name] = saved.restarts_used if saved is not None else 0
        unsaved = host.name in self._just_told and (saved is None or saved.blocked is None)
        if saved is None or host.disk_lost or unsaved:  # invariant 10: this is the restart that it may cost
            self._needs_person.pop(host.name, None)

    def as_time_passes(self, host: Host, state: NodeState) -> None:
        """After a step that changed nothing."""
        if state.phase is Phase.SERVING:
            self._serving_is_proven(host, state)
        if host.rank and state.phase.has_engine:
            self._useless_half_ends(host)

    def after_step(self, host: Host, before: NodeState, event: Event, after: NodeState, actions: list[Action]) -> None:
        if after.phase is Phase.SERVING:
            self._serving_is_proven(host, after)
        if host.rank and after.phase.has_engine:
            self._useless_half_ends(host)
        if after.intent is not before.intent or after.phase is not before.phase:
            self._epochs_grow(host, after)
            self._barrier_is_kept(host, after)
        if after.me.is_head:
            self._budget_is_kept(host, before, event, after, actions)
            self._barrier_moves_on(before, after)
            self._stop_is_kept(host, before, event, after)
        if not actions:
            return
        self._bounded(host, actions)
        self._saved_first(host, after, actions)
        for action in actions:
            if isinstance(action, Stop):
                self._stop_is_ours(host, action)
                self._stop_has_cause(host, action)
            elif isinstance(action, Prepare) and after.launch is not None:
                self.world.fail(7, f"{host.name}: prepares while it holds epoch {after.launch.epoch}")
            elif isinstance(action, Start) and (after.launch is None or after.launch.epoch != action.epoch):
                self.world.fail(1, f"{host.name}: starts epoch {action.epoch}, which is not its launch")
        self._person_is_waited_for(host, before, event, after, actions)
        if isinstance(event, EngineGone) and after.loss is not before.loss:
            self._teardown_follows(host, event.epoch)
        self._nothing_lives_unheld(host, after)
        if not telling.reason(after, self.world.clock(host)):
            self.world.fail(0, f"{host.name}: does not say why it is {after.phase}")

    def _bounded(self, host: Host, actions: list[Action]) -> None:
        if int(self.world.now) != self._second:
            self._second, self._actions = int(self.world.now), {}
        count = self._actions.get(host.name, 0) + len(actions)
        self._actions[host.name] = count
        if count > ACTIONS_MAX_PER_S:
            self.world.fail(0, f"{host.name}: {count} actions within a second: a livelock")

    def _epochs_grow(self, host: Host, after: NodeState) -> None:
        known = self._epoch_seen.get(host.name, 0)
        epoch = max(after.epoch, after.intent.epoch if after.me.is_head else 0)
        if epoch < known:
            self.world.fail(1, f"{host.name}: epoch {epoch} after {known}")
        self._epoch_seen[host.name] = epoch

    def _barrier_is_kept(self, host: Host, after: NodeState) -> None:
        opened = after.intent.gate is Gate.WORKERS or after.intent.gate is Gate.ALL
        if after.me.is_head and opened and after.phase in moves.PREPARING:
            self.world.fail(2, f"{host.name}: opened the barrier and is not ready itself")

    def _saved_first(self, host: Host, after: NodeState, actions: list[Action]) -> None:
        """Invariant 10, the other way round: what would be read back after a crash right before any act is what the act
        is based on."""
        on_disk, wanted = host.disk, telling.saved(after)
        for action in actions:
            if isinstance(action, Save):
                on_disk = action.saved
            elif not isinstance(action, Note) and not host.disk_lost and on_disk != wanted:
                self.world.fail(10, f"{host.name}: {type(action).__name__} before the state was saved")

    def _stop_is_ours(self, host: Host, action: Stop) -> None:
        if action.epoch not in host.launched | host.stale | host.claimed:
            self.world.fail(7, f"{host.name}: stops epoch {action.epoch}, which was never started here")

    def _stop_has_cause(self, host: Host, action: Stop) -> None:
        """Nothing that could serve is stopped without a reason that is real: not by a restart of sparkd (8), and not by
        what a lost state file left behind, once that has cost its one restart (10)."""
        epoch = self.world.epochs.get(action.epoch)
        if epoch is not None and epoch.spawns and not epoch.blames:
            number = 10 if self.world.forgetful else 8
            self.world.fail(number, f"{host.name}: stops epoch {action.epoch}, which nothing happened to")

    def _nothing_lives_unheld(self, host: Host, after: NodeState) -> None:
        """Invariant 1: once the daemon has looked, an engine that lives is its launch, or about to be ended."""
        held = after.launch.epoch if after.launch is not None else None
        engine = host.engine
        if engine is None or engine.epoch in (held, *after.leftovers):
            return
        if after.phase not in moves.PREPARING:
            self.world.fail(1, f"{host.name}: an engine of epoch {engine.epoch} lives, the node holds {held}")

    # --- what needs a person -------------------------------------------------------------------------

    def inputs_changed(self, host: Host) -> None:
        self._needs_person.pop(host.name, None)

    def operator_spoke(self) -> None:
        self._needs_person.clear()

    def _budget_is_kept(
        self, host: Host, before: NodeState, event: Event, after: NodeState, actions: list[Action]
    ) -> None:
        """Invariant 6: each lost epoch costs one; only serving for long, a person, or a mended input give any back."""
        held = self._served_since is not None and self.world.now - self._served_since > self.world.limits.hold_s
        if after.phase is not Phase.SERVING:
            self._served_since = None
        elif self._served_since is None:
            self._served_since = self.world.now
        used, known = after.restarts_used, self._used.get(host.name, 0)
        self._used[host.name] = used
        if held and any(isinstance(action, Note) and action.id == "engine.held" for action in actions):
            known = 0  # given back in this very step, before what else happened in it
        if used < known and not (held or isinstance(event, Asked | Inputs)):
            self.world.fail(6, f"{host.name}: {known} lost epochs have become {used}")
        begins = after.intent.epoch > before.intent.epoch > 0
        if begins and used > self.world.limits.restarts_max:
            self.world.fail(6, f"{host.name}: hands out epoch {after.intent.epoch} after {used} lost ones")
        opened = before.intent.gate in (Gate.WORKERS, Gate.ALL) and before.intent.run
        ended = after.intent.epoch != before.intent.epoch or after.intent.gate is Gate.ENDED
        behind = after.ended is not None and after.ended.finding.id == "state.epoch-behind"
        if opened and ended and used <= known and not behind and not isinstance(event, Asked | Started):
            self.world.fail(6, f"{host.name}: the end of epoch {before.intent.epoch} cost nothing of the budget")

    def _person_is_waited_for(
        self, host: Host, before: NodeState, event: Event, after: NodeState, actions: list[Action]
    ) -> None:
        """Invariant 6: what only a person can mend is never started again before a person did something."""
        if after.generation > before.generation:  # the operator's word arrives later than it was said
            self._needs_person.pop(host.name, None)
        self._just_told.discard(host.name)  # the daemon that was told has lived on, so it is on disk
        for action in actions:
            if isinstance(action, Start) and host.name in self._needs_person:
                self.world.fail(6, f"{host.name}: starts again although: {self._needs_person[host.name]}")
        stopped = before.launch.epoch if before.launch is not None else before.epoch
        lost = after.loss is not None and after.loss.epoch == stopped and after.loss.finding.cure is Cure.PERSON
        if before.phase is Phase.STOPPING and after.phase is not Phase.STOPPING and lost and after.intent.run:
            if after.phase is not Phase.BLOCKED or after.blocked is None:
                self.world.fail(6, f"{host.name}: is not blocked by what only a person can mend")
            else:
                self._needs_person[host.name] = after.blocked.says
                self._just_told.add(host.name)

    def _stop_is_kept(self, host: Host, before: NodeState, event: Event, after: NodeState) -> None:
        """Nothing but the operator's word changes whether the model is to run: no restart, and no state file that was kept."""
        wanted = before.intent.run
        if isinstance(event, Started) and event.saved is not None:
            wanted = event.saved.run
        if after.intent.run is not wanted and not isinstance(event, Asked):
            self.world.fail(0, f"{host.name}: run has become {after.intent.run}, and nobody asked")

    # --- the barrier, half open ------------------------------------------------------------------------

    def _barrier_moves_on(self, before: NodeState, after: NodeState) -> None:
        """Once every worker's engine lives, the head launches: only what kept its word from the head excuses a time-out."""
        intent, number = after.intent, before.intent.epoch
        if intent.gate is Gate.WORKERS and intent.run and self._barrier != intent.epoch:
            self._barrier = intent.epoch
            self._watch_barrier(intent.epoch, calm_since=None)
        timed_out = after.ended is not None and after.ended.finding.id == "engine.start-timeout"
        if timed_out and before.intent.gate is Gate.WORKERS and before.ended is not after.ended:
            self.world.blame(number, "not every worker's engine was known to live in time")

    def _watch_barrier(self, number: int, calm_since: float | None) -> None:
        world, head = self.world, self.world.head.state
        if head is None or head.intent.epoch != number or head.intent.gate is not Gate.WORKERS or not head.intent.run:
            self._barrier = 0
            return
        if not self._is_barrier_calm(number):
            calm_since = None
        elif calm_since is None:
            calm_since = world.now
        elif world.now - calm_since > BARRIER_MAX_S:
            calm_s = world.now - calm_since
            world.fail(
                9, f"every worker's engine of epoch {number} lives since {calm_s:.0f} s, and the head does not launch"
            )
        world.after(1.0, lambda: self._watch_barrier(number, calm_since))

    def _is_barrier_calm(self, number: int) -> bool:
        world = self.world
        lives = all(h.engine is not None and h.engine.whole and h.engine.epoch == number for h in world.hosts[1:])
        connected = all(h.awake and world.linked(h, world.head) for h in world.hosts)
        return lives and connected and world.now - world.messages.troubled_at > 1.0

    # --- the end of an epoch ---------------------------------------------------------------------------

    def _teardown_follows(self, host: Host, number: int) -> None:
        """An epoch that one node has left is dead for every node, and soon: the way to invariant 9."""
        world, at = self.world, self.world.now
        lives = [h.life for h in world.hosts]
        noisy = world.messages.noisy
        told_after: list[float] = []  # where messages get lost or come late: two rounds that came through

        def disturbed() -> bool:
            calm_at = at - 4
            if lives != [h.life for h in world.hosts] or any(h.life_began_at > calm_at for h in world.hosts):
                return True
            moments = (max(h.link_changed_at, h.frozen_at, h.thawed_at, h.refused_until) for h in world.hosts)
            connected = all(h.awake and world.linked(h, world.head) for h in world.hosts)
            return not connected or max(moments) > calm_at

        def check() -> None:
            if disturbed() or world.now - at > NOISE_MAX_S:
                return
            if (noisy or world.messages.noisy) and len(told_after) < 2:
                since = told_after[-1] if told_after else at
                if all(h.told_at > since + NOISE_S for h in world.hosts[1:]):
                    told_after.append(world.now)
                world.after(1.0, check)
                return
            late = [h.name for h in world.hosts if h.state and h.state.phase.has_engine and h.state.epoch == number]
            if late:
                what = f"epoch {number} was lost on {host.name} at {at:.2f} s and still lives on {', '.join(late)}"
                world.fail(9, what)

        world.after(TEARDOWN_S, check)

    def _useless_half_ends(self, host: Host) -> None:
        """A worker cut off from its head for long, by an unbroken cut, does not hold its half for ever (9)."""
        world, head = self.world, self.world.head
        if world.linked(host, head) or host.frozen_at > world.now - HALF_MAX_S:
            return
        since = max(host.link_changed_at, head.link_changed_at, head.power_changed_at, host.life_began_at)
        if world.now - since > world.limits.link_loss_max_s + HALF_MAX_S:
            world.fail(
                9, f"{host.name}: holds its half of the engine {world.now - since:.0f} s after the head was lost"
            )

    def _serving_is_proven(self, host: Host, after: NodeState) -> None:
        epoch, limits = self.world.epochs.get(after.epoch), self.world.limits
        answered_at = epoch.answered_at if epoch else None
        if answered_at is None:
            self.world.fail(5, f"{host.name}: serves epoch {after.epoch}, which never answered")
            return
        if not after.me.is_head:
            return
        answered_at = max(answered_at, self.world.engines.worked_at, host.frozen_at + self.world.watchdog_s)
        oldest_s = limits.canary_interval_s + max(limits.canary_max_s, limits.hang_blind_max_s) + IN_FLIGHT_S
        if self.world.now - answered_at > oldest_s:
            self.world.fail(5, f"{host.name}: serves on an answer that is {self.world.now - answered_at:.0f} s old")

    # --- what happens to engines -----------------------------------------------------------------------

    def before_spawn(self, host: Host, number: int) -> None:
        """Invariants 1 to 4, at the moment when an engine comes into being."""
        world = self.world
        epoch = world.epoch(number)
        if host.engine is not None:
            world.fail(1, f"{host.name}: epoch {number} starts over living processes of epoch {host.engine.epoch}")
        if host.state is not None and host.state.epoch != number and host.state.launch is not None:
            world.fail(1, f"{host.name}: epoch {number} starts on a node that is in epoch {host.state.epoch}")
        if host.stale or host.port_taken:
            world.fail(
                3, f"{host.name}: epoch {number} starts over stale processes {sorted(host.stale)} or a taken port"
            )
        if world.now < host.memory_at:
            world.fail(3, f"{host.name}: epoch {number} starts before memory came back")
        for other in world.hosts:
            if other.engine is not None and other.engine.epoch == number and other.engine.digests != host.prepared:
                world.fail(4, f"epoch {number}: {host.name} runs {host.prepared}, {other.name} {other.engine.digests}")
        if host.rank == 0:  # by what was so when it was ordered: a daemon may stand still in the middle of it
            for worker in world.hosts[1:]:
                alive = worker.engine is not None and worker.engine.epoch == number
                dead_s = epoch.ordered_at - epoch.deaths.get(worker.rank, -1e9)
                unknown_s = IN_FLIGHT_S + world.messages.carried_s.get(worker.rank, 0.0)
                if worker.rank not in epoch.spawns or not (alive or dead_s < unknown_s):
                    world.fail(2, f"the head starts epoch {number} without {worker.name}")

    def is_staged(self, host: Host, number: int) -> None:
        if host.staged != number:
            self.world.fail(3, f"{host.name}: asks to start epoch {number} while the script staged is of {host.staged}")

    def stale_killed(self, host: Host) -> None:
        if host.state is not None and host.state.launch is not None:
            self.world.fail(7, f"{host.name}: cleans away the epoch {host.state.launch.epoch} that it holds")

    def strangers_live(self, host: Host, before: int) -> None:
        if host.strangers != before:
            self.world.fail(7, f"{host.name}: {before - host.strangers} processes of somebody else were ended")

    def number_is_new(self, host: Host, number: int) -> None:
        if not self.world.forgetful:
            self.world.fail(1, f"epoch {number} starts a second time on {host.name}")
