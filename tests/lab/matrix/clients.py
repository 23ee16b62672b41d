"""Clients in the LAN, and what came back to them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from tests.lab import network
from tests.lab.pair import ENDPOINT, Pair

ASKER = Path(__file__).with_name("asker.py")
STREAMS = 3  # clients that ask without a pause
CLIENT_MAX_S = 20.0  # a client that has waited so long gives up: its request failed


@dataclass(frozen=True)
class Request:
    """One that came to its end. Wall clock, seconds."""

    sent: float
    done: float
    wrong: str  # empty: answered


class Clients:
    """None ask before `crowd` or `user` was called; all are gone when the block ends, and what was cut by that counts nowhere."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._requests: list[Request] = []
        self._programs: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> Clients:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def crowd(self) -> None:
        """Several that ask without a pause."""
        self._start("--streams", str(STREAMS))

    def user(self) -> None:
        """One that asks once a second until answered."""
        self._start("--once")

    @property
    def asking(self) -> bool:
        return bool(self._programs)

    def stop(self) -> None:
        for program in self._programs:
            program.kill()
        for program, reader in zip(self._programs, self._readers, strict=True):
            program.wait()
            reader.join(timeout=10)
        self._programs, self._readers = [], []

    def requests(self, since: float = 0.0) -> list[Request]:
        """Those that came to their end after `since`, in the order in which they were sent."""
        return sorted((r for r in list(self._requests) if r.done >= since), key=lambda request: request.sent)

    def answered_since(self, since: float) -> bool:
        """A request that was sent after `since` has been answered."""
        return any(not request.wrong and request.sent >= since for request in list(self._requests))

    def _start(self, *options: str) -> None:
        where = urlsplit(ENDPOINT)
        argv = [sys.executable, "-IS", str(ASKER), "--host", str(where.hostname), "--port", str(where.port)]
        argv += ["--model", self._pair.model, "--max-s", str(CLIENT_MAX_S), *options]
        entered = network.entered(self._pair.lab.places, network.LAN, argv)
        program = subprocess.Popen(entered, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        reader = threading.Thread(target=self._read, args=(program,), daemon=True)
        reader.start()
        self._programs.append(program)
        self._readers.append(reader)

    def _read(self, program: subprocess.Popen[str]) -> None:
        assert program.stdout
        for line in program.stdout:
            if line.endswith("\n"):
                told = json.loads(line)
                self._requests.append(Request(told["sent"], told["done"], told["wrong"]))


def wait_answered(clients: Clients, since: float, *, max_s: float) -> bool:
    """Whether a request sent after `since` is answered within `max_s`."""
    deadline = time.monotonic() + max_s
    while not clients.answered_since(since):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
