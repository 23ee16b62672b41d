"""The simulated vLLM at work for long: prompts in chunks, a compiler, a cache that is full. What /metrics shows of each."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sim_vllm import Lab, wait_for

from sparkd.engine.metrics import Counters, parse_counters


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.end()


def counted(lab: Lab) -> Counters:
    counters = parse_counters(httpx.get(f"{lab.url}/metrics").text)
    assert counters is not None
    return counters


def preempted(lab: Lab) -> float:
    lines = httpx.get(f"{lab.url}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("vllm:num_preemptions_total")).split()[-1])


class Asking(threading.Thread):
    def __init__(self, lab: Lab, prompt: str, tokens: int) -> None:
        super().__init__(daemon=True)
        self._lab, self._prompt, self._tokens = lab, prompt, tokens
        self.status = 0
        self.start()

    def run(self) -> None:
        body = {"prompt": self._prompt, "max_tokens": self._tokens, "ignore_eos": True}
        self.status = self._lab.post(body, "/v1/completions", limit_s=60).status_code


def test_a_long_prompt_fills_the_cache_before_anything_is_counted(lab: Lab) -> None:
    lab.start_pair(VLLM_SIM_PREFILL_TOKENS_PER_S="20000")
    lab.wait_ready()
    began = counted(lab)
    asking = Asking(lab, "word " * 60_000, 4)
    seen: list[Counters] = []

    def is_over() -> bool:
        seen.append(counted(lab))
        return asking.status == 200

    wait_for(is_over, 60)
    prefilling = [one for one in seen if one.running and not one.moved_since(began)]
    usages = sorted({one.cache for one in prefilling} - {0.0})
    assert len(usages) >= 2, "the gauge moves with each chunk"
    assert seen[-1].moved_since(began) and counted(lab).iterations > began.iterations


def test_a_compiler_burns_below_the_rank_and_nothing_moves(lab: Lab) -> None:
    lab.start_pair(VLLM_SIM_COMPILE_S="2")
    lab.wait_ready()
    lab.fault(1, "compile-next-request")
    began = counted(lab)
    asking = Asking(lab, "hello", 4)
    compiler = wait_for(lambda: next((pid for title, pid in lab.processes().items() if "cicc" in title), None))
    wait_for(lambda: Path(f"/proc/{compiler}/comm").read_text() == "cicc\n")
    still = counted(lab)
    assert (still.moved_since(began), still.running, still.cache) == (False, began.running, began.cache)
    wait_for(lambda: asking.status == 200)
    assert not any("cicc" in title for title in lab.processes())


def test_a_full_cache_makes_requests_wait_and_throws_some_out_but_all_are_answered(lab: Lab) -> None:
    lab.start_pair(VLLM_SIM_TOKENS_PER_S="500")
    lab.wait_ready()
    (lab.directory / "node0" / "kv_tokens").write_text("700")
    asking = [Asking(lab, "word " * 100, 300) for _ in range(6)]
    wait_for(lambda: counted(lab).waiting > 0)
    wait_for(lambda: preempted(lab) > 0)
    wait_for(lambda: all(one.status == 200 for one in asking), 60)
