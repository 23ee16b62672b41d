"""One look at a node for the tests of checks: a plan, what the daemon says, and facts that are given instead of read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine_plan import plan

from sparkd.doctor.check import Check
from sparkd.doctor.facts import Facts
from sparkd.engine.container import Docker
from sparkd.engine.spec import ContainerState, state_of
from sparkd.host.paths import Paths
from sparkd.host.processes import EngineProcess
from sparkd.host.units import UnitState
from sparkd.host.usage import Usage
from sparkd.model.cluster import Settings
from sparkd.model.finding import Finding
from sparkd.model.plan import ClusterPlan

NODES = [{"name": "spark1", "link_address": "10.0.0.1"}, {"name": "spark2", "link_address": "10.0.0.2"}]
LAUNCH = "0f0f0f0f-7"
CONTAINER_ID = "c" * 64


def facts(
    tmp_path: Path,
    *,
    rank: int = 0,
    status: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    gpus: str | None = "all",
    **plan_changes: object,
) -> Facts:
    """A node whose Docker does not answer, unless the test gives what it said."""
    head = plan(**plan_changes)
    container = head.container.model_copy(update={"gpus": gpus})
    ranks = tuple(
        head.model_copy(update={"rank": n, "node": NODES[n]["name"], "container": container}) for n in range(head.size)
    )
    return Facts(
        docker=Docker(base_url=f"unix://{tmp_path}/no-docker.sock", timeout_s=0.5),
        settings=Settings.model_validate({"cluster": {"nodes": NODES}, "recipe": "r"} | dict(settings or {})),
        cluster_plan=ClusterPlan(recipe="r", profile=None, ranks=ranks, digest="d"),
        rank=rank,
        paths=Paths(state=tmp_path, runtime=tmp_path, logs=tmp_path, key=tmp_path / "key"),
        status=status,
    )


def serving(**more: Any) -> dict[str, Any]:
    """What a daemon says whose engine serves."""
    return {"phase": "serving", "serving": True, "launch_id": LAUNCH, "run": True} | more


def given(here: Facts, fact: Callable[..., Any], value: Any, *arguments: Any) -> None:
    """The fact is known already: nobody reads it."""

    def answer() -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    key = (getattr(fact, "__wrapped__", fact), *arguments)
    here._facts.pop(key, None)
    if isinstance(value, Exception):
        try:
            here.remember(key, answer)
        except type(value):
            pass
    else:
        here.remember(key, answer)


def asked(check: Check, here: Facts) -> Finding:
    """The only answer."""
    (finding,) = check.asked(here)
    return finding


def verdicts(check: Check, here: Facts) -> list[str]:
    return [finding.verdict.value for finding in check.asked(here)]


def engine(pid: int = 100, title: str = "VLLM::Worker_TP0", **changes: Any) -> EngineProcess:
    fields: dict[str, Any] = {
        "pid": pid,
        "start_ticks": pid,
        "comm": title[:15],
        "title": title,
        "argv": (title,),
        "launch_id": LAUNCH,
        "container_id": CONTAINER_ID,
        "ppid": 1,
    }
    return EngineProcess(**fields | changes)


def usage(pid: int = 100, comm: str = "VLLM::Worker_TP", **changes: Any) -> Usage:
    fields: dict[str, Any] = {
        "pid": pid,
        "ppid": 1,
        "comm": comm,
        "state": "S",
        "uid": 0,
        "rss_bytes": 0,
        "swap_bytes": 0,
        "kill_pending": False,
        "may_lock": True,
    }
    return Usage(**fields | changes)


OURS = {"io.sparkd.managed": "true", "io.sparkd.cluster": "spark"}  # of the cluster that the plan of `facts` is for


def container(*, host: Mapping[str, Any] | None = None, labels: Mapping[str, str] | None = None) -> ContainerState:
    """As `docker inspect` tells of a container of ours that runs."""
    return state_of(
        {
            "Id": CONTAINER_ID,
            "Name": "/vllm_ds4",
            "State": {"Running": True, "Status": "running", "Pid": 0},
            "Config": {"Labels": OURS if labels is None else labels},
            "HostConfig": {"IpcMode": "host", "NetworkMode": "host"} | dict(host or {}),
        }
    )


def unit(name: str, **changes: Any) -> UnitState:
    """One that runs."""
    fields: dict[str, Any] = {"load_state": "loaded", "active_state": "active", "sub_state": "running"}
    return UnitState(name=name, **fields | changes)
