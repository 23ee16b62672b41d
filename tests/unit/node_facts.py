"""Facts about a pair to ask checks with: a real plan, a Docker that is not there, and what the daemon would say."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine_plan import plan

from sparkd.doctor.check import Check
from sparkd.doctor.facts import Facts
from sparkd.engine.container import Docker
from sparkd.host import processes
from sparkd.host.paths import Paths
from sparkd.model.cluster import Settings
from sparkd.model.finding import Finding
from sparkd.model.plan import ClusterPlan

LAUNCH = "3f2a91bc-18"
SETTINGS = Settings.model_validate(
    {
        "cluster": {
            "name": "spark",
            "nodes": [
                {"name": "spark1", "link_address": "10.0.0.1", "lan_address": "192.168.1.11"},
                {"name": "spark2", "link_address": "10.0.0.2"},
            ],
        },
        "recipe": "deepseek",
    }
)


def facts(
    directory: Path, *, rank: int = 0, status: dict[str, Any] | None = None, calm: bool = False, **changes: Any
) -> Facts:
    """`status` None: no daemon answers. `changes` are of the plan."""
    ranks = tuple(plan(rank=each, node=f"spark{each + 1}", **changes) for each in (0, 1))
    paths = Paths(directory / "state", directory / "run", directory / "logs", directory / "key")
    return Facts(
        docker=Docker(f"unix://{directory}/no-docker.sock", timeout_s=1),
        settings=SETTINGS,
        cluster_plan=ClusterPlan(recipe="deepseek", profile="balanced", ranks=ranks, digest="d" * 64),
        rank=rank,
        paths=paths,
        status=status,
        without_daemon="" if status is not None else "sparkd is not running on this node",
        calm=calm,
    )


def serving(**more: Any) -> dict[str, Any]:
    """What the daemon of a healthy head says."""
    return {
        "run": True, "epoch": 18, "phase": "serving", "serving": True, "launch_id": LAUNCH, "proof_age_s": 4.0,
        "restarts_left": 6, "nodes": [{"node": "spark1", "engine_alive": True}, {"node": "spark2", "engine_alive": True}],
    } | more  # fmt: skip


def asked(check: Check, about: Facts) -> list[tuple[str, str]]:
    """(verdict, id) of each answer."""
    return [(str(finding.verdict), finding.id) for finding in check.asked(about)]


def only(check: Check, about: Facts) -> Finding:
    """The one answer."""
    (finding,) = check.asked(about)
    return finding


@contextmanager
def engine(directory: Path, *titles: str, launch: str = LAUNCH, arguments: tuple[str, ...] = ()) -> Iterator[list[int]]:
    """Real processes that carry a launch id: a `vllm serve` where "vllm" is among the titles, and others by their title."""
    program = directory / "vllm"
    program.write_text("import time\ntime.sleep(60)\n")
    environment = {
        "SPARKD_LAUNCH_ID": launch,
        "VLLM_API_KEY": "sk-very-secret",
        "OMP_NUM_THREADS": "8",
        "PWD": "/nowhere",
    }
    started = []
    for title in titles:
        serve = title == "vllm"
        argv = [sys.executable, str(program), "serve", *arguments] if serve else [title, "60"]
        started.append(subprocess.Popen(argv, executable=None if serve else "/bin/sleep", env=environment))
    try:
        wait_for(lambda: len([one for one in processes.engine_processes() if one.launch_id == launch]) == len(titles))
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def wait_for(question: Callable[[], bool], limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while not question():
        assert time.monotonic() < deadline, "still waiting"
        time.sleep(0.02)
