"""What the lab's tests ask of the pair: its status, its answers, its processes. Waits have limits; nothing sleeps blindly."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.lab import daemon
from tests.lab.api import Lab
from tests.lab.beside import running
from tests.lab.host import LabError
from tests.lab.places import lan_address

NODES = ("spark1", "spark2")
ENDPOINT_PORT = 8000
ENDPOINT = f"http://{lan_address(NODES[0])}:{ENDPOINT_PORT}"
MODEL = "deepseek-v4-flash"
SERVES_MAX_S = 120.0
START_S = 4.0  # of the simulated engine: what is tested is what sparkd does around it
STOP_SCALE = 0.25  # of what the real one takes to stop
GB10_START_S = 462.0  # of the 46-shard model, warm: what a scale of 1 takes

T = TypeVar("T")


def wait_for(what: str, ask: Callable[[], T | None], *, max_s: float, every_s: float = 0.25) -> T:
    """The first true answer, or a failure that says what never came."""
    deadline = time.monotonic() + max_s
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"within {max_s:.0f} s there was no {what}")
        time.sleep(every_s)


@dataclass
class Traffic:
    """Clients in the LAN that ask without a pause; what they got back."""

    answered: int = 0
    failed: list[str] = field(default_factory=list)


class Pair:
    """Two nodes of a lab with sparkd installed."""

    def __init__(
        self, lab: Lab, *, model: str = MODEL, answer_tokens: int = 2048, serves_max_s: float = SERVES_MAX_S
    ) -> None:
        self.lab, self.model = lab, model
        self.answer_tokens, self.serves_max_s = answer_tokens, serves_max_s

    def pace(self, *, start_s: float, stop_scale: float) -> None:
        """How long the simulated engine's start takes, and how its stop relates to the real one's 11 s of a worker."""
        for node in NODES:
            self.lab.node(node).write("/var/lib/sparkd-lab/scale", f"{start_s / GB10_START_S}\n")
            self.lab.node(node).write("/var/lib/sparkd-lab/stop_scale", f"{stop_scale}\n")

    # --- asking ---

    def run(self, node: str, command: str, *, check: bool = True, timeout_s: float = 60) -> str:
        return self.lab.node(node).run(command, timeout_s=timeout_s, check=check).stdout

    def status(self, node: str = "spark1") -> dict[str, Any]:
        """As `sparkd status --json` says; empty where no daemon answers."""
        return daemon.status(self.lab.node(node))

    def events(self, node: str = "spark1") -> list[dict[str, Any]]:
        """Those of the newest file; of a file that a test has spoilt, what can be read."""
        events = []
        for line in self.run(node, "cat /var/lib/sparkd/events.jsonl").splitlines():
            with contextlib.suppress(ValueError):
                events.append(json.loads(line))
        return [event for event in events if isinstance(event, dict) and "id" in event]

    def event_ids(self, node: str = "spark1") -> list[str]:
        return [event["id"] for event in self.events(node)]

    def epoch(self) -> int:
        return int(self.status().get("epoch", 0))

    def chat(self, prompt: str = "Say hello.", *, max_tokens: int = 0, timeout_s: float = 60) -> dict[str, Any]:
        """A real request from a client in the LAN; the message that came back."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens or self.answer_tokens}
        body["messages"] = [{"role": "user", "content": prompt}]
        done = self.lab.client(
            ["curl", "-sS", "-m", str(timeout_s), "-H", "Content-Type: application/json", "-d", json.dumps(body),
             f"{ENDPOINT}/v1/chat/completions"]
        )  # fmt: skip
        message: dict[str, Any] = json.loads(done.stdout)["choices"][0]["message"]
        return message

    # --- waiting ---

    def start(self) -> None:
        for node in reversed(NODES):
            self.run(node, "systemctl start --no-block sparkd")

    def wait_serving(self, *, newer_than: int = -1, max_s: float | None = None) -> dict[str, Any]:
        """Both nodes say so, in the same epoch, and the endpoint answers."""

        def both() -> dict[str, Any] | None:
            statuses = [self.status(node) for node in NODES]
            phases = [status.get("phase") for status in statuses]
            epochs = {status.get("epoch") for status in statuses}
            if phases == ["serving"] * len(NODES) and len(epochs) == 1 and statuses[0]["epoch"] > newer_than:
                return statuses[0]
            return None

        try:
            status = wait_for(f"serving pair newer than epoch {newer_than}", both, max_s=max_s or self.serves_max_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None
        assert self.chat()["content"], "the pair says that it serves, and answers nothing"
        return status

    def wait_phase(self, phase: str, node: str = "spark1", *, max_s: float = 60) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            status = self.status(node)
            return status if status.get("phase") == phase else None

        try:
            return wait_for(f"phase {phase} on {node}", there, max_s=max_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None

    def story(self) -> str:
        """The last events of both nodes, for a failure's message."""
        lines = []
        for node in NODES:
            with contextlib.suppress(Exception):
                lines.append(f"--- {node}: {self.status(node).get('reason')}")
                lines += [f"{e['at'][11:23]} {e['id']}: {e['says']}" for e in self.events(node)[-40:]]
        return "\n".join(lines)

    # --- processes ---

    def engine(self, node: str) -> dict[int, str]:
        """pid (in the node) -> title, of every engine process."""
        found = {}
        for line in self.run(node, "ps -eo pid=,args=").splitlines():
            pid, _, args = line.strip().partition(" ")
            if args.startswith("VLLM::") or ("/vllm serve " in args and "docker exec" not in args):
                found[int(pid)] = args.split(" --")[0]
        return found

    def kill(self, node: str, what: str) -> int:
        """SIGKILL to the engine's top process, or to its worker rank. Returns the pid."""
        start = "VLLM::Worker" if what == "rank" else "VLLM::EngineCore" if what == "core" else ""
        engine = self.engine(node)
        pids = [pid for pid, title in engine.items() if (title.startswith(start) if start else "vllm serve" in title)]
        assert pids, f"no {what} among {engine}"
        self.run(node, f"kill -9 {pids[0]}")
        return pids[0]

    def engine_logs(self, node: str) -> dict[str, str]:
        """Name -> what it has said, of each launch on this node whose log is kept: read from the node's disk."""
        logs = (self.lab.node(node).home / "upper/var/log/sparkd/engine").glob("*.log")
        found = {}
        for file in logs:
            with contextlib.suppress(FileNotFoundError):  # an old one, removed just now
                found[file.name] = file.read_text(errors="replace")
        return found

    @contextlib.contextmanager
    def traffic(self, *, streams: int = 3, max_s: float = 90, max_tokens: int = 400) -> Iterator[Traffic]:
        """Clients that ask in a loop, bounded in time, until the block ends."""
        traffic, over = Traffic(), threading.Event()
        deadline = time.monotonic() + max_s

        def ask() -> None:
            while not over.is_set() and time.monotonic() < deadline:
                try:
                    self.chat("Tell me a long story.", max_tokens=max_tokens, timeout_s=30)
                    traffic.answered += 1
                except (LabError, KeyError, ValueError, TypeError) as error:
                    traffic.failed.append(f"{type(error).__name__}: {error}")
                    time.sleep(0.5)

        with running([ask] * streams, over, join_max_s=40):
            yield traffic
