"""The fault matrix: every case on every node that it names ends as it should, and leaves nothing behind.

Each node of a case is tried under one load, the other node under the other; SPARKD_LAB_FULL=1 tries all four (as
`scripts/faults` does), SPARKD_LAB_SLOW=1 also what takes minutes by nature.
"""

from __future__ import annotations

import os

import pytest

from tests.lab.matrix import catalogue
from tests.lab.matrix.case import Case, Load
from tests.lab.matrix.runner import run
from tests.lab.matrix.sparkd_keeper import SparkdKeeper
from tests.lab.matrix.table import as_json
from tests.lab.pair import Pair

FULL = os.environ.get("SPARKD_LAB_FULL") == "1"
COMBINATIONS = list((catalogue.combinations if FULL else catalogue.half)(catalogue.cases()))


@pytest.mark.parametrize(
    ("case", "node", "load"),
    [
        pytest.param(case, node, load, id=f"{case.id}-{node}-{load}", marks=[pytest.mark.slow] if case.slow else [])
        for case, node, load in COMBINATIONS
    ],
)
def test_what_breaks_ends_as_it_should(pair: Pair, case: Case, node: str, load: Load) -> None:
    keeper = SparkdKeeper(pair)
    row = run(case, node, load, keeper)
    assert row.good, f"{as_json(row)}\n{keeper.story()}"
