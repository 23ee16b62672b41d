"""The API process's end of the engine core: requests out, token counts in, and what becomes of them when it dies."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

from vllm_sim.channel import Channel, Closed

ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class EngineDead(Exception):
    def __init__(self) -> None:
        super().__init__(ENGINE_DEAD)


class EngineClient:
    """Thread-safe: each request is served by a thread of its own, one more reads the engine core's answers."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._requests: dict[str, queue.SimpleQueue[int]] = {}
        self._lock = threading.Lock()
        self.dead = False
        self.said_dead = False  # the engine core's own last word, not a silent end
        self.running = 0
        self.waiting = 0
        self.cache_usage = 0.0  # 0 to 1
        self.preemptions = 0

    @property
    def in_flight(self) -> int:
        return len(self._requests)

    def read_outputs(self) -> None:
        """Until the engine core dies or says that it does: then every request gets EngineDead."""
        try:
            while True:
                message = self._channel.receive()
                if "dead" in message:
                    self.said_dead = True
                    break
                self._deliver(message)
        except Closed:
            pass
        self.fail()

    def _deliver(self, message: dict[str, Any]) -> None:
        self.running, self.waiting = message["running"], message["waiting"]
        self.cache_usage, self.preemptions = message["cache_usage"], message["preemptions"]
        with self._lock:
            for name, made, finished in message["outputs"]:
                if name in self._requests:
                    self._requests[name].put(made)
                    if finished:
                        self._requests[name].put(0)

    def fail(self) -> None:
        self.dead = True
        with self._lock:
            for outputs in self._requests.values():
                outputs.put(-1)

    def generate(self, name: str, prompt_tokens: int, tokens: int) -> Iterator[int]:
        """Yields how many tokens each step made. Raises EngineDead. Closing it early aborts the request."""
        outputs: queue.SimpleQueue[int] = queue.SimpleQueue()
        with self._lock:
            self._requests[name] = outputs
        try:
            self._send({"add": name, "prompt_tokens": prompt_tokens, "tokens": tokens})
            while True:
                if self.dead:
                    raise EngineDead
                try:
                    made = outputs.get(timeout=1.0)
                except queue.Empty:
                    yield 0  # lets the caller look whether somebody still listens
                    continue
                if made < 0:
                    raise EngineDead
                if made == 0:
                    return
                yield made
        except GeneratorExit:
            self._send({"abort": name})
            raise
        finally:
            with self._lock:
                del self._requests[name]

    def _send(self, message: Any) -> None:
        try:
            self._channel.send(message)
        except Closed:
            self.dead = True
