"""The words of control: what a node remembers, what can happen to it, what it can ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from sparkd.model.cluster import Limits
from sparkd.model.finding import Finding
from sparkd.model.report import Digests, Intent, Loss, Phase, Progress, Proof, Report, Saved, Vitals

State = TypeVar("State")

if TYPE_CHECKING:  # checked by mypy as what it stands for
    from dataclasses import replace as replace
else:

    def replace(value: State, /, **changes: Any) -> State:
        """`dataclasses.replace`, which runs every field through `__init__`: with forty fields of which an event changes two,
        that was the larger part of a turn."""
        new = object.__new__(type(value))
        new.__dict__.update(value.__dict__, **changes)
        return new


# --- what a node remembers ---------------------------------------------------------------------


@dataclass(frozen=True)
class Me:
    """What does not change while the daemon runs."""

    node: str
    rank: int
    names: tuple[str, ...]  # every node's name, in rank order
    boot_id: str
    version: str
    limits: Limits

    @property
    def is_head(self) -> bool:
        return self.rank == 0

    @property
    def workers(self) -> tuple[int, ...]:
        return tuple(range(1, len(self.names)))


@dataclass(frozen=True)
class Launch:
    """The one launch that may live here."""

    epoch: int
    seen: bool = False  # its top process runs, with the plan's argv and environment
    adopted: bool = False  # found alive when the daemon started


@dataclass(frozen=True)
class Counters:
    """The engine's own numbers (/metrics). Counters only ever grow within a launch; backwards is a restart.

    vLLM counts tokens and iterations only in steps that give an answer's token (`IterationStats() if log_stats and
    num_outputs`, v1/engine/async_llm.py), and a long prefill has none for minutes. Its scheduler's gauges are sent after
    every step, with or without outputs (v1/core/sched/scheduler.py, update_from_output): during a hang they rest too.
    """

    successes: int = 0
    movement: int = 0  # tokens and iterations together
    active: int = 0  # requests running or waiting
    waiting: int = 0  # of them in the queue
    cache: float = 0.0  # share of the KV cache in use, 0 to 1

    @property
    def gauges(self) -> tuple[int, int, float]:
        return self.active, self.waiting, self.cache


@dataclass(frozen=True)
class Peer:
    """What is known of another node. `reach` is how its daemon was last met: "yes", "refused" (a living host whose
    agent is away), "unreachable", "rejected" (it does not accept our word) or "unknown" (never met in this life of the
    daemon)."""

    reach: str = "unknown"
    since: float = 0.0  # since when `reach` is what it is
    heard_at: float | None = None
    report: Report | None = None  # of a worker, on the head
    objection: Finding | None = None  # why it rejects our word


@dataclass(frozen=True)
class NodeState:
    """One node's life, whole. Times are seconds on the caller's monotonic clock."""

    me: Me
    intent: Intent  # the head's own, or what a worker last heard
    phase: Phase = Phase.IDLE
    since: float = 0.0
    reason: str = "starting"
    epoch: int = 0  # worked on, or the highest ever seen
    ticket: int = 0  # of the effect in flight; an answer that carries another one is stale
    busy: bool = False
    digests: Digests = field(default_factory=Digests)
    launch: Launch | None = None
    leftovers: tuple[int, ...] = ()  # epochs of which something lived when the daemon started: stopped after `launch`
    ready: bool = False  # the endpoint of this launch listens
    progress: Progress = field(default_factory=Progress)
    proof: Proof | None = None
    canary_ticket: int = 0
    canary_at: float | None = None  # when the canary in flight was sent
    canary_done_at: float | None = None
    canary_failures: int = 0
    counters: Counters | None = None
    moved_at: float = 0.0  # when a counter or a gauge last moved
    tokens_at: float = 0.0  # when tokens were last counted: a prefill moves gauges only
    busy_since: float | None = None  # since when requests have been running or waiting without a pause
    unanswered_since: float | None = None  # when the first of the canaries was sent that nothing has answered since
    doubt: bool = False  # on the head: work waits and nothing moves; every node looks at its part of the engine
    vitals: Vitals | None = None  # what this node saw, at `vitals_at`
    vitals_at: float = 0.0
    worked_at: float = 0.0  # when vitals of any node last showed work
    loss: Loss | None = None
    blocked: Finding | None = None
    blocked_fingerprint: str = ""
    blocked_by_check: bool = False  # a check found it, so a check can see it gone
    stuck_on: str = ""  # id of what blocked this node last, since its last launch
    stuck_since: float = 0.0  # when that blocked it first: looks that did not see it may have let it go meanwhile
    waiting: Finding | None = None
    waiting_since: float = 0.0
    waiting_in: Phase = Phase.IDLE  # the step that waits
    retry_at: float = 0.0
    attempts: int = 0  # preparations that failed in a row
    restarts_used: int = 0  # lost epochs; refilled by serving
    generation: int = 0  # of the files this node works from
    gate_since: float = 0.0
    turned_at: float = 0.0  # on the head, while the barrier is half open: its last turn
    settled_at: float = 0.0  # on the head: until then, what it hears may have waited while it stood still
    ended: Loss | None = None  # on the head: the last epoch that ended, and why, whichever node it was lost on
    epoch_at: float = 0.0  # on the head: when the next epoch may be handed out
    peers: dict[int, Peer] = field(default_factory=dict)


# --- what can happen ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """The daemon began: what it had saved, and which epochs of this boot have an intact engine alive."""

    saved: Saved | None
    intact: tuple[int, ...]
    broken: tuple[int, ...]  # epochs of this boot of which only a part still lives


@dataclass(frozen=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True)
class Done:
    """The effect with this ticket succeeded."""

    ticket: int
    says: str = ""
    digests: Digests | None = None
    proof: Proof | None = None
    finding: Finding | None = None  # of a stop: what the end of the engine turned out to mean


@dataclass(frozen=True)
class Failed:
    """The effect with this ticket did not succeed; the worst finding first."""

    ticket: int
    finding: Finding
    digests: Digests | None = None


@dataclass(frozen=True)
class EngineSeen:
    """The engine's top process lives; `findings` are the differences between what runs and the plan."""

    epoch: int
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class EngineReady:
    """The endpoint of this launch listens."""

    epoch: int


@dataclass(frozen=True)
class EngineProgress:
    epoch: int
    progress: Progress


@dataclass(frozen=True)
class EngineGone:
    """A process of the launch that matters has died, or the engine's unit ended."""

    epoch: int
    finding: Finding


@dataclass(frozen=True)
class Counted:
    """The engine's counters were read."""

    epoch: int
    counters: Counters


@dataclass(frozen=True)
class Measured:
    """This node looked at its part of the engine from outside."""

    epoch: int
    vitals: Vitals


@dataclass(frozen=True)
class CanaryBack:
    """A canary came back: with a proof, or with what was wrong."""

    ticket: int
    proof: Proof | None
    finding: Finding | None = None


@dataclass(frozen=True)
class Heard:
    """The head received a worker's report."""

    report: Report


@dataclass(frozen=True)
class Told:
    """A worker received the head's intent."""

    intent: Intent


@dataclass(frozen=True)
class Silent:
    """A peer did not answer: "refused", "unreachable" or "rejected" (with what it objected to)."""

    rank: int
    reach: str
    finding: Finding | None = None


@dataclass(frozen=True)
class Asked:
    """An operator asked the head for something."""

    verb: str  # start | stop | restart
    profile: str | None = None


@dataclass(frozen=True)
class Inputs:
    """While blocked: what the inputs look like now, and the worst finding that would still block."""

    fingerprint: str
    finding: Finding | None = None


Event: TypeAlias = (
    Started
    | Tick
    | Done
    | Failed
    | EngineSeen
    | EngineReady
    | EngineProgress
    | EngineGone
    | Counted
    | Measured
    | CanaryBack
    | Heard
    | Told
    | Silent
    | Asked
    | Inputs
)

# --- what it can ask for -----------------------------------------------------------------------


@dataclass(frozen=True)
class Prepare:
    """One of the four steps before the barrier; `phase` says which. Answer: Done or Failed."""

    ticket: int
    phase: Phase
    epoch: int
    profile: str | None
    others: tuple[
        str, ...
    ] = ()  # digests of the plans that the other nodes have: a changed file that gives one is taken


@dataclass(frozen=True)
class Start:
    """Start sparkd-engine.service with this epoch's launch id. Answer: Failed at once, or EngineSeen, or EngineGone."""

    ticket: int
    epoch: int


@dataclass(frozen=True)
class Stop:
    """End every process of the launch, and its unit. Answer: Done, always in the end."""

    ticket: int
    epoch: int


@dataclass(frozen=True)
class Prove:
    """Ask the endpoint for real completions. Answer: Done with a proof, or Failed."""

    ticket: int
    epoch: int


@dataclass(frozen=True)
class Canary:
    """One cheap completion. Answer: CanaryBack."""

    ticket: int
    epoch: int


@dataclass(frozen=True)
class Look:
    """Read the inputs again while blocked. Answer: Inputs."""


@dataclass(frozen=True)
class Reload:
    """Read the configuration files again: the next plan comes from them."""

    generation: int


@dataclass(frozen=True)
class Save:
    saved: Saved


@dataclass(frozen=True)
class Tell:
    """The report (worker) or the intent (head) changed: the peer should know now."""


@dataclass(frozen=True)
class Note:
    """One line of the events: a stable id and a sentence."""

    id: str
    says: str
    alarm: bool = False


Action: TypeAlias = Prepare | Start | Stop | Prove | Canary | Look | Reload | Save | Tell | Note
