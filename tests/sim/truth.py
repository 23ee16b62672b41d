"""What really is, whether or not a daemon knows it: hosts, engines, epochs. The behaviour of engines follows FIELD.md."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sparkd.control.state import Event, NodeState
from sparkd.model.cluster import Limits
from sparkd.model.finding import Finding
from sparkd.model.report import Digests, Saved

# Short enough to see many lives in a few virtual minutes; the proportions are those of the defaults.
QUICK = Limits(
    link_grace_s=30,
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
    """An invariant does not hold. The message carries the seed and what happened last."""


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
    spawns: dict[int, float] = field(default_factory=dict)  # rank: when its process appeared
    deaths: dict[int, float] = field(default_factory=dict)  # rank: when a process of it first died


@dataclass
class Task:
    """One effect on a host's lane: begins, and gives an event at its end (or says how much longer it needs)."""

    name: str
    begin: Callable[[], float]
    end: Callable[[], Event | float]


@dataclass
class Host:
    """One machine. What a reboot clears and what a daemon's restart clears is told by `power_off` and `daemon_down`."""

    rank: int
    name: str
    boot: int = 0
    up: bool = False
    booted_at: float = 0.0
    link: bool = True
    link_changed_at: float = 0.0
    state: NodeState | None = None  # of the daemon, while it runs
    life: int = 0  # counts the daemon's lives: what was meant for an earlier one is dropped
    life_began_at: float = 0.0
    disk: Saved | None = None
    disk_lost: bool = False  # since the last save
    engine: Engine | None = None
    spawning: int | None = None  # epoch of a start that systemd has accepted
    prepared: Digests | None = None  # what the last preflight read, and the staged script therefore holds
    staged: int | None = None  # the epoch whose script was staged last
    lane: deque[Task] = field(default_factory=deque)
    lane_busy: bool = False
    exchanging: dict[int, bool] = field(default_factory=dict)  # with a peer: True where something new waits to be told
    slow: float = 1.0  # factor on the duration of every step
    # inputs
    digests: Digests = INPUTS
    inputs: int = 0  # changes whenever a person changes a file
    bad_input: Finding | None = None  # a check sees it
    stillborn: bool = False  # systemd starts the unit, and no engine ever appears
    bad_engine: Finding | None = None  # no check sees it: the engine starts, and dies of it
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

    def stop_s(self) -> float:
        if self.engine is None or not self.engine.top:
            return 0.3
        if self.rank:
            return WORKER_STOP_S
        return HEAD_STOP_S if self.engine.ready else STARTING_HEAD_STOP_S
