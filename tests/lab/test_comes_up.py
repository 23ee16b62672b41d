"""From nothing to a proven answer, and what is shown on the way."""

from __future__ import annotations

import json

from tests.lab.pair import NODES, Pair, wait_for


def test_systemctl_start_brings_up_the_pair(pair: Pair) -> None:
    pair.start()
    status = pair.wait_serving()
    assert status["proof"]["content_chars"] > 0
    assert status["proof"]["reasoning_field"] == "reasoning"
    assert status["proof"]["tool_call"] is True


def test_the_answer_has_content_and_reasoning(serving: Pair) -> None:
    message = serving.chat("What is 2 + 2?")
    assert message["content"]
    assert message["reasoning"]


def test_every_step_of_the_design_card_is_in_the_events(serving: Pair) -> None:
    for node in NODES:
        events = serving.events(node)
        told = {event["id"]: event["says"] for event in events}
        assert "sparkd-engine.service: /opt/sparkd/libexec/sparkd-engine" in told["phase.preflight"]
        assert "frames of 9000 bytes" in told["phase.preflight"]
        assert "stale" in told["phase.clean"]
        assert "leftover segments" in told["phase.clean"]
        assert "page cache dropped: free" in told["phase.clean"]
        assert "read back equal" in told["phase.stage"]
        assert "2 times empty_cache" in told["phase.stage"]
        assert "equal the plan" in told["engine.verified"]
        assert "launch" in told["phase.launching"]
    head = [event["says"] for event in serving.events("spark1") if event["id"] == "barrier.opened"]
    assert any("workers launch" in says for says in head)
    assert any("the head launches" in says for says in head)


def test_the_worker_launched_before_the_head(serving: Pair) -> None:
    def launched_at(node: str) -> str:
        return next(e["at"] for e in reversed(serving.events(node)) if "-> launching" in e["says"])

    assert launched_at("spark2") < launched_at("spark1")


def test_the_engine_runs_exactly_the_plan(serving: Pair) -> None:
    """Byte for byte, JSON included, as the kernel has it."""
    script = serving.run("spark1", "sparkd render --rank 0")
    pid = next(pid for pid, title in serving.engine("spark1").items() if "vllm serve" in title)
    argv = serving.run("spark1", f"tr '\\0' '\\n' < /proc/{pid}/cmdline").splitlines()
    assert '{"cudagraph_mode":"FULL_AND_PIECEWISE","custom_ops":["all"]}' in argv
    assert '{"cudagraph_mode":"FULL_AND_PIECEWISE","custom_ops":["all"]}' in script
    environ = serving.run("spark1", f"tr '\\0' '\\n' < /proc/{pid}/environ").splitlines()
    assert any(line.startswith("SPARKD_LAUNCH_ID=") for line in environ)
    assert "NCCL_SOCKET_IFNAME=bond0" in environ


def test_systemd_shows_the_phase_in_words(serving: Pair) -> None:
    for node in NODES:
        said = serving.run(node, "systemctl show -p StatusText --value sparkd")
        assert said.startswith("serving epoch"), said
    assert serving.run("spark1", "systemctl is-active sparkd-engine").strip() == "active"


def test_status_exits_0_and_wait_returns(serving: Pair) -> None:
    serving.run("spark1", "sparkd status")
    serving.run("spark2", "sparkd wait --ready --timeout 30")


def test_stop_and_start_from_the_worker(serving: Pair) -> None:
    """An operator's word is taken on either node."""
    epoch = serving.epoch()
    serving.run("spark2", "sparkd stop")
    for node in NODES:
        serving.wait_phase("idle", node)
        assert not serving.engine(node)
    serving.run("spark2", "sparkd start")
    serving.wait_serving(newer_than=epoch)


def test_a_profile_change_restarts_with_its_arguments(serving: Pair) -> None:
    epoch = serving.epoch()
    serving.run("spark1", "sparkd restart --profile latency")
    serving.wait_serving(newer_than=epoch)
    pid = next(pid for pid, title in serving.engine("spark2").items() if "vllm serve" in title)
    argv = serving.run("spark2", f"tr '\\0' ' ' < /proc/{pid}/cmdline")
    assert "--max-model-len 200000" in argv
    assert "--enable-expert-parallel" not in argv
    epoch = serving.epoch()
    serving.run("spark1", "sparkd restart --profile balanced")
    serving.wait_serving(newer_than=epoch)


def test_clean_dry_run_finds_nothing_on_a_healthy_pair(serving: Pair) -> None:
    before = serving.engine("spark1")
    said = json.loads(serving.run("spark1", "sparkd clean --dry-run --json"))
    assert "nothing to clean" in json.dumps(said)
    assert serving.engine("spark1") == before


def test_a_changed_configuration_is_pending_until_restart(serving: Pair) -> None:
    before, epoch = serving.engine("spark1"), serving.epoch()
    recipe = "/etc/sparkd/recipes/deepseek-v4-flash.yaml"
    for node in NODES:
        serving.run(node, f"sed -i.kept 's/OMP_NUM_THREADS: \"8\"/OMP_NUM_THREADS: \"6\"/' {recipe}")
    try:
        wait_for("pending change", lambda: serving.status().get("pending"), max_s=20)
        assert serving.engine("spark1") == before
        serving.run("spark1", "sparkd restart")
        serving.wait_serving(newer_than=epoch)
        pid = next(pid for pid, title in serving.engine("spark2").items() if "vllm serve" in title)
        assert "OMP_NUM_THREADS=6" in serving.run("spark2", f"tr '\\0' '\\n' < /proc/{pid}/environ")
    finally:
        epoch = serving.epoch()
        for node in NODES:
            serving.run(node, f"mv {recipe}.kept {recipe}")
        serving.run("spark1", "sparkd restart")
        serving.wait_serving(newer_than=epoch)
