"""One lab for the whole run: two nodes with real systemd and real Docker, and sparkd installed as on a real node."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab import ordeal
from tests.lab.api import Lab
from tests.lab.pair import START_S, STOP_SCALE, Pair
from tests.opt_in import leave_out

SLOW = "SPARKD_LAB_SLOW"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/lab" in str(item.path):
            item.add_marker("lab")
    if os.environ.get(SLOW) != "1":
        slow = [item for item in items if item.get_closest_marker("slow")]
        for item in slow:
            leave_out(config, items, [item], f"{item.nodeid}: it takes minutes by nature; {SLOW}=1 runs it")


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    lab = Lab()
    with lab.reserved():
        yield lab
    if not os.environ.get("SPARKD_LAB_KEEP"):
        lab.down()


@pytest.fixture(scope="session")
def pair(lab: Lab) -> Pair:
    """The engine's start and stop are shortened: what is tested is what sparkd does around them."""
    pair = Pair(lab)
    pair.pace(start_s=START_S, stop_scale=STOP_SCALE)
    return pair


@pytest.fixture
def serving(pair: Pair) -> Pair:
    """A pair that serves, whatever the test before left behind."""
    if ordeal.claimed(pair) is None:
        ordeal.resume(pair)
    pair.wait_serving()
    return pair
