"""The fault matrix with the real vLLM: what ends it, and what does not; and one schedule of faults at random."""

from __future__ import annotations

import pytest

from tests.lab import breakages, ordeal, schedule
from tests.lab.matrix import catalogue
from tests.lab.matrix.case import Case, Load
from tests.lab.matrix.runner import run
from tests.lab.matrix.sparkd_keeper import SparkdKeeper
from tests.lab.matrix.table import as_json
from tests.lab.pair import Pair
from tests.lab.real_engine import MORE_S

# Of the engine, its container, the agent, the nodes and the link; what strikes the simulated engine alone is not here.
ASKED = (
    *("kill-top", "kill-rank", "kill-core", "term-top", "stopped-rank"),
    *("container-rm", "agent-kill", "agent-restart", "link-2", "link-20", "reboot", "power-cut"),
)
CASES = [catalogue.with_more_time(case, MORE_S) for case in catalogue.cases() if case.id in ASKED]


@pytest.fixture(scope="module")
def keeper(pair: Pair) -> SparkdKeeper:
    return SparkdKeeper(pair)


def test_every_case_is_there() -> None:
    assert {case.id for case in CASES} == set(ASKED)


@pytest.mark.parametrize(
    ("case", "node", "load"),
    [pytest.param(*each, id=f"{each[0].id}-{each[1]}-{each[2]}") for each in catalogue.half(CASES)],
)
def test_what_breaks_ends_as_it_should(keeper: SparkdKeeper, case: Case, node: str, load: Load) -> None:
    row = run(case, node, load, keeper)
    assert row.good, f"{as_json(row)}\n{keeper.story()}"


@pytest.mark.parametrize("seed", [1])
def test_a_random_schedule(pair: Pair, seed: int) -> None:
    """`scripts/soak --engine real --schedules N --seed S` runs any number of others."""
    kinds = breakages.kinds(breakages.catalogue(real_engine=True))
    outcome = ordeal.endure(pair, schedule.draw(seed, kinds), real_engine=True)
    assert outcome.good, str(outcome)
