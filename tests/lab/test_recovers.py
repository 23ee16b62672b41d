"""What sparkd tells of a recovery, beside recovering: the matrix (test_matrix.py) sees only what came of it."""

from __future__ import annotations

import pytest

from tests.lab.pair import NODES, Pair, wait_for

CONTAINER = "vllm_ds4"


@pytest.mark.parametrize("node", NODES)
def test_a_death_is_told_with_its_process_and_its_epoch(serving: Pair, node: str) -> None:
    epoch = serving.epoch()
    serving.kill(node, "rank")
    serving.wait_serving(newer_than=epoch)
    assert "engine.rank-died" in serving.event_ids(node)
    assert any(f"epoch {epoch} ended everywhere" in event["says"] for event in serving.events("spark1"))


def test_a_container_that_was_made_anew_is_told(serving: Pair) -> None:
    epoch = serving.epoch()
    serving.run("spark2", f"docker rm -f {CONTAINER}")
    serving.wait_serving(newer_than=epoch)
    said = [event["says"] for event in serving.events("spark2") if event["id"] == "phase.container"]
    assert "created" in said[-1], said


def test_a_silent_peer_is_told_while_the_engine_is_left_alone(serving: Pair) -> None:
    epoch = serving.epoch()
    serving.lab.link_down()
    try:
        wait_for("silence noticed", lambda: "silent" in serving.status().get("reason", ""), max_s=20)
    finally:
        serving.lab.link_up()
    serving.wait_serving()
    assert serving.epoch() == epoch
