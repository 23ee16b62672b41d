"""For the commands' tests: `sparkd` as a process of its own, and a daemon's real control socket with canned answers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparkd.agent.socket import ControlServer
from sparkd.model.errors import UsageError
from sparkd.model.finding import Cure, bad
from sparkd.model.report import Phase, Progress
from sparkd.model.status import NodeStatus, Status

CHECKOUT = Path(__file__).resolve().parents[2]
COMMAND_MAX_S = 60


def _hear_interrupts() -> None:
    """Tests that run in a shell's background have SIGINT ignored, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Home:
    """Where a command looks for the daemon and its files."""

    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        names = {"STATE_DIRECTORY": "state", "RUNTIME_DIRECTORY": "run", "LOGS_DIRECTORY": "log"}
        return {name: str(self.directory / where) for name, where in names.items()}

    @contextmanager
    def running(self, *arguments: str, **more: str) -> Iterator[subprocess.Popen[str]]:
        """A running command, its output in pipes; killed at the end where it still runs."""
        # what the caller has in its own environment decides nothing here
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SPARKD_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "sparkd", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**kept, **self.environment, **more},
            cwd=CHECKOUT,
            preexec_fn=_hear_interrupts,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate(timeout=COMMAND_MAX_S)

    def sparkd(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """A command run to its end."""
        with self.running(*arguments, **more) as process:
            out, err = process.communicate(timeout=COMMAND_MAX_S)
            return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    @contextmanager
    def daemon(self, daemon: Daemon) -> Iterator[None]:
        """The daemon's end of the socket, in a thread."""
        ready, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

        async def serve() -> None:
            server = ControlServer(self.directory / "run/sparkd.sock", daemon.verbs(), frozenset({"status", "events"}))
            await server.start()
            ready.set()
            await stop.wait()
            await server.stop()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
        (self.directory / "run").mkdir(exist_ok=True)
        thread.start()
        try:
            assert ready.wait(10), "the control socket did not come up"
            yield
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(10)


@dataclass
class Daemon:
    """Answers; the last status is repeated for ever."""

    statuses: list[Status] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)

    def verbs(self) -> dict[str, Any]:
        return {"status": self._status, "events": self._events, "start": self._start, "clean": self._clean}

    async def _status(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        yield status.model_dump(mode="json")

    async def _events(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        for event in self.events[-request["last"] :]:
            yield event
        while request["follow"]:
            await asyncio.sleep(0.05)

    async def _start(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        self.asked.append(request)
        if request["profile"] == "nope":
            raise UsageError("there is no profile 'nope'", hint="known profiles: balanced")
        yield {"says": "start is under way"}

    async def _clean(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        self.asked.append(request)
        yield {"lines": ["/dev/shm/psm_0123abcd: leftover of 25.0 MiB, nobody maps or opens it"]}


# --- the pair in some states -------------------------------------------------------------------------

ENDPOINT = "http://192.168.1.11:8000/v1"


def pair(phase: Phase, *, worker: Phase | None = None, **facts: Any) -> Status:
    """The pair as its head sees it. `worker` is the worker's phase, where it is another one."""
    progress = facts.get("progress", Progress())
    known = {"boot_id": "b0075b007", "version": "0.1.0", "epoch": 18, "engine_alive": phase.has_engine}
    head = NodeStatus(node="spark1", rank=0, phase=phase, progress=progress, heard_s_ago=0, reachable="self", **known)
    other = {"phase": worker or phase, "heard_s_ago": 0.4, "reachable": "yes", **known}
    second = NodeStatus(node="spark2", rank=1, **(other | facts.pop("second", {})))
    base: dict[str, Any] = {
        "node": "spark1",
        "cluster": "spark",
        "recipe": "deepseek-v4-flash",
        "profile": "balanced",
        "run": True,
        "epoch": 18,
        "phase": phase,
        "endpoint": ENDPOINT,
        "since_s": 200.0,
        "version": "0.1.0",
        "nodes": (head, second),
    }
    return Status(**(base | facts))


SERVING = pair(Phase.SERVING, serving=True, proof_age_s=12.3, reason="serving: a real completion came back 12 s ago")
LOADING = pair(
    Phase.LOADING,
    reason="loading: weights 12/46 shards",
    progress=Progress(says="weights 12/46 shards", fraction=0.21, eta_s=372.0),
)
BLOCKED = pair(
    Phase.BLOCKED,
    worker=Phase.ARMED,
    reason="blocked: the model path does not exist",
    restarts_left=6,
    blocked=bad(
        "weights.missing",
        "/models/DeepSeek-V4-Flash does not exist in the container",
        cure=Cure.PERSON,
        remedy="mount the directory that holds the weights (recipe: container.volumes)",
        evidence=("mounted are: /root/.cache/vllm",),
    ),
)
BLOCKED_THERE = pair(
    Phase.IDLE,
    worker=Phase.BLOCKED,
    reason="waiting for spark2",
    second={"reason": "blocked: the script does not parse", "phase": Phase.BLOCKED},
)
WAITING = pair(
    Phase.ARMED,
    reason="armed in epoch 18, waiting for spark2",
    second={"phase": None, "epoch": None, "engine_alive": None, "reachable": "unreachable", "heard_s_ago": 75.0},
    waiting=bad(
        "peer.unreachable", "spark2 does not answer on the link", cure=Cure.WAIT, remedy="sparkd status on spark2"
    ),
    pending="the configuration has changed: `sparkd restart` takes it",
)
BACKOFF = pair(Phase.BACKOFF, reason="epoch 17 was lost", retry_in_s=8.2, restarts_left=4, profile=None)
STOPPED = pair(Phase.IDLE, run=False, reason="stopped by an operator")
