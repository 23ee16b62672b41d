"""`sparkd doctor` on a pair that serves, or did until its engine or a node went: nothing wrong, or the root by its name."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.lab.asking import doctor, told
from tests.lab.pair import NODES, Pair, wait_for

RECIPE = "/etc/sparkd/recipes/deepseek-v4-flash.yaml"


@pytest.mark.parametrize("node", NODES)
def test_a_healthy_pair_is_told_to_be_healthy(serving: Pair, node: str) -> None:
    answer = doctor(serving, node)
    assert answer["headline"] is None, told(answer)
    assert len(answer["nodes"]) == 2 and not answer["absent"], told(answer)
    first = wait_for("doctor with time to look", lambda: _unhurried_line(serving, node), max_s=60)
    assert "nothing wrong" in first, first


def _unhurried_line(pair: Pair, node: str) -> str | None:
    """As `doctor` asks again for what it reads."""
    first = pair.run(node, "sparkd doctor", check=False).splitlines()[0]
    return None if "had no answer" in first or "did not answer" in first else first


def test_a_lost_rank_is_told_while_the_next_launch_is_on_its_way(serving: Pair) -> None:
    epoch = serving.epoch()
    serving.kill("spark2", "rank")
    wait_for("relaunch", lambda: serving.epoch() > epoch, max_s=30)
    headline = doctor(serving, "spark1")["headline"]
    assert headline is not None and headline["verdict"] == "warning", headline
    assert headline["node"] == "spark2" and f"epoch {epoch} ended" in headline["says"], headline
    serving.wait_serving(newer_than=epoch)
    after = doctor(serving, "spark1")
    assert after["headline"] is None, told(after)


@pytest.mark.parametrize(
    ("id", "node", "break_it", "mend_it"),
    [
        ("container.restart-policy", "spark2", "docker update --restart=always vllm_ds4", "docker update --restart=no vllm_ds4"),
        ("link.mtu", "spark2", "ip link set bond0 mtu 1500", "ip link set bond0 mtu 9000"),
        ("script.peer-plan-differs", "spark2",
         f"cp {RECIPE} /root/kept; sed -i 's/^  block-size: 256/  block-size: 128/' {RECIPE}", f"cp /root/kept {RECIPE}"),
        ("unit.not-running", "spark1", "systemctl stop sparkd", "systemctl start sparkd"),
        ("daemon.peer-silent", "spark2", "systemctl stop sparkd", "systemctl start sparkd"),
    ],
)  # fmt: skip
def test_a_fault_beside_an_engine_that_serves(serving: Pair, id: str, node: str, break_it: str, mend_it: str) -> None:
    """The engine goes on; the first line says what will keep the next launch from coming up, and on which node."""
    epoch = serving.epoch()
    try:
        serving.run(node, break_it)
        answer = wait_for(id, lambda: _headline(serving, id), max_s=15)
        assert node in f"{answer['node'] or node} {answer['says']}", answer
    finally:
        serving.run(node, mend_it, check=False)
    serving.wait_serving()
    assert serving.epoch() == epoch, "nothing of this ends an engine"


def _headline(pair: Pair, id: str) -> dict[str, Any] | None:
    """What is broken takes the daemons a moment to notice."""
    headline: dict[str, Any] | None = doctor(pair, "spark1")["headline"]
    return headline if headline and headline["id"] == id else None


def test_what_changed_since_it_last_worked_is_told(serving: Pair) -> None:
    """Each node writes its baseline when the launch has held; a changed sysctl is then drift."""
    wait_for("a baseline on both nodes and no drift", lambda: _drift(serving).returncode == 0, max_s=60)
    before = serving.run("spark1", "sysctl -n vm.swappiness").strip()
    try:
        serving.run("spark1", "sysctl -q vm.swappiness=7")
        done = _drift(serving)
        assert done.returncode == 1 and "vm.swappiness" in done.stdout, done.stdout
    finally:
        serving.run("spark1", f"sysctl -q vm.swappiness={before}")


def _drift(pair: Pair) -> subprocess.CompletedProcess[str]:
    return pair.lab.node("spark1").run("sparkd drift", timeout_s=30, check=False)


def test_a_failed_start_is_named_by_its_root(serving: Pair) -> None:
    """What only the engine's log tells: the root, not that the engine core failed to initialise."""
    epoch = serving.epoch()
    try:
        serving.lab.fault("spark1", "kv-cache-too-small", True)
        serving.run("spark1", "sparkd restart")
        serving.wait_phase("blocked", max_s=90)
        answer = doctor(serving, "spark1")
        assert answer["headline"]["id"] == "engine-kv-cache-smaller-than-max-len", told(answer)
    finally:
        serving.lab.fault("spark1", "kv-cache-too-small", False)
        serving.run("spark1", "sparkd start")
    serving.wait_serving(newer_than=epoch)


def test_after_a_power_cut_the_events_say_so(serving: Pair) -> None:
    epoch = serving.epoch()
    node = serving.lab.node("spark2")
    node.power_cut()
    node.power_on()
    serving.wait_serving(newer_than=epoch, max_s=180)
    said = [event["says"] for event in serving.events("spark2") if event["id"] == "unit.last-boot"]
    assert said and "power" in said[-1], said
