"""Which of the engine's counters tell work from a hang: what the verdict on a hang is built on is asked of vLLM itself."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests.lab import network
from tests.lab.pair import ENDPOINT, Pair, wait_for

RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
USAGE = "vllm:kv_cache_usage_perc"
STEPS, PROMPT, GENERATED = (
    "vllm:iteration_tokens_total_count",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
)
PROMPT_TOKENS = 900
Counters = dict[str, float]


def counters(pair: Pair) -> Counters:
    text = pair.lab.client(["curl", "-sS", "-m", "10", f"{ENDPOINT}/metrics"]).stdout
    lines = [line for line in text.splitlines() if line.startswith("vllm:")]
    return {line.split("{")[0]: float(line.rpartition(" ")[2]) for line in lines}


def ask(pair: Pair, prompt: str | list[int], max_tokens: int) -> subprocess.Popen[str]:
    """A client in the LAN, under way; the caller ends it."""
    body = json.dumps({"model": pair.model, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True})
    argv = [
        "curl",
        "-sS",
        "-m",
        "120",
        "-H",
        "Content-Type: application/json",
        "-d",
        body,
        f"{ENDPOINT}/v1/completions",
    ]
    entered = network.entered(pair.lab.places, network.LAN, argv)
    return subprocess.Popen(entered, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def idle(pair: Pair) -> Counters:
    """Once no canary is under way."""

    def at_rest() -> Counters | None:
        now = counters(pair)
        return now if now[RUNNING] == now[WAITING] == 0 else None

    return wait_for("engine at rest", at_rest, max_s=60)


def test_in_a_chunked_prefill_only_the_caches_usage_moves(serving: Pair) -> None:
    """A prompt of 190,000 tokens freezes the others for minutes: the heartbeat too, which counts steps that had an output."""
    before = idle(serving)
    prompt = [50 + (time.monotonic_ns() + 7 * place) % 900 for place in range(PROMPT_TOKENS)]  # not in the prefix cache
    seen: list[Counters] = []
    with ask(serving, prompt, max_tokens=4) as client:
        while client.poll() is None:
            seen.append(counters(serving))
        assert client.stdout
        answer = json.loads(client.stdout.read())
    assert answer["usage"]["prompt_tokens"] == PROMPT_TOKENS
    prefilling = [now for now in seen if now[RUNNING] and now[PROMPT] == before[PROMPT]]
    assert len({now[USAGE] for now in prefilling}) > 1, seen
    assert {(now[STEPS], now[GENERATED]) for now in prefilling} == {(before[STEPS], before[GENERATED])}
    wait_for("prompt counted", lambda: counters(serving)[PROMPT] >= before[PROMPT] + PROMPT_TOKENS, max_s=30)


@pytest.mark.parametrize("node", ["spark1", "spark2"])
def test_a_hang_that_begins_while_idle_hides_the_requests_that_came_after(serving: Pair, node: str) -> None:
    """The gauges come with the end of a step, and none ends: nothing is in flight, by its own account. Only a canary tells."""
    idle(serving)
    rank = next(pid for pid, title in serving.engine(node).items() if title.startswith("VLLM::Worker"))
    serving.run(node, f"kill -STOP {rank}")
    try:
        before = counters(serving)
        with ask(serving, "Tell me a story.", max_tokens=16) as client:
            try:
                with pytest.raises(subprocess.TimeoutExpired):
                    client.wait(timeout=4)
                now = counters(serving)
            finally:
                serving.run(node, f"kill -CONT {rank}")
            assert client.wait(timeout=60) == 0
    finally:
        serving.run(node, f"kill -CONT {rank}", check=False)
    assert (now[RUNNING], now[WAITING]) == (0, 0)
    assert now == before
