"""The only loop: an event comes in, `control.step` decides, actions go out, systemd hears of it.

Everything that takes time runs in a lane (a thread or two) and comes back as an event; everything that waits is a task
that posts events. The loop itself never blocks for longer than it takes to sync one small file.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, assert_never

import sdnotify

from sparkd.agent.effects import Effects
from sparkd.agent.journal import Journal
from sparkd.agent.store import Store
from sparkd.agent.tasks import is_want
from sparkd.control import node as control
from sparkd.control import telling
from sparkd.control.state import (
    Action,
    Canary,
    CanaryBack,
    Event,
    Failed,
    Look,
    Me,
    NodeState,
    Note,
    Prepare,
    Prove,
    Reload,
    Save,
    Start,
    Stop,
    Tell,
    Tick,
)
from sparkd.host.clock import monotonic
from sparkd.model.errors import SparkdError, UnreachableError
from sparkd.model.finding import Cure, Finding, FindingError, bad
from sparkd.model.report import Saved

log = logging.getLogger(__name__)
T = TypeVar("T")

SETTLE_S = 5.0  # between looks whether all that must be on disk is
TICK_S = 1.0  # the longest time between two turns: time-outs are noticed with this precision


def _unforeseen(error: Exception) -> Finding:
    if is_want(error):
        return bad("step.want", f"sparkd is short of what every look needs: {error}", cure=Cure.WAIT)
    log.exception("an effect failed in a way that nobody foresaw", exc_info=error)
    return bad("sparkd.bug", f"{type(error).__name__}: {error}", cure=Cure.RELAUNCH, remedy="sparkd report")


class Agent:
    """One node's daemon. `state` is replaced whole at each turn and never changed in place."""

    def __init__(self, me: Me, effects: Effects, store: Store, journal: Journal) -> None:
        self.me = me
        self.state: NodeState = control.begin(me)
        self.effects = effects
        self.journal = journal
        self.version = 0  # of the intent (head) or report (worker): grows whenever it changed
        self.on_turn: list[Callable[[NodeState, NodeState], None]] = []  # sources follow the state from here
        self._store = store
        self._changed = asyncio.Event()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        # Steps change the node and are taken one at a time. Asking the endpoint may hang for minutes: a lane of its own,
        # so that a stop never waits for an answer.
        self._steps = ThreadPoolExecutor(1, "step")
        self._asking = ThreadPoolExecutor(2, "ask")
        self._notifier = sdnotify.SystemdNotifier()
        self._status = ""
        self._settle_at = 0.0
        self._refused = False  # the disk did not take the state, and it was said
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio keeps only weak references

    # --- what the sources use ---

    def post(self, event: Event) -> None:
        """From the loop's own thread."""
        self._queue.put_nowait(event)

    async def wait_changed(self, known: int, hold_s: float) -> int:
        """The version of what is told to peers, as soon as it is not `known`, or after `hold_s` seconds."""
        deadline = self._loop.time() + hold_s
        while self.version == known and (left_s := deadline - self._loop.time()) > 0:
            try:
                await asyncio.wait_for(self._changed.wait(), left_s)
            except TimeoutError:
                break
        return self.version

    async def between_steps(self, work: Callable[[], T]) -> T:
        """What `work` gives, run in the lane of the steps: no launch begins while it looks and acts."""
        return await self._loop.run_in_executor(self._steps, work)

    # --- the loop ---

    async def run(self, first: Event, stop: asyncio.Event) -> None:
        """Turn until `stop` is set. The engine is left alone when the daemon ends (invariant 8)."""
        self.turn(first)
        self._notifier.notify("READY=1")
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                getting = asyncio.create_task(self._queue.get())
                await asyncio.wait({getting, stopping}, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    self.turn(getting.result())
                else:
                    getting.cancel()
                    self.turn(Tick())
        finally:
            stopping.cancel()
            self._notifier.notify("STOPPING=1\nSTATUS=the daemon stops; the engine is left as it is")
            for lane in (self._steps, self._asking):
                lane.shutdown(wait=False, cancel_futures=True)

    def turn(self, event: Event) -> None:
        """One event, whole. The watchdog is fed only by a turn that was completed."""
        now = monotonic()
        before = self.state
        self.state, actions = control.step(before, event, now)
        for action in actions:
            self._carry_out(action)
        if now >= self._settle_at:
            self._settle_at = now + SETTLE_S
            self.settle()
        for follow in self.on_turn:
            follow(before, self.state)
        self._tell_systemd(telling.reason(self.state, now))

    def note(self, id: str, says: str, *, alarm: bool = False) -> None:
        self.journal.add(id, says, epoch=self.state.epoch, phase=self.state.phase, alarm=alarm)

    def settle(self) -> None:
        """What is kept on disk is there, or it was said that it is not. Nothing waits for it: what runs is in /proc."""
        try:
            gone = self._store.settle()
        except OSError as error:
            self._say_refused(error)
            return
        self._say_taken()
        if gone:
            self.note("state.lost", f"{' and '.join(gone)} had gone from the disk: written again", alarm=True)

    def _tell_systemd(self, status: str) -> None:
        message = "WATCHDOG=1" if "WATCHDOG_USEC" in os.environ else ""
        if status != self._status:
            self._status = status
            message += f"\nSTATUS={status}"
        if message:
            self._notifier.notify(message.strip())

    # --- actions ---

    def _carry_out(self, action: Action) -> None:
        match action:
            case Note(id=id, says=says, alarm=alarm):
                self.note(id, says, alarm=alarm)
            case Save(saved=saved):
                self._save(saved)
            case Tell():
                self.version += 1
                self._changed.set()
                self._changed = asyncio.Event()
            case Reload(generation=generation):
                self._reload(generation)
            case Prepare(ticket=ticket):
                self._in_lane(self._steps, ticket, lambda: self.effects.prepare(action))
            case Start(ticket=ticket):
                self._in_lane(self._steps, ticket, lambda: self.effects.start(action))
            case Stop(ticket=ticket):
                self._in_lane(self._steps, ticket, lambda: self.effects.stop(action))
            case Prove(ticket=ticket):
                self._in_lane(self._asking, ticket, lambda: self.effects.prove(action))
            case Canary(ticket=ticket):
                self._in_lane(self._asking, ticket, lambda: self.effects.canary(action), canary=True)
            case Look():
                self._in_lane(self._steps, -1, self.effects.look)
            case _:
                assert_never(action)

    def _save(self, saved: Saved) -> None:
        try:
            self._store.save(saved)
        except OSError as error:
            self._say_refused(error)
        else:
            self._say_taken()

    def _say_refused(self, error: OSError) -> None:
        if not self._refused:
            self._refused = True
            says = f"the state could not be saved ({error}): it is kept in /run, and a reboot would forget it"
            self.note("state.not-saved", says, alarm=True)

    def _say_taken(self) -> None:
        if self._refused:
            self._refused = False
            self.note("state.saved", "the state is on disk again")

    def _reload(self, generation: int) -> None:
        try:
            says = self.effects.reload()
        except SparkdError as error:
            self.note("config.invalid", f"the configuration was not taken: {error}", alarm=True)
        else:
            self.note("config.loaded", f"{says} (generation {generation})")

    def _in_lane(
        self, lane: ThreadPoolExecutor, ticket: int, effect: Callable[[], Event], *, canary: bool = False
    ) -> None:
        """Run an effect in a lane; its answer, or what went wrong with it, is the next event."""

        def run() -> Event:
            try:
                return effect()
            except FindingError as error:
                finding = error.finding
            except UnreachableError as error:  # Docker or systemd is away: it comes back by itself
                finding = bad("step.unreachable", str(error), cure=Cure.WAIT, remedy=error.hint)
            except SparkdError as error:
                finding = bad("step.failed", str(error), cure=Cure.RELAUNCH, remedy=error.hint)
            except Exception as error:
                finding = _unforeseen(error)
            return CanaryBack(ticket, None, finding) if canary else Failed(ticket, finding)

        answer = self._loop.run_in_executor(lane, run)  # now: the lane may be closed when the task begins

        async def carry() -> None:
            self.post(await answer)

        task = self._loop.create_task(carry())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
