"""The real vLLM in the place of the simulated one: nothing in sparkd changes.

Two nodes, tensor parallel over gloo, a tiny model of random weights. What the simulation claims about vLLM is asked of
vLLM itself here: its process tree, titles and environment, its log, its counters.
"""

from __future__ import annotations

import json

import pytest

from tests.lab.pair import NODES, Pair, wait_for
from tests.lab.real_engine import SERVES_MAX_S

TITLES = {"spark1": ["VLLM::EngineCore", "VLLM::Worker_TP0", "vllm"], "spark2": ["VLLM::Worker_TP1", "vllm"]}


def launch_id(pair: Pair, node: str, pid: int) -> str:
    """As /proc shows it, whatever title the process has taken; empty where it does not."""
    environ = pair.run(node, f"tr '\\0' '\\n' </proc/{pid}/environ")
    return next((line.partition("=")[2] for line in environ.splitlines() if line.startswith("SPARKD_LAUNCH_ID=")), "")


def segments(pair: Pair, node: str) -> list[str]:
    return [name for name in pair.run(node, "ls /dev/shm").split() if name.startswith(("psm_", "sem.mp-"))]


def test_it_comes_up_and_answers(serving: Pair) -> None:
    assert serving.status()["proof"]["content_chars"] > 0
    assert serving.chat("Say something.", max_tokens=32)["content"]


@pytest.mark.parametrize("node", NODES)
def test_its_processes_are_recognised(serving: Pair, node: str) -> None:
    engine = serving.engine(node)
    assert sorted("vllm" if "vllm serve" in title else title.strip() for title in engine.values()) == TITLES[node]
    assert {launch_id(serving, node, pid) for pid in engine} == {serving.status(node)["launch_id"]}
    assert "nothing to clean" in serving.run(node, "sparkd clean --dry-run")


def test_it_got_what_the_plan_says(serving: Pair) -> None:
    """The comparison with /proc ends an epoch where anything differs; none has ended for that."""
    for node in NODES:
        assert not {"engine.argv-differs", "engine.argv-unreadable", "engine.env-differs"} & set(
            serving.event_ids(node)
        )


def test_its_log_taught_how_long_each_step_takes(serving: Pair) -> None:
    learned = json.loads(serving.run("spark1", "cat /var/lib/sparkd/learned.json"))
    assert {"imports", "rendezvous", "weights", "kv-cache", "server"} <= set(learned)


def test_an_idle_endpoint_is_proven_again(serving: Pair) -> None:
    before = serving.status()["proof"]["at"]
    wait_for("a canary's proof", lambda: serving.status()["proof"]["at"] > before, max_s=60)


def test_sparkd_is_restarted_under_traffic_and_adopts(serving: Pair) -> None:
    """On the worker, on the head, on both: the same processes, no failed request."""
    epoch, engines = serving.epoch(), {node: serving.engine(node) for node in NODES}
    with serving.traffic(streams=2, max_tokens=200, max_s=SERVES_MAX_S) as traffic:
        wait_for("first answer under load", lambda: traffic.answered, max_s=60)
        for group in (("spark2",), ("spark1",), NODES):
            for node in group:
                serving.run(node, "systemctl restart sparkd")
            serving.wait_serving()
    assert traffic.failed == []
    assert {node: serving.engine(node) for node in NODES} == engines
    assert serving.epoch() == epoch


def test_stop_under_load_leaves_nothing_and_start_serves(serving: Pair) -> None:
    """Asked to stop with requests in flight, its server waits for ever for connections that nobody answers any more."""
    epoch = serving.epoch()
    with serving.traffic(max_tokens=700, max_s=60) as traffic:
        wait_for("first answer under load", lambda: traffic.answered, max_s=60)
        serving.run("spark1", "sparkd stop")
        for node in NODES:
            serving.wait_phase("idle", node)
    for node in NODES:
        assert not serving.engine(node)
        assert not serving.run(node, "ss -Hltn '( sport = 8000 or sport = 29501 )'")
    assert not segments(serving, "spark1")
    serving.run("spark1", "sparkd start")
    serving.wait_serving(newer_than=epoch)
