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


class Request(threading.Thread):
    """A client in the LAN that has patience: a prompt of so many words, made by its shell."""

    def __init__(self, pair: Pair, words: int, *, max_s: float) -> None:
        super().__init__(daemon=True)
        self._pair, self.answer = pair, ""
        body = f'{{"model": "{pair.model}", "max_tokens": 8, "prompt": "\'"$(yes word | head -{words} | tr "\\n" " ")"\'"}}'
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
    epoch = serving.epoch()
    with turned(serving, "spark1", "kv_tokens", 900), serving.traffic(streams=8, max_s=2 * HANG_S + 10) as traffic:
        metrics = (
            f"curl -s {ENDPOINT}/metrics | grep -E '^vllm:num_(requests_waiting|preemptions_total)' | grep -cv ' 0.0$'"
        )
        wait_for(
            "waiting requests, thrown out before",
            lambda: serving.lab.client(["bash", "-c", metrics], check=False).stdout.strip() == "2",
            max_s=30,
        )
        wait_for("progress for long", lambda: traffic.answered > 20, max_s=2 * HANG_S + 60)
    assert (serving.epoch(), hung(serving, epoch), traffic.failed) == (epoch, [], [])
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
