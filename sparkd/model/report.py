"""What nodes tell each other: a worker's report, the head's intent. Both are level-triggered: each message is whole."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from sparkd.model.fields import Count, Measure, Shown, Word
from sparkd.model.finding import Finding


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # a newer peer may say more


class Phase(StrEnum):
    """Where a node stands in its life."""

    IDLE = "idle"
    PREFLIGHT = "preflight"
    CLEAN = "clean"
    CONTAINER = "container"
    STAGE = "stage"
    ARMED = "armed"
    LAUNCHING = "launching"
    LOADING = "loading"
    PROVING = "proving"
    SERVING = "serving"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    BLOCKED = "blocked"

    @property
    def has_engine(self) -> bool:
        """An engine of the current epoch lives, or may live, in this phase."""
        return self in _WITH_ENGINE


_WITH_ENGINE = frozenset((Phase.LAUNCHING, Phase.LOADING, Phase.PROVING, Phase.SERVING))


class Gate(StrEnum):
    """How far the head has opened the barrier of an epoch. Only ever opens; ENDED is final."""

    CLOSED = "closed"  # prepare and arm, do not launch
    WORKERS = "workers"  # every rank is armed: workers launch
    ALL = "all"  # every worker's engine process lives: the head launches
    ENDED = "ended"  # the epoch is dead on all nodes


class Digests(Frozen):
    """What all ranks of an epoch must have in common, as preflight found it on one node. Empty: could not be read."""

    plan: Word = ""
    image: Word = ""
    weights: Word = ""
    driver: Word = ""


class Progress(Frozen):
    """How far a launch has come, from the engine's log."""

    says: Shown = ""  # "weights 12/46 shards"
    fraction: Measure | None = None  # 0 to 1 of the whole start, None where nothing is learned yet
    eta_s: Measure | None = None


class Loss(Frozen):
    """Why an epoch ended on a node."""

    epoch: Count
    finding: Finding


class Proof(Frozen):
    """A real completion that came back: what it held, and when (agent's monotonic clock, seconds)."""

    epoch: Count
    at: Measure
    content_chars: Count = 0  # of the answer's content
    reasoning_field: Shown | None = None  # "reasoning" or "reasoning_content", None where the recipe has no parser
    tool_call: bool = False
    seconds: Measure = 0.0
    says: Shown = ""


class Vitals(Frozen):
    """What a node sees of its part of the engine from outside, while there is doubt whether it works. None: not known."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    age_s: float = Field(default=0.0, ge=0)  # at the moment of telling: clocks are not compared between nodes
    cpu_percent: float | None = None  # of one CPU, all processes titled `VLLM::*` together
    processes: int | None = None  # of them that live
    stopped: str | None = None  # one that is stopped (state T), by its title; "": none
    compiling: str | None = None  # a compiler that burns CPU below the engine, by its name; "": none
    link_bytes_s: int | None = Field(default=None, ge=0, lt=1 << 50)  # RDMA ports and the interface together, both ways
    gpu: bool | None = None  # whether this node has a GPU at all
    gpu_watts: float | None = None
    gpu_percent: float | None = None  # utilisation


class Report(Frozen):
    """One node as it is, told by itself."""

    node: Word
    rank: Count
    version: Word
    boot_id: Word
    epoch: Count  # the epoch it works on; the highest it has ever seen where it works on none
    phase: Phase
    reason: Shown = ""
    plan_digest: Word = ""
    image_id: Word = ""
    weights_digest: Word = ""
    driver: Word = ""
    engine_alive: bool = False  # its top process of this epoch lives and runs the plan's argv
    loss: Loss | None = None  # the last epoch that ended here
    blocked: Finding | None = None
    waiting: Finding | None = None
    progress: Progress = Progress()
    at: Measure = 0.0  # when it was said: seconds on the node's monotonic clock, which orders what is said within one boot
    vitals: Vitals | None = None  # while the head asks for them (`Intent.doubt`)


class Intent(Frozen):
    """What the head wants of everyone, and what it knows that a worker shows."""

    run: bool
    epoch: Count
    gate: Gate
    profile: Word | None = None
    generation: Count = (
        0  # grows with each start, restart or profile change: a node that sees a new one reads its files again
    )
    plan_digest: Word = ""
    image_id: Word = ""
    weights_digest: Word = ""
    driver: Word = ""
    head_phase: Phase = Phase.IDLE
    head_reason: Shown = ""
    blocked: Finding | None = None  # the head's: a person must act, and any node can say how
    head_boot_id: Word = ""
    version: Word = ""
    serving: bool = False  # the epoch has a proof no older than the canary allows
    proof_age_s: Measure | None = None
    progress: Progress = Progress()
    at: Measure = 0.0  # when it was said, as in Report
    doubt: bool = False  # work waits and nothing moves: every node looks at its part of the engine


class Saved(Frozen):
    """What must survive a restart of the daemon or of the node. Lost or corrupt, it costs at most a restart of the engine."""

    boot_id: Word = ""  # the boot that wrote it
    epoch: Count = 0
    run: bool = True
    gate: Gate = Gate.ENDED
    profile: Word | None = None
    generation: Count = 0
    launch_epoch: Count | None = None  # the epoch of the living launch, if any
    serving: bool = False
    restarts_used: Count = 0
    loss: Loss | None = None
    blocked: Finding | None = None
    blocked_fingerprint: Word = ""


def launch_id(boot_id: str, epoch: int) -> str:
    """`<boot id, 8 hex digits>-<epoch>`: names a launch for ever, in every process's environment."""
    return f"{boot_id.replace('-', '')[:8]}-{epoch}"
