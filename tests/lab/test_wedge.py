"""Hangs, and what looks like one: nothing is ended that works, and an engine that hangs is, while /health says 200."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.config import LIMITS
from tests.lab.pair import ENDPOINT, NODES, Pair, wait_for

HANG_S, BLIND_S = LIMITS["hang_max_s"], LIMITS["hang_blind_max_s"]
SLACK_S = 40.0  # the machine is shared with others' labs


@contextmanager
def turned(pair: Pair, node: str, knob: str, value: float) -> Iterator[None]:
    """One of the simulated vLLM's knobs on a node, until the block ends."""
    file = f"/var/lib/sparkd-lab/{knob}"
    before = pair.run(node, f"cat {file} 2>/dev/null || true").strip()
    pair.lab.node(node).write(file, f"{value:g}\n")
    try:
        yield
    finally:
        pair.run(node, f"echo {before} > {file}" if before else f"rm -f {file}")


@contextmanager
def fault(pair: Pair, node: str, name: str) -> Iterator[None]:
    pair.lab.fault(node, name, True)
    try:
        yield
    finally:
        pair.lab.fault(node, name, False)


@contextmanager
def gpu(pair: Pair, node: str, percent: int, watts: int) -> Iterator[None]:
    """What the lab's nvidia-smi says of this node."""
    program = "/usr/local/bin/nvidia-smi"
    shown = f"s/(utilization.gpu .*) echo 0 /\\1 echo {percent} /; s/echo 11.00 /echo {watts} /"
    pair.run(node, f"cp -p {program} /run/nvidia-smi && sed -E -i '{shown}' {program}")
    try:
        asked = pair.run(
            node, f"{program} --query-gpu=utilization.gpu,power.draw --format=csv,noheader,nounits"
        ).strip()
        assert asked == f"{percent}, {watts}"
        yield
    finally:
        pair.run(node, f"cp -p /run/nvidia-smi {program}")


class Request(threading.Thread):
    """A client in the LAN that has patience: a prompt of so many words, made by its shell."""

    def __init__(self, pair: Pair, words: int, *, tokens: int = 8, max_s: float) -> None:
        super().__init__(daemon=True)
        self._pair, self.answer = pair, ""
        prompt = f"'\"$(yes word | head -{words} | tr '\\n' ' ')\"'"
        body = f'{{"model": "{pair.model}", "max_tokens": {tokens}, "ignore_eos": true, "prompt": "{prompt}"}}'
        post = f"curl -sS -m {max_s:g} -H 'Content-Type: application/json' -d @- {ENDPOINT}/v1/completions"
        self._script = f"printf '%s' '{body}' | {post}"
        self.start()

    def run(self) -> None:
        self.answer = self._pair.lab.client(["bash", "-c", self._script], timeout_s=600, check=False).stdout

    def result(self, max_s: float) -> str:
        self.join(max_s)
        assert "choices" in self.answer, f"{self.answer[:300] or 'no answer'}\n{self._pair.story()}"
        return self.answer


def reasons_while(pair: Pair, request: Request, max_s: float) -> set[str]:
    """What `sparkd status` said meanwhile."""
    said: set[str] = set()

    def over() -> bool:
        said.add(str(pair.status().get("reason")))
        return not request.is_alive()

    wait_for("the answer", over, max_s=max_s, every_s=1.0)
    return said


def hung(pair: Pair, epoch: int) -> list[str]:
    """What the head said of a hang in this epoch."""
    said = f"epoch {epoch} lost on spark1"
    return [event["says"] for event in pair.events() if event["id"] == "engine.hung" and said in event["says"]]


# --- must not fire ---------------------------------------------------------------------------------


def test_a_long_prefill_goes_on(serving: Pair) -> None:
    """Four times `hang_max_s` without a token; the cache fills and the link is busy."""
    epoch = serving.epoch()
    with turned(serving, "spark1", "prefill_tokens_per_s", 1500):
        request = Request(serving, 90_000, max_s=300)
        said = reasons_while(serving, request, 400)
        request.result(10)
    assert any("busy: " in reason for reason in said), said
    assert (serving.epoch(), hung(serving, epoch)) == (epoch, [])
    serving.wait_serving()


@pytest.mark.parametrize("node", NODES)
def test_the_first_compilation_of_a_shape_goes_on(serving: Pair, node: str) -> None:
    """Nothing moves at all, for longer than even a blind head would wait."""
    epoch = serving.epoch()
    with turned(serving, node, "compile_s", BLIND_S + 15), fault(serving, node, "compile-next-request"):
        request = Request(serving, 5, max_s=300)
        said = reasons_while(serving, request, 400)
        request.result(10)
    assert any(f"{node}: a compiler is at work (cicc)" in reason for reason in said), said
    assert (serving.epoch(), hung(serving, epoch)) == (epoch, [])
    serving.wait_serving()


