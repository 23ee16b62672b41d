"""What sparkd reads of `/metrics`: a handful of 700 lines. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counters:
    """The engine's own numbers, over all its engine cores. A counter that goes backwards is a restart."""

    running: int  # requests in a batch
    waiting: int  # requests in the queue
    generation_tokens: int
    prompt_tokens: int
    iterations: int  # steps of the engine: the heartbeat while there is work
    successes: int  # requests that ended as they should; not aborted, not failed
    server_errors: int  # answers of 500 and above
    cache: float = 0.0  # share of the KV cache in use: moves while a long prefill gives no token to count

    @property
    def busy(self) -> bool:
        return self.running + self.waiting > 0

    def moved_since(self, earlier: Counters) -> bool:
        """Whether the engine has done anything between the two; false while it hangs, and while it is idle."""
        mine = (self.generation_tokens, self.prompt_tokens, self.iterations)
        return mine != (earlier.generation_tokens, earlier.prompt_tokens, earlier.iterations)


_NAMES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:generation_tokens_total": "generation_tokens",
    "vllm:generation_tokens": "generation_tokens",  # as 0.6 to 0.8 named it
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:prompt_tokens": "prompt_tokens",
    "vllm:iteration_tokens_total_count": "iterations",
    "vllm:request_success_total": "successes",
    "http_requests_total": "server_errors",
    "vllm:kv_cache_usage_perc": "cache",
    "vllm:gpu_cache_usage_perc": "cache",  # as 0.6 to 0.9 named it
}
_NUMBER_MAX = 1e18  # no counter of ours comes near it
_NEEDED = {"running", "waiting", "generation_tokens"}


def parse_counters(text: str) -> Counters | None:
    """Sums each of the wanted series over its labels. None where the text is not a vLLM's."""
    totals = dict.fromkeys(_NAMES.values(), 0.0)
    seen: set[str] = set()
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        name, _, labels = series.partition("{")
        field = _NAMES.get(name)
        if field is None:
            continue
        if field == "server_errors" and 'status="5' not in labels:
            continue
        if field == "successes" and ('finished_reason="abort"' in labels or 'finished_reason="error"' in labels):
            continue
        try:
            number = float(value)
        except ValueError:
            continue
        if not 0 <= number < _NUMBER_MAX:  # NaN is not either
            continue
        totals[field] += number
        seen.add(field)
    cache = round(totals.pop("cache"), 6)
    return Counters(**{field: int(total) for field, total in totals.items()}, cache=cache) if seen >= _NEEDED else None
