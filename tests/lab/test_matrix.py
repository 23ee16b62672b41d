"""The fault matrix: every case on every node that it names ends as it should, and leaves nothing behind.

One row of each case, in turns on the head and on the worker, idle and loaded: a quarter of an hour. SPARKD_LAB_FULL=1 tries all
four (as `scripts/faults` does), SPARKD_LAB_SLOW=1 also what takes minutes by nature. Two labs share the work.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from tests.lab.matrix import catalogue, several
from tests.lab.matrix.case import Case, Keeper, Load, Row
from tests.lab.matrix.catalogue import Combination
from tests.lab.matrix.sparkd_keeper import SparkdKeeper
from tests.lab.matrix.table import as_json
from tests.lab.pair import Pair

FULL = os.environ.get("SPARKD_LAB_FULL") == "1"
COMBINATIONS = list((catalogue.combinations if FULL else catalogue.quarter)(catalogue.cases()))


@contextlib.contextmanager
def beside() -> Iterator[Keeper]:
    """A second lab, for the time of this file."""
    lab = several.another(1)
    try:
        lab.up()
        yield SparkdKeeper(several.paced(lab))
    finally:
        if not os.environ.get("SPARKD_LAB_KEEP"):
            lab.down()


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest, pair: Pair) -> Iterator[dict[Combination, Future[Row]]]:
    """Those that were asked for, measured in the lab of all tests and in one beside it."""
    asked = [item.callspec.params for item in request.session.items if item.path == request.path]  # type: ignore[attr-defined]
    combinations = [(each["case"], each["node"], each["load"]) for each in asked]
    first = contextlib.nullcontext(SparkdKeeper(pair))
    places: list[several.Place] = [lambda: first] if len(combinations) == 1 else [lambda: first, beside]
    with several.measured(places, combinations) as futures:
        yield futures


@pytest.mark.parametrize(
    ("case", "node", "load"),
    [
        pytest.param(case, node, load, id=f"{case.id}-{node}-{load}", marks=[pytest.mark.slow] if case.slow else [])
        for case, node, load in COMBINATIONS
    ],
)
def test_what_breaks_ends_as_it_should(rows: dict[Combination, Future[Row]], case: Case, node: str, load: Load) -> None:
    row = rows[case, node, load].result()
    assert row.good, f"{as_json(row)}\n{row.story}"
