"""What `sparkd status --json` prints: one node's view of the whole cluster. People and monitoring read it."""

from __future__ import annotations

from typing import Literal

from sparkd.model.finding import Finding
from sparkd.model.report import Frozen, Phase, Progress, Proof


class NodeStatus(Frozen):
    """One node, as the node that was asked knows it. None, where it does not know.

    `reachable` says how its daemon was last met: "self" (it is the node that was asked), "yes", "refused" (the host
    lives, its sparkd does not answer), "unreachable" (nothing answers), "rejected" (keys, configuration or versions
    differ) or "unknown" (not met since sparkd started here).
    """

    node: str
    rank: int
    phase: Phase | None = None
    reason: str = ""
    epoch: int | None = None
    progress: Progress = Progress()
    engine_alive: bool | None = None
    heard_s_ago: float | None = None  # 0 for the node itself
    reachable: str = "unknown"
    boot_id: str = ""
    version: str = ""  # of its sparkd
    blocked: Finding | None = None  # a person must act
    waiting: Finding | None = None  # comes by itself, or a limit ends it


class Status(Frozen):
    """The answer of the local socket's `status`. A new field does not change `schema_version`; another meaning does."""

    schema_version: Literal[1] = 1
    node: str  # the one that was asked
    cluster: str
    recipe: str
    profile: str | None = None
    run: bool  # what is wanted: an engine that runs, or none
    epoch: int
    phase: Phase  # of this node
    reason: str = ""  # one sentence: why it is in this phase, and what it waits for
    serving: bool = False  # the epoch has a proof no older than the canary allows
    proof: Proof | None = None  # on the head, which asks the endpoint
    proof_age_s: float | None = None
    progress: Progress = Progress()  # of the launch
    retry_in_s: float | None = None  # until the next attempt, in the phase backoff
    restarts_left: int | None = None  # the head's budget before it blocks itself; a worker does not know it
    blocked: Finding | None = None
    waiting: Finding | None = None
    pending: str | None = None  # a changed configuration that `sparkd restart` would bring into effect
    endpoint: str = ""  # URL for clients
    launch_id: str | None = None  # of the launch that lives here
    since_s: float = 0.0  # seconds in this phase
    version: str = ""
    nodes: tuple[NodeStatus, ...] = ()  # in rank order, this one among them
