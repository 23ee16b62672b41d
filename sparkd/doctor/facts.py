"""What the checks are asked about: each fact is read once, by the first check that needs it, and shared with all others.

A fact that could not be read is remembered as well: a hung Docker costs one time limit, not forty.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from sparkd.engine import cleaning
from sparkd.engine.container import Docker
from sparkd.engine.spec import ContainerState
from sparkd.host import processes, units
from sparkd.host.paths import Paths
from sparkd.model.cluster import Settings
from sparkd.model.errors import ConfigError, SparkdError, UnreachableError
from sparkd.model.plan import ClusterPlan, Plan

Value = TypeVar("Value")
More = ParamSpec("More")

AGENT = "sparkd.service"
DOOR_MAX_S = 2.5  # the longest that Docker, systemd or a tool may take to answer one question of a doctor


class _Once:
    """One fact: asked for by the first who comes, waited for by the others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known = False
        self._value: Any = None
        self._error: Exception | None = None

    def get(self, ask: Callable[[], Value]) -> Value:
        with self._lock:
            if not self._known:
                try:
                    self._value = ask()
                except (SparkdError, OSError) as error:
                    self._error = error
                self._known = True
        if self._error is not None:
            raise self._error.with_traceback(None)
        value: Value = self._value
        return value


@dataclass
class Facts:
    """One look at one node. `settings` and `cluster_plan` are None where no configuration could be read: `config_error`.

    `status` is the daemon's own answer (`sparkd status --json`), None where it gave none; `without_daemon` says why.
    `calm` is True in a launch's preflight: nothing runs yet, so that a check may not conclude from an absent engine.
    """

    docker: Docker
    settings: Settings | None = None
    cluster_plan: ClusterPlan | None = None
    rank: int | None = None
    paths: Paths = field(default_factory=Paths)
    config_error: SparkdError | None = None
    status: Mapping[str, Any] | None = None
    without_daemon: str = ""
    is_denied: bool = False  # there may well be a daemon, and this user may not ask it
    calm: bool = False
    throughput: Callable[[float], Mapping[str, float]] | None = None  # seconds -> other node -> Gb/s; None: no daemon
    _facts: dict[Hashable, _Once] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def remember(self, key: Hashable, ask: Callable[[], Value]) -> Value:
        with self._lock:
            once = self._facts.setdefault(key, _Once())
        return once.get(ask)

    @property
    def plan(self) -> Plan:
        """This node's part of the plan. Raises SparkdError where there is none: a check that needs it cannot tell."""
        if self.cluster_plan is None or self.rank is None:
            raise self._unconfigured()
        return self.cluster_plan.ranks[self.rank]

    @property
    def configured(self) -> Settings:
        """The settings. Raises SparkdError where they could not be read."""
        if self.settings is None:
            raise self._unconfigured()
        return self.settings

    @property
    def node(self) -> str:
        return self.plan.node if self.cluster_plan is not None and self.rank is not None else ""

    @property
    def phase(self) -> str:
        """Where the daemon says that this node stands; empty where there is no daemon."""
        return str((self.status or {}).get("phase") or "")

    @property
    def operator_units(self) -> tuple[str, ...]:
        """The operator's own units, installed or not, that the configuration names for this node; none without one."""
        named = self.settings.operator_units if self.settings is not None else ()
        return tuple(each.name for each in named if not each.nodes or self.node in each.nodes)

    def _unconfigured(self) -> SparkdError:
        if self.config_error is not None:
            return UnreachableError(f"without a configuration: {self.config_error}", hint=self.config_error.hint)
        return ConfigError("there is no configuration")


def fact(function: Callable[Concatenate[Facts, More], Value]) -> Callable[Concatenate[Facts, More], Value]:
    """Makes `function(facts, ...)` a fact: read once for each set of (hashable, positional) arguments."""

    @functools.wraps(function)
    def known(facts: Facts, /, *args: More.args, **kwargs: More.kwargs) -> Value:
        assert not kwargs, "facts are told apart by their positional arguments"
        return facts.remember((function, *args), lambda: function(facts, *args, **kwargs))

    return known


# --- facts that several layers need --------------------------------------------------------------


@fact
def container(facts: Facts) -> ContainerState | None:
    """The plan's container, None where there is none. UnreachableError where Docker does not answer."""
    return facts.docker.inspect(facts.plan.container.name)


@fact
def image_id(facts: Facts) -> str | None:
    return facts.docker.image_id(facts.plan.container.image)


@fact
def unit_state(facts: Facts, name: str) -> units.UnitState:
    """The unit as systemd has it. UnreachableError where systemd does not answer."""
    if name != AGENT:
        unit_state(facts, AGENT)  # where systemd does not answer, it is waited for once, not for each unit
    return units.unit_state(name)


@fact
def engine_processes(facts: Facts) -> tuple[processes.EngineProcess, ...]:
    """Every engine process on this host, ours or not."""
    return tuple(processes.engine_processes())


@fact
def launch_id(facts: Facts) -> str | None:
    """The launch that is meant to live here, as the daemon says; as systemd says where there is no daemon."""
    if facts.status is not None:
        launch = facts.status.get("launch_id")
        return str(launch) if launch else None
    return cleaning.launch_by_unit(facts.paths.launch_file, timeout_s=DOOR_MAX_S)


@fact
def survey(facts: Facts) -> cleaning.Survey:
    """What engines left behind here, and whose everything is. Nothing is touched."""
    return cleaning.survey(facts.plan, facts.docker, living_launch=launch_id(facts))
