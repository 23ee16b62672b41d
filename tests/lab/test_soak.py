"""Three minutes of serving with a fault every half: nothing is left behind that adds up. `scripts/soak --minutes 60` is longer.

Too short for a slope: what is counted (files, threads, processes, disk) comes back to where it was, within bounds that
a leak of one for each fault would leave.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest

from tests.lab import gauges, soak
from tests.lab.gauges import Reading
from tests.lab.pair import NODES, Pair, wait_for
from tests.lab.soak import Soak

MINUTES, EVERY_S = 2.5, 20.0
ENGINE_LOGS_KEPT = 10
BASELINES_KEPT = 5
HALF_WRITTEN = "find /var/lib/sparkd /var/log/sparkd /run/sparkd '(' -name '*.new' -o -name '*.corrupt' ')'"


@pytest.fixture(scope="module")
def soaked(pair: Pair) -> Iterator[tuple[Soak, dict[str, Reading], dict[str, Reading]]]:
    """The soak, and both nodes before and after it, at rest."""
    pair.start()
    pair.wait_serving()
    for node in NODES:
        pair.run(node, "sparkd doctor --json >/dev/null", check=False)  # what is imported and opened once only
        pair.run(node, f"{HALF_WRITTEN} -delete")  # other tests spoil files
    before = at_rest(pair)
    record = io.StringIO()
    came = soak.run(pair, minutes=MINUTES, every_s=EVERY_S, record=record, blows=soak.BLOWS)
    again = soak.recorded(io.StringIO(record.getvalue()))
    assert (len(again.readings), again.blows) == (len(came.readings), came.blows)
    yield came, before, at_rest(pair)


def at_rest(pair: Pair) -> dict[str, Reading]:
    """Both nodes while they serve and nobody asks for anything."""

    def quiet(node: str) -> Reading | None:
        reading = gauges.read(pair.lab.node(node), since=0)
        return reading if reading.get("children") == 0 and reading["zombies"] == 0 else None

    return {node: wait_for(f"quiet on {node}", lambda node=node: quiet(node), max_s=60) for node in NODES}


def told(before: Reading, after: Reading) -> str:
    return json.dumps({key: [before.get(key), after.get(key)] for key in after}, indent=1)


def test_it_served_through_all_of_it(soaked: tuple[Soak, dict[str, Reading], dict[str, Reading]]) -> None:
    came, _, _ = soaked
    assert came.complaints == []
    assert len(came.blows) == len(soak.plan(MINUTES, EVERY_S, soak.BLOWS)) > 5
    assert came.answered > 0
    assert came.polled > 50
    assert len(came.readings) > 2 * MINUTES * 60 / soak.READ_EVERY_S / 2


@pytest.mark.parametrize("node", NODES)
def test_the_daemon_holds_no_more_than_before(
    soaked: tuple[Soak, dict[str, Reading], dict[str, Reading]], node: str
) -> None:
    came, before, after = soaked[0], soaked[1][node], soaked[2][node]
    lives = {reading["life"] for reading in came.readings if reading["node"] == node and "life" in reading}
    assert lives == {before["life"]} == {after["life"]}, "a daemon ended, and nothing here ends one"
    assert after["threads"] <= before["threads"] + 3, told(before, after)
    assert after["fds"] <= before["fds"] + 6, told(before, after)
    assert after["private_kib"] <= before["private_kib"] + 6 * 1024, told(before, after)


@pytest.mark.parametrize("node", NODES)
def test_the_node_is_as_it_was(soaked: tuple[Soak, dict[str, Reading], dict[str, Reading]], node: str) -> None:
    before, after = soaked[1][node], soaked[2][node]
    assert after["processes"] <= before["processes"] + 2, told(before, after)
    assert after["containers"] == before["containers"], told(before, after)
    assert len(after["shm"]) <= len(before["shm"]) + 1, told(before, after)
    assert after["run_files"] == before["run_files"], told(before, after)
    assert after["log_files"] <= ENGINE_LOGS_KEPT, told(before, after)
    state_growth = (after["state_bytes"] - after["events_bytes"]) - (before["state_bytes"] - before["events_bytes"])
    assert state_growth <= BASELINES_KEPT * 32 * 1024, told(before, after)
    assert after["events_bytes"] <= 2_100_000, told(before, after)


def test_nothing_half_written_lies_about(pair: Pair, soaked: object) -> None:
    for node in NODES:
        assert pair.run(node, HALF_WRITTEN) == ""
        assert int(pair.run(node, "ls /var/lib/sparkd/baselines | wc -l")) <= BASELINES_KEPT


def test_a_chatty_engine_does_not_fill_the_disk(serving: Pair) -> None:
    """The log of the launch that serves grows beyond its limit: it is shortened, and the engine writes on into it."""
    log = f"/var/log/sparkd/engine/{serving.status()['launch_id']}.log"
    first = serving.run("spark1", f"head -n 1 {log}")
    serving.run("spark1", f"yes 'INFO: 127.0.0.1 POST /v1/chat/completions 200 OK' | head -c 80000000 >>{log}")
    wait_for("a shortened log", lambda: "engine.log-shortened" in serving.event_ids("spark1"), max_s=180, every_s=2)
    assert int(serving.run("spark1", f"stat -c %s {log}")) < 4_000_000
    assert int(serving.run("spark1", "du -sm /var/log/sparkd/engine | cut -f 1")) < 100
    assert serving.run("spark1", f"head -n 1 {log}") == first
    end = serving.run("spark1", f"stat -c %s {log}")
    serving.chat("Say something that is logged.")
    wait_for("a new line of the engine", lambda: serving.run("spark1", f"stat -c %s {log}") != end, max_s=30)
    assert serving.run("spark1", f"tail -c 2000 {log} | tr -d '\\0' | wc -c").strip() == "2000", "a hole"
