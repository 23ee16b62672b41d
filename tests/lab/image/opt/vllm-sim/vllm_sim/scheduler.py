"""Which requests run in the next step, as vLLM's scheduler decides it: chunked prefill, a KV cache that may be full, preemption.

A prompt is computed in chunks of `max_num_batched_tokens`, and gives no output before its last one. What does not fit into the
cache waits; what outgrows it while it runs is thrown out, the youngest first, and computed anew.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from vllm_sim import knobs
from vllm_sim.config import EngineConfig

STEP_S = 0.02


@dataclass
class Request:
    prompt_tokens: int
    left: int
    computed: int = 0  # of the prompt
    made: int = 0

    @property
    def held(self) -> int:
        """Tokens in the KV cache."""
        return self.computed + self.made

    @property
    def answers(self) -> bool:
        """The whole prompt is computed in the step that runs: it gives tokens."""
        return self.computed == self.prompt_tokens


class Step(NamedTuple):
    count: int  # tokens that each answering request gets
    seconds: float
    more: bool  # another one follows


class Scheduler:
    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.waiting: dict[str, Request] = {}
        self.running: dict[str, Request] = {}
        self.preemptions = 0

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, name: str, prompt_tokens: int, tokens: int) -> None:
        self.waiting[name] = Request(prompt_tokens, tokens)

    def abort(self, name: str) -> None:
        self.running.pop(name, None)
        self.waiting.pop(name, None)

    def plan(self) -> Step | None:
        """The next step, None where nothing can run."""
        self._preempt()
        self._admit()
        if not self.running:
            return None
        rate = knobs.tokens_per_s()
        count = max(1, round(rate * STEP_S))
        seconds = count / rate + self._prefill() / knobs.prefill_tokens_per_s()
        more = bool(self.waiting) or any(one.left > count or not one.answers for one in self.running.values())
        return Step(count, seconds, more)

    def outputs(self, count: int) -> list[list[Any]]:
        """What the step gave: name, tokens, whether that was all. An abort may have come meanwhile."""
        made = []
        for name, request in list(self.running.items()):
            if not request.answers:
                continue
            tokens = min(count, request.left)
            request.left -= tokens
            request.made += tokens
            made.append([name, tokens, request.left == 0])
            if request.left == 0:
                del self.running[name]
        return made

    def state(self) -> dict[str, Any]:
        usage = min(1.0, self._held() / self._room())
        waiting = {"running": len(self.running), "waiting": len(self.waiting)}
        return {**waiting, "cache_usage": usage, "preemptions": self.preemptions}

    def _preempt(self) -> None:
        while len(self.running) > 1 and self._held() > self._room():
            name, request = self.running.popitem()
            again = Request(request.prompt_tokens + request.made, request.left)
            self.waiting = {name: again, **self.waiting}
            self.preemptions += 1

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.config.max_num_seqs:
            name = next(iter(self.waiting))
            if self.running and self._held() + self.waiting[name].prompt_tokens > self._room():
                return
            self.running[name] = self.waiting.pop(name)

    def _prefill(self) -> int:
        """Takes the next chunk; how many prompt tokens are in it."""
        budget = self.config.max_num_batched_tokens
        for request in self.running.values():
            chunk = min(budget, request.prompt_tokens - request.computed)
            request.computed += chunk
            budget -= chunk
        return self.config.max_num_batched_tokens - budget

    def _held(self) -> int:
        return sum(request.held for request in self.running.values())

    def _room(self) -> int:
        """Read each time: the knob `kv_tokens` makes the cache small while it runs."""
        return max(1, self.config.kv_cache_tokens)
