"""An hour of serving while things break now and then: what sparkd takes of its nodes is read all along.

Beside the faults there is what a pair lives with: light traffic, with pauses for canaries; a dashboard on each node that
asks for the status every second; a doctor every few minutes, who asks the other node too.
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TextIO

from . import gauges
from .beside import running
from .gauges import Reading
from .host import LabError, say
from .ordeal import serves
from .pair import NODES, Pair, wait_for

CONTAINER = "vllm_ds4"
READ_EVERY_S = 10.0
DOCTOR_EVERY_S = 180.0
TRAFFIC_S = 60.0  # then as long a pause, in which canaries go out
SERVES_MAX_S = 180.0


@dataclass(frozen=True)
class Blow:
    """One fault of the soak, made and mended in one go. `ends_daemon`: on which nodes no daemon lives through it."""

    name: str
    make: Callable[[Pair], None]
    ends_daemon: bool = False


def _kill(node: str, what: str) -> Callable[[Pair], None]:
    def make(pair: Pair) -> None:
        pair.kill(node, what)

    return make


def _say(node: str, command: str) -> Callable[[Pair], None]:
    def make(pair: Pair) -> None:
        pair.run(node, command, timeout_s=60)

    return make


def _link(seconds: float) -> Callable[[Pair], None]:
    def make(pair: Pair) -> None:
        pair.lab.link_down()
        try:
            time.sleep(seconds)
        finally:
            pair.lab.link_up()

    return make


def _fault(node: str, name: str, seconds: float) -> Callable[[Pair], None]:
    def make(pair: Pair) -> None:
        pair.lab.fault(node, name, True)
        try:
            time.sleep(seconds)
        finally:
            pair.lab.fault(node, name, False)

    return make


def _power_cut(pair: Pair) -> None:
    for node in NODES:
        pair.lab.node(node).power_cut()
    for node in NODES:
        pair.lab.node(node).power_on()


BLOWS = (  # a daemon lives through these
    Blow("the worker's rank is killed", _kill("spark2", "rank")),
    Blow("the link is down for 3 s", _link(3)),
    Blow("the head's container is restarted", _say("spark1", f"docker restart -t 3 {CONTAINER}")),
    Blow("the head's top process is killed", _kill("spark1", "top")),
    Blow("Docker is restarted on the worker", _say("spark2", "systemctl restart docker")),
    Blow("the link is down for 15 s", _link(15)),
    Blow("the head's engine core is killed", _kill("spark1", "core")),
    Blow("the worker's container is removed", _say("spark2", f"docker rm -f {CONTAINER}")),
    Blow("Docker hangs on the head for 10 s", _fault("spark1", "docker-hung", 10)),
    Blow("requests hang for 40 s", _fault("spark1", "hang-requests", 40)),
    Blow("the operator says restart", _say("spark1", "sparkd restart")),
    Blow("the link is one way for 12 s", _fault("spark2", "one-way", 12)),
    Blow("the head's rank is killed", _kill("spark1", "rank")),
)
HARD_BLOWS = (  # and does not through these
    Blow("sparkd is restarted on the worker", _say("spark2", "systemctl restart sparkd"), ends_daemon=True),
    Blow(
        "sparkd is killed on the head",
        _say("spark1", "systemctl kill -s KILL --kill-who=main sparkd"),
        ends_daemon=True,
    ),
    Blow("the worker reboots", lambda pair: pair.lab.node("spark2").reboot(), ends_daemon=True),
    Blow("both nodes lose power", _power_cut, ends_daemon=True),
    Blow("the head reboots", lambda pair: pair.lab.node("spark1").reboot(), ends_daemon=True),
)


def plan(minutes: float, every_s: float, blows: Sequence[Blow] | None = None) -> list[Blow]:
    """One blow each `every_s`; of all of them, or of `blows` in turn. Those that end a daemon come in the first quarter and
    at the very end: a leak needs a long life to show itself."""
    slots = max(0, int(minutes * 60 / every_s) - 1)
    if blows is not None:
        return [blows[n % len(blows)] for n in range(slots)]
    hard = [HARD_BLOWS[n % len(HARD_BLOWS)] for n in range(slots // 4)]
    rest = [BLOWS[n % len(BLOWS)] for n in range(slots - len(hard))]
    return [*hard[:-1], *rest, *hard[-1:]]


@dataclass
class Soak:
    """What came of it."""

    minutes: float
    every_s: float
    readings: list[Reading] = field(default_factory=list)
    blows: list[tuple[float, str, float]] = field(default_factory=list)  # at, name, seconds until it served again
    answered: int = 0
    failed: int = 0
    polled: int = 0
    unpolled: int = 0  # the dashboard met no daemon
    doctors: int = 0
    complaints: list[str] = field(default_factory=list)
    is_whole: bool = False  # it ran to its end; of one that was cut short, only readings and faults are known


class Soaking:
    """The threads around a soak. `record` gets one line of JSON for everything, as it happens."""

    def __init__(self, pair: Pair, soak: Soak, record: TextIO) -> None:
        self._pair, self._soak, self._record = pair, soak, record
        self._over, self._writing = threading.Event(), threading.Lock()

    def note(self, kind: str, **told: object) -> None:
        with self._writing:
            self._record.write(json.dumps({"kind": kind, "at": time.time(), **told}) + "\n")
            self._record.flush()

    def around(self) -> AbstractContextManager[None]:
        works: list[Callable[[], None]] = [self._traffic, self._doctors]
        works += [functools.partial(work, node) for work in (self._read, self._poll) for node in NODES]
        return running(works, self._over, join_max_s=120)

    # --- beside the faults ---

    def _read(self, node: str) -> None:
        since = time.time()
        while not self._over.is_set():
            began = time.monotonic()
            with contextlib.suppress(LabError, ValueError):  # the node is off, or boots
                reading = gauges.read(self._pair.lab.node(node), since=since)
                since = reading["t"]
                self._soak.readings.append(reading)
                self.note("reading", **reading)
            self._over.wait(max(1.0, READ_EVERY_S - (time.monotonic() - began)))

    def _traffic(self) -> None:
        while not self._over.is_set():
            burst = time.monotonic() + TRAFFIC_S
            while time.monotonic() < burst and not self._over.is_set():
                try:
                    self._pair.chat("Tell me a story.", max_tokens=128, timeout_s=30)
                    self._soak.answered += 1
                except (LabError, KeyError, ValueError, TypeError):
                    self._soak.failed += 1
                self._over.wait(2)
            self._over.wait(TRAFFIC_S)

    def _doctors(self) -> None:
        turn = 0
        while not self._over.wait(DOCTOR_EVERY_S):
            with contextlib.suppress(LabError):
                self._pair.run(NODES[turn % 2], "sparkd doctor --json >/dev/null", check=False)
                self._soak.doctors += 1
            turn += 1

    def _poll(self, node: str) -> None:
        """A dashboard: one connection a second."""
        while not self._over.wait(1):
            if self._pair.status(node):
                self._soak.polled += 1
            else:
                self._soak.unpolled += 1

    # --- the faults ---

    def blow(self, blow: Blow) -> None:
        """Make it, and wait until the pair serves again with an answer: for a moment it may not know yet what struck it."""
        began = time.monotonic()
        at = time.time()
        say(f"{time.strftime('%H:%M:%S')} {blow.name}")
        try:
            blow.make(self._pair)
            wait_for("answering pair", lambda: serves(self._pair), max_s=SERVES_MAX_S, every_s=1)
        except (AssertionError, LabError) as error:
            said = f"{error}\n{self._pair.story()}"
            say(f"{blow.name}: {said.splitlines()[0]}")
            self._soak.complaints.append(f"{blow.name}: {said}")
        took_s = round(time.monotonic() - began, 1)
        self._soak.blows.append((at, blow.name, took_s))
        self.note("blow", begun=at, name=blow.name, took_s=took_s)


def run(pair: Pair, *, minutes: float, every_s: float, record: TextIO, blows: Sequence[Blow] | None = None) -> Soak:
    """Serve for so long, with one fault each `every_s`."""
    soak = Soak(minutes, every_s)
    soaking = Soaking(pair, soak, record)
    pair.start()
    pair.wait_serving()
    began = time.monotonic()
    soaking.note("begun", minutes=minutes, every_s=every_s)
    with soaking.around():
        for number, blow in enumerate(plan(minutes, every_s, blows), 1):
            time.sleep(max(0.0, began + number * every_s - time.monotonic()))
            soaking.blow(blow)
        time.sleep(max(0.0, began + minutes * 60 - time.monotonic()))
        try:
            pair.wait_serving(max_s=SERVES_MAX_S)
        except (AssertionError, LabError) as error:
            soak.complaints.append(f"at the end: {error}")
    soak.is_whole = True
    soaking.note(
        "over", answered=soak.answered, failed=soak.failed, polled=soak.polled, unpolled=soak.unpolled,
        doctors=soak.doctors, complaints=soak.complaints,
    )  # fmt: skip
    return soak


def recorded(lines: TextIO) -> Soak:
    """A soak as its record tells it, also of one that was interrupted."""
    soak = Soak(0, 0)
    for line in lines:
        told = json.loads(line)
        match told["kind"]:
            case "begun":
                soak.minutes, soak.every_s = told["minutes"], told["every_s"]
            case "reading":
                soak.readings.append(told)
            case "blow":
                soak.blows.append((told.get("begun", told["at"]), told["name"], told["took_s"]))
            case "over":
                soak.is_whole = True
                for name in ("answered", "failed", "polled", "unpolled", "doctors", "complaints"):
                    setattr(soak, name, told[name])
    return soak
