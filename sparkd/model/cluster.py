"""The cluster: its nodes in rank order, the link that joins them, and the limits sparkd works by."""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sparkd.model.environment import Environment


class Strict(BaseModel):
    """Data that a person writes: an unknown key is an error, not a silence.

    A validator that raises ValueError begins its message with the path of the culprit ("nodes[1].name: ..."),
    relative to what it validates: the configuration loader finds the line by it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Node(Strict):
    """One machine. `name` is what people call it; `hostname` defaults to it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,62}$")
    link_address: IPv4Address
    lan_address: IPv4Address | None = None  # where clients reach the endpoint; the link address where absent
    hostname: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,253}$")
    environment: Environment = Field(default_factory=dict)  # per-node engine environment, over the recipe's

    @property
    def lan(self) -> IPv4Address:
        return self.lan_address or self.link_address


class Link(Strict):
    """The private network between the nodes, and where the daemons listen on it."""

    interface: str = Field(default="bond0", pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}$")  # part of paths in /sys
    mtu: int = Field(default=9000, ge=1280, le=65535)
    port: int = Field(default=7420, ge=1, le=65535)


class DropCaches(StrEnum):
    ALWAYS = "always"
    WHEN_SHORT = "when-short"
    NEVER = "never"


LIMIT_MAX_S = 30 * 86400.0  # no wait is longer: clocks and timers take no number whatever
Wait = Annotated[float, Field(gt=0, le=LIMIT_MAX_S)]


class Limits(Strict):
    """Every wait has a limit. Seconds, unless the name says otherwise."""

    link_grace_s: Wait = 120  # after boot, how long a missing link is no alarm yet
    exchange_s: Wait = 1  # the longest a long poll is held
    link_loss_max_s: Wait = 45  # a peer unreachable for so long: its half counts as gone
    start_max_s: Wait = 120  # from `systemctl start` to a living engine process
    load_max_s: Wait = 1800  # from a living engine to a listening endpoint
    prove_max_s: Wait = 180  # for the proof's requests together
    stop_grace_s: Wait = 20  # a headless worker needs 11 to 12 s (FIELD.md), then SIGKILL
    canary_interval_s: Wait = 60  # an idle endpoint is asked this often
    canary_max_s: Wait = 60  # one canary's answer
    hang_max_s: Wait = 90  # work waits, nothing moves, and a second signal says so: a hang
    # The same where nothing can be read either way: longer than the longest step that vLLM itself allows (300 s by default,
    # VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS: then it ends by itself and says why) and than a prefill of 190K tokens (238 s).
    hang_blind_max_s: Wait = 360
    work_max_s: Wait = 1800  # nothing counted for so long is a hang, whatever looks like work
    hold_s: Wait = 300  # serving this long refills the budget and makes the launch a baseline
    restarts_max: int = Field(default=6, ge=1, le=1000)  # lost epochs before sparkd blocks itself
    backoff_first_s: float = Field(default=0, ge=0, le=LIMIT_MAX_S)  # the first relaunch is immediate
    backoff_max_s: Wait = 300


class Cluster(Strict):
    """Nodes in rank order: the first is the head (rank 0), every other a headless worker."""

    name: str = Field(default="spark", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    nodes: tuple[Node, ...] = Field(min_length=1)
    link: Link = Link()

    @model_validator(mode="after")
    def _distinct(self) -> Cluster:
        owners: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            for what in ("name", "link_address", "lan_address"):
                value = getattr(node, what)
                if value is not None and owners.setdefault(str(value), index) != index:
                    raise ValueError(f"nodes[{index}].{what}: {value} is already used by nodes[{owners[str(value)]}]")
        return self

    @property
    def size(self) -> int:
        return len(self.nodes)

    @property
    def head(self) -> Node:
        return self.nodes[0]


class OperatorUnit(Strict):
    """A unit of the operator's own that preflight validates like ours (`vllm-ds4-head.service`)."""

    name: str = Field(pattern=r"^[A-Za-z0-9:_.@-]+\.service$", max_length=255)
    nodes: tuple[str, ...] = ()  # names of the nodes that have it; empty: all


class Settings(Strict):
    """The whole of sparkd.yaml."""

    cluster: Cluster
    recipe: str
    profile: str | None = None  # None: the recipe's default_profile
    drop_caches: DropCaches = DropCaches.ALWAYS
    operator_units: tuple[OperatorUnit, ...] = ()
    launches_kept: int = Field(default=10, ge=1, le=10_000)  # engine logs kept, one file per launch
    engine_log_max_mib: int = Field(default=64, ge=1, le=1_000_000)  # of one launch's log, and of the older part kept beside it
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _units_on_known_nodes(self) -> Settings:
        known = [node.name for node in self.cluster.nodes]
        listed = ", ".join(known)
        for index, unit in enumerate(self.operator_units):
            for at, name in enumerate(unit.nodes):
                if name not in known:
                    raise ValueError(f"operator_units[{index}].nodes[{at}]: no node is called {name} (known: {listed})")
        return self