def test_a_full_cache_with_progress_goes_on(serving: Pair) -> None:
    """Room for two or three of eight: the others wait, some are thrown out, and tokens are made all the while."""
    epoch = serving.epoch()
    shown = f"curl -s {ENDPOINT}/metrics | grep -cE '^vllm:num_(requests_waiting|preemptions_total)\\{{.* [1-9]'"
    with turned(serving, "spark1", "kv_tokens", 900), turned(serving, "spark1", "tokens_per_s", 20):
        requests = [Request(serving, 100, tokens=300, max_s=300) for _ in range(8)]
        wait_for(
            "waiting requests, and some that were thrown out",
            lambda: serving.lab.client(["bash", "-c", shown], check=False).stdout.strip() == "2",
            max_s=40,
        )
        for request in requests:
            request.result(300)
    assert (serving.epoch(), hung(serving, epoch)) == (epoch, [])
    serving.wait_serving()


def test_a_gpu_that_draws_power_works_though_nothing_moves(serving: Pair) -> None:
    """A prefill in one step: nothing is counted for longer than a blind head would wait, and the GPU is at 45 W."""
    epoch = serving.epoch()
    with gpu(serving, "spark1", 96, 45):
        with fault(serving, "spark2", "hang-requests"):
            request = Request(serving, 5, max_s=300)
            wait_for(
                "the GPU as the reason",
                lambda: "busy: " in (said := str(serving.status().get("reason"))) and "96 % busy at 45 W" in said,
                max_s=60,
            )
            request.join(BLIND_S + 15)
            assert (serving.epoch(), hung(serving, epoch)) == (epoch, [])
        request.result(60)
    serving.wait_serving()


# --- must fire -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loaded", [False, True], ids=["idle", "loaded"])
@pytest.mark.parametrize("node", NODES)
def test_a_hang_ends_the_epoch_while_health_says_200(serving: Pair, node: str, loaded: bool) -> None:
    epoch = serving.epoch()
    health = serving.lab.client(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"{ENDPOINT}/health"])
    with fault(serving, node, "hang-requests"):
        request = Request(serving, 5, max_s=60) if loaded else None
        said = wait_for(
            "the verdict", lambda: hung(serving, epoch), max_s=LIMITS["canary_interval_s"] + BLIND_S + SLACK_S
        )
    assert health.stdout == "200"
    assert "no counter has moved for" in said[0] and "no node computes" in said[0], said
    serving.wait_serving(newer_than=epoch)
    if request is not None:
        request.join(70)


def test_a_silent_spin_is_told(serving: Pair) -> None:
    epoch = serving.epoch()
    with gpu(serving, "spark1", 95, 20), fault(serving, "spark2", "hang-requests"):
        said = wait_for(
            "the verdict", lambda: hung(serving, epoch), max_s=LIMITS["canary_interval_s"] + BLIND_S + SLACK_S
        )
    assert "spark1: its GPU is 95 % busy at 20 W, a silent spin" in said[0], said
    serving.wait_serving(newer_than=epoch)


def test_a_stopped_rank_is_named(serving: Pair) -> None:
    epoch = serving.epoch()
    rank = next(pid for pid, title in serving.engine("spark2").items() if title.startswith("VLLM::Worker"))
    serving.run("spark2", f"kill -STOP {rank}")
    said = wait_for("the verdict", lambda: hung(serving, epoch), max_s=LIMITS["canary_interval_s"] + BLIND_S + SLACK_S)
    assert "spark2: VLLM::Worker_TP1" in said[0] and "is stopped" in said[0], said
    serving.wait_serving(newer_than=epoch)


def test_a_rank_that_died_unseen_is_found(serving: Pair) -> None:
    """Its daemon is away, and the head's rank waits for it as NCCL does: only the canary tells, and nobody else can."""
    epoch = serving.epoch()
    serving.run("spark2", "systemctl stop sparkd")
    try:
        with fault(serving, "spark1", "peer-loss-hangs"):
            serving.kill("spark2", "rank")
            said = wait_for(
                "the verdict", lambda: hung(serving, epoch), max_s=LIMITS["canary_interval_s"] + BLIND_S + SLACK_S
            )
    finally:
        serving.run("spark2", "systemctl start sparkd")
    assert "spark2 tells nothing of its part of the engine" in said[0], said
    serving.wait_serving(newer_than=epoch)
