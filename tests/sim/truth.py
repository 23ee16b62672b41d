"""What really is, whether or not a daemon knows it: hosts, engines, epochs. The behaviour of engines follows FIELD.md."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sparkd.control.state import Event, NodeState
from sparkd.model.cluster import Limits
from sparkd.model.finding import Finding
from sparkd.model.report import Digests, Intent, Report, Saved

# Short enough to see many lives in a few virtual minutes; the proportions are those of the defaults.
QUICK = Limits(
    link_grace_s=30,
    exchange_s=0.9,  # shorter than a tick: a daemon that exchanges has no idle turns
    link_loss_max_s=20,
    start_max_s=30,
    load_max_s=90,
    prove_max_s=25,
    canary_interval_s=20,
    canary_max_s=15,
    hang_max_s=25,
    hang_blind_max_s=60,
    work_max_s=240,
    hold_s=60,
    restarts_max=50,
    backoff_max_s=20,
)

MEMORY_WAIT_MAX_S = 40  # how long a clean-up waits for memory before it fails, and control backs off

INPUTS = Digests(plan="plan-1", image="sha256:image-1", weights="weights-1", driver="580.95.05")

HEAD_STOP_S = 0.4  # SIGTERM to a ready head
STARTING_HEAD_STOP_S = 6.8  # the first SIGTERM is ignored, the second works
WORKER_STOP_S = 11.5  # a headless worker waits for its children


class Violation(AssertionError):
    """An invariant does not hold: its number (0 for a rule of the house that is none of the ten), and what was seen."""

    def __init__(self, invariant: int, what: str, message: str) -> None:
        super().__init__(message)
        self.invariant, self.what = invariant, what


@dataclass
class Engine:
    """The processes of one launch on one host."""

    epoch: int
    digests: Digests | None
    top: bool = True  # the process that systemd started
    rank: bool = True  # the process that holds the GPU; orphaned, it goes on serving
    ready: bool = False  # a head that listens
    hung: bool = False
    flaw: Finding | None = None  # what it will die of by itself

    @property
    def whole(self) -> bool:
        return self.top and self.rank

    @property
    def gone(self) -> bool:
        return not self.top and not self.rank


@dataclass
class Epoch:
    """One coordinated attempt, over all hosts."""

    number: int
    loading: bool = False  # every rank met the others
    torn: bool = False  # a rank died, or a connection broke: no request will be answered again
    torn_in_init: bool = False  # the head then hangs silently
    answered_at: float | None = None  # a real completion came back
    blames: list[str] = field(default_factory=list)  # what may rightly end it
    link_down_s: float = 0.0
    ordered_at: float = -1e9  # when the head's daemon had its own launched
    spawns: dict[int, float] = field(default_factory=dict)  # rank: when its process appeared
    deaths: dict[int, float] = field(default_factory=dict)  # rank: when a process of its newest first died


@dataclass
class Task:
    """One effect on a host's lane: begins, and gives an event at its end (or says how much longer it needs)."""

    name: str
    begin: Callable[[], float]
    end: Callable[[], Event | float]


@dataclass(frozen=True)
class Trip:
    """The daemon, or its host, ends between two actions of one step: before or after the `left`-th of a kind."""

    on: str  # the class of the action, or "any"
    left: int
    is_after: bool
    takes_power: bool
    away_s: float
    until: float  # not met by then: forgotten


@dataclass(eq=False)
class Exchange:
    """A worker's exchange with the head: its report goes, the poll is held, the intent comes back."""

    worker: Host
    life: int
    began_at: float
    known: int  # the version of the intent that the worker has


@dataclass(eq=False)
class Host:
    """One machine. What a reboot clears and what a daemon's restart clears is told by `power_off` and `daemon_down`."""

    rank: int
    name: str
    rng: random.Random  # its own: what happens on one host does not shift the chances of another
    boot: int = 0
    up: bool = False
    booted_at: float = 0.0
    power_changed_at: float = 0.0
    wall_offset_s: float = 0.0  # of a clock that control never sees
    link: bool = True
    hears: bool = True  # what others send arrives
    is_heard: bool = True  # what it sends arrives
    link_changed_at: float = 0.0
    # the daemon
    state: NodeState | None = None  # while it runs
    life: int = 0  # counts the daemon's lives: what was meant for an earlier one is dropped
    life_began_at: float = 0.0
    turned_at: float = 0.0
    inbox: list[Callable[[], None]] | None = None  # while it is stopped by SIGSTOP: what waits for it
    frozen_at: float = -1e9
    thawed_at: float = -1e9
    trip: Trip | None = None
    # its state file
    disk: Saved | None = None
    saves: deque[Saved] = field(default_factory=lambda: deque(maxlen=40))  # a backup may be any of these
    fate: str = "kept"  # of the file, when the daemon looks for it next
    disk_lost: bool = False  # since the last save
    # its processes
    engine: Engine | None = None
    stale: set[int] = field(default_factory=set)  # epochs of this boot of which an orphan still lives
    strangers: int = 0  # engine processes that are not ours
    spawning: int | None = None  # epoch of a start that systemd has accepted
    launched: set[int] = field(default_factory=set)  # epochs of this boot that were started here
    claimed: set[int] = field(default_factory=set)  # epochs of this boot that its own state file names as its launch
    prepared: Digests | None = None  # what the last preflight read, and the staged script therefore holds
    staged: int | None = None  # the epoch whose script was staged last
    lane: deque[Task] = field(default_factory=deque)
    lane_busy: bool = False
    slow: float = 1.0  # factor on the duration of every step
    # the link
    exchange: Exchange | None = None  # of a worker
    resting: bool = False  # after an exchange that failed
    known: int = 0
    told_at: float = 0.0  # when it last heard the head's word
    connected: bool = False  # a kept connection: without one, both directions are needed to say anything
    polls: dict[int, Exchange] = field(default_factory=dict)  # held by the head
    version: int = 0  # of what the head tells
    heard_at: dict[int, float] = field(default_factory=dict)
    said: tuple[object, Report | Intent] | None = None  # what was told last, stamped
    refused_until: float = 0.0  # the keys differ
    # inputs
    digests: Digests = INPUTS  # of the files, the image, the weights, the driver
    loaded: str = INPUTS.plan  # the plan that the daemon holds: files are taken when asked
    profile: str | None = None
    kept_plan: tuple[str, str | None] | None = None  # plan and profile of the last launch, beside the state file
    inputs: int = 0  # changes whenever a person changes a file
    bad_input: Finding | None = None  # a check sees it
    stillborn: bool = False  # systemd starts the unit, and no engine ever appears
    bad_engine: Finding | None = None  # no check sees it: the engine starts, and dies of it
    doomed: list[float] = field(default_factory=list)  # the next engines die so many seconds after they began
    port_taken: bool = False  # by a stranger
    docker_at: float = 0.0  # Docker answers from then on
    memory_at: float = 0.0  # memory of dead engines is back from then on
    autopsy: dict[int, Finding] = field(default_factory=dict)  # epoch: what the log says that it died of
    failures: dict[str, list[Finding]] = field(default_factory=dict)  # step: what it fails with, once each

    @property
    def boot_id(self) -> str:
        return f"{self.rank:04x}{self.boot:04x}-sim"

    @property
    def daemon(self) -> bool:
        return self.state is not None

    @property
    def awake(self) -> bool:
        return self.state is not None and self.inbox is None

    def stop_s(self) -> float:
        if self.engine is None or not self.engine.top:
            return 0.3
        if self.rank:
            return WORKER_STOP_S
        return HEAD_STOP_S if self.engine.ready else STARTING_HEAD_STOP_S
