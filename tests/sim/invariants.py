"""What must hold after every event, judged by the truth of the world, not by what a state claims (DESIGN.md section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.truth import Host
from sparkd.control import node
from sparkd.control.state import Action, EngineGone, Event, NodeState, Note, Prepare, Save, Start, Started, Stop
from sparkd.model.finding import Cure
from sparkd.model.report import Gate, Phase

if TYPE_CHECKING:
    from sim.world import World

IN_FLIGHT_S = 5.0  # how old a truth may be when another node acts on it: a fresh report, an exchange, a start
TEARDOWN_S = 1.5  # from a death to the Stop on every node
ACTIONS_MAX_PER_S = 60


class Invariants:
    def __init__(self, world: World) -> None:
        self.world = world
        self._second = -1
        self._actions: dict[str, int] = {}
        self._epoch_seen: dict[str, int] = {}
        self._needs_person: dict[str, str] = {}  # node: what it was told that only a person can mend

    # --- a daemon's step ---------------------------------------------------------------------------

    def daemon_starts(self, host: Host) -> None:
        if host.disk is None:
            self._epoch_seen[host.name] = 0  # forgot it: the only way for a number to fall

    def after_step(self, host: Host, before: NodeState, event: Event, after: NodeState, actions: list[Action]) -> None:
        self._bounded(host, actions)
        self._epochs_grow(host, after)
        self._saved_first(host, after, actions)
        for action in actions:
            if isinstance(action, Stop):
                self._stop_has_cause(host, action)
            if isinstance(action, Prepare) and after.launch is not None:
                self.world.fail(f"{host.name}: prepares while it holds epoch {after.launch.epoch}")
            if isinstance(action, Start) and (after.launch is None or after.launch.epoch != action.epoch):
                self.world.fail(f"{host.name}: starts epoch {action.epoch}, which is not its launch")
        self._person_is_waited_for(host, before, event, after, actions)
        if isinstance(event, EngineGone) and after.loss is not before.loss:
            self._teardown_follows(host, event.epoch)
        if after.me.is_head and after.intent.gate in (Gate.WORKERS, Gate.ALL) and after.phase in node.PREPARING:
            self.world.fail(f"{host.name}: opened the barrier and is not ready itself")
        self._serving_is_proven(host, after)
        if not node.reason(after, self.world.clock(host)):
            self.world.fail(f"{host.name}: does not say why it is {after.phase}")

    def _bounded(self, host: Host, actions: list[Action]) -> None:
        if int(self.world.now) != self._second:
            self._second, self._actions = int(self.world.now), {}
        count = self._actions.get(host.name, 0) + len(actions)
        self._actions[host.name] = count
        if count > ACTIONS_MAX_PER_S:
            self.world.fail(f"{host.name}: {count} actions within a second: a livelock")

    def _epochs_grow(self, host: Host, after: NodeState) -> None:
        known = self._epoch_seen.get(host.name, 0)
        epoch = max(after.epoch, after.intent.epoch if after.me.is_head else 0)
        if epoch < known:
            self.world.fail(f"{host.name}: epoch {epoch} after {known}")
        self._epoch_seen[host.name] = epoch

    def _saved_first(self, host: Host, after: NodeState, actions: list[Action]) -> None:
        """What would be read back after a crash right before any act is what the act is based on."""
        on_disk = host.disk
        for action in actions:
            if isinstance(action, Save):
                on_disk = action.saved
            elif not isinstance(action, Note) and not host.disk_lost and on_disk != node.saved(after):
                self.world.fail(f"{host.name}: {type(action).__name__} before the state was saved")

    def _stop_has_cause(self, host: Host, action: Stop) -> None:
        """Invariant 8 and more: nothing that could serve is stopped without a reason that is real."""
        epoch = self.world.epochs.get(action.epoch)
        if epoch is not None and epoch.spawns and not epoch.blames:
            self.world.fail(f"{host.name}: stops epoch {action.epoch}, which nothing happened to")

    def inputs_changed(self, host: Host) -> None:
        self._needs_person.pop(host.name, None)

    def operator_spoke(self) -> None:
        self._needs_person.clear()

    def _person_is_waited_for(
        self, host: Host, before: NodeState, event: Event, after: NodeState, actions: list[Action]
    ) -> None:
        """Invariant 6: what only a person can mend is never started again before a person did something."""
        forgot = isinstance(event, Started) and event.saved is None
        if forgot or after.generation > before.generation:  # the operator's word arrives later than it was said
            self._needs_person.pop(host.name, None)
        for action in actions:
            if isinstance(action, Start) and host.name in self._needs_person:
                self.world.fail(f"{host.name}: starts again although: {self._needs_person[host.name]}")
        lost = after.loss is not None and after.loss.epoch == before.epoch and after.loss.finding.cure is Cure.PERSON
        if before.phase is Phase.STOPPING and after.phase is not Phase.STOPPING and lost and after.intent.run:
            if after.phase is not Phase.BLOCKED or after.blocked is None:
                self.world.fail(f"{host.name}: is not blocked by what only a person can mend")
            else:
                self._needs_person[host.name] = after.blocked.says

    def _teardown_follows(self, host: Host, number: int) -> None:
        world, at = self.world, self.world.now
        lives = [h.life for h in world.hosts]
        patience_s = TEARDOWN_S + (15 * world.limits.exchange_s if world.lost else 0.0)

        def check() -> None:
            undisturbed = all(h.link_changed_at < at - 4 and h.link and h.daemon for h in world.hosts)
            if not undisturbed or lives != [h.life for h in world.hosts]:
                return
            late = [h.name for h in world.hosts if h.state and h.state.phase.has_engine and h.state.epoch == number]
            if late and all(h.life_began_at < at - 4 for h in world.hosts):
                world.fail(f"epoch {number} was lost on {host.name} at {at:.2f} s and still lives on {', '.join(late)}")

        world.after(patience_s, check)

    def _serving_is_proven(self, host: Host, after: NodeState) -> None:
        """Invariant 5."""
        if after.phase is not Phase.SERVING:
            return
        epoch, limits = self.world.epochs.get(after.epoch), self.world.limits
        answered_at = epoch.answered_at if epoch else None
        if answered_at is None:
            self.world.fail(f"{host.name}: serves epoch {after.epoch}, which never answered")
            return
        answered_at = max(answered_at, self.world.engines.worked_at)
        oldest_s = limits.canary_interval_s + max(limits.canary_max_s, limits.hang_blind_max_s) + IN_FLIGHT_S
        if after.me.is_head and self.world.now - answered_at > oldest_s:
            self.world.fail(f"{host.name}: serves on an answer that is {self.world.now - answered_at:.0f} s old")

    # --- what happens to engines -----------------------------------------------------------------------

    def before_spawn(self, host: Host, number: int) -> None:
        """Invariants 1 to 4, at the moment when an engine comes into being."""
        world = self.world
        epoch = world.epoch(number)
        if host.engine is not None:
            world.fail(f"{host.name}: epoch {number} starts over living processes of epoch {host.engine.epoch}")
        if host.state is not None and host.state.epoch != number and host.state.launch is not None:
            world.fail(f"{host.name}: epoch {number} starts on a node that is in epoch {host.state.epoch}")
        if world.now < host.memory_at:
            world.fail(f"{host.name}: epoch {number} starts before memory came back")
        for other in world.hosts:
            if other.engine is not None and other.engine.epoch == number and other.engine.digests != host.prepared:
                world.fail(f"epoch {number}: {host.name} runs {host.prepared}, {other.name} {other.engine.digests}")
        if host.rank == 0:
            for worker in world.hosts[1:]:
                alive = worker.engine is not None and worker.engine.epoch == number
                died_at = epoch.deaths.get(worker.rank, -1e9)
                if worker.rank not in epoch.spawns or not (alive or world.now - died_at < IN_FLIGHT_S):
                    world.fail(f"the head starts epoch {number} without {worker.name}")

    def is_staged(self, host: Host, number: int) -> None:
        if host.staged != number:
            self.world.fail(f"{host.name}: asks to start epoch {number} while the script staged is of {host.staged}")

    def stale_killed(self, host: Host) -> None:
        if host.state is not None and host.state.launch is not None:
            self.world.fail(f"{host.name}: cleans away the epoch {host.state.launch.epoch} that it holds")
