"""Everything that ends an engine, on either node: the pair serves again without a person."""

from __future__ import annotations

import pytest

from tests.lab.pair import NODES, Pair, wait_for

CONTAINER = "vllm_ds4"


@pytest.mark.parametrize("loaded", [False, True], ids=["idle", "loaded"])
@pytest.mark.parametrize("what", ["top", "rank"])
@pytest.mark.parametrize("node", NODES)
def test_a_killed_engine_process(serving: Pair, node: str, what: str, loaded: bool) -> None:
    epoch = serving.epoch()
    if loaded:
        with serving.traffic() as traffic:
            wait_for("first answer under load", lambda: traffic.answered, max_s=30)
            serving.kill(node, what)
            serving.wait_serving(newer_than=epoch)
    else:
        serving.kill(node, what)  # no request is needed to notice
        serving.wait_serving(newer_than=epoch)
    assert "engine.rank-died" in serving.event_ids(node)
    assert any(f"epoch {epoch} ended everywhere" in event["says"] for event in serving.events("spark1"))


def test_a_killed_engine_core(serving: Pair) -> None:
    epoch = serving.epoch()
    serving.kill("spark1", "core")
    serving.wait_serving(newer_than=epoch)


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("verb", ["restart -t 3", "stop -t 3", "rm -f"])
def test_the_container_is_taken_away(serving: Pair, node: str, verb: str) -> None:
    epoch = serving.epoch()
    serving.run(node, f"docker {verb} {CONTAINER}")
    serving.wait_serving(newer_than=epoch)
    if verb == "rm -f":
        said = [event["says"] for event in serving.events(node) if event["id"] == "phase.container"]
        assert "created" in said[-1], said


@pytest.mark.parametrize("node", NODES)
def test_docker_is_restarted(serving: Pair, node: str) -> None:
    epoch = serving.epoch()
    serving.run(node, "systemctl restart docker")
    serving.wait_serving(newer_than=epoch)


@pytest.mark.parametrize("how", ["kill -s KILL --kill-who=main", "restart"], ids=["kill", "restart"])
def test_sparkd_itself_goes_and_the_engine_is_adopted(serving: Pair, how: str) -> None:
    """Same pids, no failed request: on the worker, on the head, on both at once."""
    epoch = serving.epoch()
    engines = {node: serving.engine(node) for node in NODES}
    pids = {node: serving.run(node, "systemctl show -p MainPID --value sparkd") for node in NODES}
    with serving.traffic() as traffic:
        for group in (("spark2",), ("spark1",), NODES):
            for node in group:
                serving.run(node, f"systemctl {how} sparkd")
            for node in group:
                wait_for(
                    f"a new daemon on {node}",
                    lambda node=node: serving.run(node, "systemctl show -p MainPID --value sparkd") not in ("0\n", pids[node]),
                    max_s=20,
                )
                pids[node] = serving.run(node, "systemctl show -p MainPID --value sparkd")
            serving.wait_serving(max_s=40)
    assert traffic.failed == []
    assert traffic.answered > 0
    assert {node: serving.engine(node) for node in NODES} == engines
    assert serving.epoch() == epoch


@pytest.mark.parametrize("nodes", [("spark1", "spark2"), ("spark1",), ("spark2",)], ids="+".join)
@pytest.mark.parametrize("how", ["reboot", "power-cut"])
def test_reboots(serving: Pair, nodes: tuple[str, ...], how: str) -> None:
    epoch = serving.epoch()
    if how == "power-cut":
        for node in nodes:
            serving.lab.node(node).power_cut()
        for node in nodes:
            serving.lab.node(node).power_on()
    else:
        for node in nodes:
            serving.lab.node(node).reboot()
    serving.wait_serving(newer_than=epoch)


def test_the_link_drops_for_a_moment_and_nobody_tears_anything_down(serving: Pair) -> None:
    epoch, engines = serving.epoch(), {node: serving.engine(node) for node in NODES}
    serving.lab.link_down()
    wait_for("silence noticed", lambda: "silent" in serving.status().get("reason", ""), max_s=20)
    serving.lab.link_up()
    serving.wait_serving()
    assert serving.epoch() == epoch
    assert {node: serving.engine(node) for node in NODES} == engines


def test_a_link_that_stays_away_ends_the_epoch_and_comes_back(serving: Pair) -> None:
    epoch = serving.epoch()
    serving.lab.link_down()
    try:
        for node in NODES:
            wait_for(f"{node} leaves epoch {epoch}", lambda node=node: not serving.engine(node), max_s=60)
    finally:
        serving.lab.link_up()
    serving.wait_serving(newer_than=epoch)


def test_a_hang_is_told_from_work(serving: Pair) -> None:
    """/health stays 200 while nothing is answered: the canary and the frozen counters decide."""
    epoch = serving.epoch()
    serving.lab.fault("spark1", "hang-requests", True)
    try:
        wait_for("the hang noticed", lambda: serving.status().get("epoch", 0) != epoch, max_s=90)
    finally:
        serving.lab.fault("spark1", "hang-requests", False)
    serving.wait_serving(newer_than=epoch)
