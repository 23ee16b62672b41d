"""Random histories. A seed that ever failed stays in seeds.txt.

SPARKD_SIM_SEEDS=5000 runs that many seeds, SPARKD_SIM_SEEDS=1000-1100 runs these; SPARKD_SIM_FAULTS sets the faults of
each history. A failure names its seed and shows what happened last.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sim.converge import live

SEEDS = 200
FAULTS = 12
STEP = 25  # seeds of one test


def wanted() -> range:
    first, dash, last = os.environ.get("SPARKD_SIM_SEEDS", str(SEEDS)).partition("-")
    return range(int(first), int(last)) if dash else range(int(first))


def kept() -> list[tuple[int, int]]:
    """Lines of `seed faults  # what it found`."""
    lines = (Path(__file__).parent / "seeds.txt").read_text().splitlines()
    words = [line.partition("#")[0].split() for line in lines]
    return [(int(word[0]), int(word[1])) for word in words if word]


@pytest.mark.parametrize("first", wanted()[::STEP])
def test_random_histories(first: int) -> None:
    for seed in range(first, min(first + STEP, wanted().stop)):
        live(seed, int(os.environ.get("SPARKD_SIM_FAULTS", FAULTS)))


@pytest.mark.parametrize(("seed", "faults"), kept())
def test_seeds_that_failed_once(seed: int, faults: int) -> None:
    live(seed, faults)


def test_a_seed_is_a_whole_history() -> None:
    first, second = live(7), live(7)
    assert list(first.trace) == list(second.trace)
    assert first.notes == second.notes
