"""The published deployment's units keep the pair up in this lab, and go without a trace: the fault matrix measures both."""

from __future__ import annotations

import time

import pytest

from tests.lab.matrix.seed_units import CONTAINER, SeedUnits, unit
from tests.lab.pair import NODES, Pair, wait_for


def test_the_published_units_serve_restart_and_leave_the_lab_to_sparkd(pair: Pair) -> None:
    with SeedUnits(pair) as units:
        units.bring_up()
        before = units.launch()
        assert units.noticed_at(time.time()) is None

        killed_at = time.time()
        pair.kill("spark2", "rank")
        wait_for("restart of the worker's unit", lambda: units.noticed_at(killed_at), max_s=30)
        # Without a user who asks, the head would go on for ever beside a worker that waits for it.
        wait_for("new launch that answers", lambda: units.answers() and units.launch() not in (None, before), max_s=150)

        units.bring_up()  # whatever that left
        assert units.launch() is not None and units.settled()

    for node in NODES:
        assert not pair.engine(node)
        assert pair.lab.node(node).run(["systemctl", "cat", unit(node)], check=False).returncode, (
            "the unit is still there"
        )
        assert CONTAINER not in pair.run(node, "docker ps --all --format '{{.Names}}'")
    pair.start()
    pair.wait_serving()


def test_sparkd_leaves_the_published_container_alone_and_goes_on_when_it_is_gone(serving: Pair) -> None:
    """It lacks mounts of the recipe, and only a person knows whether anybody still needs it: blocked once, and quietly."""
    with SeedUnits(serving) as units:
        units.bring_up()
        launch = units.launch()
        for node in NODES:
            serving.run(node, "systemctl start --no-block sparkd")
        serving.wait_phase("blocked", "spark2")
        before = len(serving.events("spark2"))
        with pytest.raises(AssertionError):  # nothing was mended
            wait_for("try", lambda: serving.event_ids("spark2")[before:], max_s=12)
        assert units.answers() and units.launch() == launch, "somebody else's engine was touched"
    serving.start()
    serving.wait_serving()
