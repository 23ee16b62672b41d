"""Random histories: a fixed range of seeds, a fresh one for each run, and the schedules that failed once.

SPARKD_SIM_SEEDS=5000 runs that many of each; SPARKD_SIM_FRESH=123 begins the fresh ones at that seed, as the name of a
test that failed tells it. A failure shows what happened last and the schedule; `scripts/sim --replay SEED --shrink` goes on
from there.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from sim.converge import live
from sim.hunt import hunt
from sim.schedule import draw, from_text

SEEDS = int(os.environ.get("SPARKD_SIM_SEEDS", "1800"))
FRESH = int(os.environ.get("SPARKD_SIM_FRESH", random.SystemRandom().randrange(10**6, 10**9)))
STEP = 100  # seeds of one test
REGRESSIONS = sorted((Path(__file__).parent / "regressions").glob("*.txt"))


def _all_hold(first: int, count: int) -> None:
    tally = hunt(first, count)
    for seed, _, _ in tally.failures:
        live(draw(seed))  # again: fails with the trace and the schedule
    assert tally.schedules == count and tally.virtual_s > 0


@pytest.mark.parametrize("first", range(0, SEEDS, STEP))
def test_random_histories(first: int) -> None:
    _all_hold(first, min(STEP, SEEDS - first))


@pytest.mark.parametrize("first", range(FRESH, FRESH + SEEDS, STEP))
def test_fresh_random_histories(first: int) -> None:
    print(f"seeds from {first}: SPARKD_SIM_FRESH={FRESH} runs the same again")
    _all_hold(first, min(STEP, FRESH + SEEDS - first))


@pytest.mark.parametrize("file", REGRESSIONS, ids=lambda file: file.stem)
def test_schedules_that_failed_once(file: Path) -> None:
    live(from_text(file.read_text()))
