"""Faults at random: whatever a schedule does to the pair, it ends in serving, or in a `blocked` that is true.

`scripts/soak --schedules N` runs any number of others. A schedule that once found something stays here.
"""

from __future__ import annotations

import pytest

from tests.lab import breakages, ordeal, schedule
from tests.lab.pair import Pair

KINDS = breakages.kinds(breakages.catalogue(real_engine=False))
# A seed, or a schedule that once found something, as it was printed.
SCHEDULES: tuple[int | str, ...] = (3, 100)
CRASH_LOOP = "after 0 s  crash-every-request on spark1 for 100 s"


@pytest.mark.parametrize("drawn", SCHEDULES, ids=str)
def test_a_random_schedule(pair: Pair, drawn: int | str) -> None:
    one = schedule.draw(drawn, KINDS) if isinstance(drawn, int) else schedule.parse(drawn, sorted(KINDS))
    outcome = ordeal.endure(pair, one)
    assert outcome.good, str(outcome)


def test_an_engine_that_dies_again_and_again_ends_in_a_blocked_that_is_true(pair: Pair) -> None:
    outcome = ordeal.endure(pair, schedule.parse(CRASH_LOOP, sorted(KINDS)))
    assert outcome.good, str(outcome)
    assert outcome.ended == "blocked: engine.crash-loop"


def test_a_paused_container_is_not_waited_for(serving: Pair) -> None:
    """Nobody unpauses it: what is frozen in it takes no signal, and has to be thawed before it can be ended."""
    epoch = serving.epoch()
    serving.run("spark2", "docker pause vllm_ds4")
    serving.wait_serving(newer_than=epoch)


def test_a_broken_promise_is_seen(pair: Pair) -> None:
    """The judge is judged: a second launch beside the first, a stranger's file removed, and a claim without an answer."""
    planted = ordeal.strangers.plant(pair, "spark1")
    pair.run("spark1", f"rm {ordeal.strangers.OWN_SEGMENT}")
    assert any(
        "somebodys-own" in one for one in ordeal.strangers.touched(planted, ordeal.strangers.look(pair, "spark1"))
    )
    witness = ordeal.Witness(pair, claim_max_s=60)
    pair.run("spark1", "systemd-run --collect --quiet --unit=lab-second-launch -E SPARKD_LAUNCH_ID=0badcafe-1 sleep 60")
    pair.run("spark1", "systemd-run --collect --quiet --unit=lab-third-launch -E SPARKD_LAUNCH_ID=0badcafe-2 sleep 60")
    try:
        with witness.watching():
            ordeal.wait_for("a complaint", lambda: witness.complaints, max_s=30)
    finally:
        pair.run("spark1", "systemctl stop lab-second-launch lab-third-launch", check=False)
        ordeal.strangers.take_away(pair, "spark1")
    assert "more than one launch" in witness.complaints[0]
