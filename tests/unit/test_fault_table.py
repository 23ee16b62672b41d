"""The fault matrix as people read it: it fits a terminal, says what is wrong, and comes back from JSON as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.matrix import catalogue, table
from tests.lab.matrix.case import Expect, Load, Row

CASES = {case.id: case for case in catalogue.cases()}
GOOD = Row(CASES["kill-rank"], "spark2", Load.IDLE, "sparkd", Expect.SERVES_AGAIN, 0.04, 11.0, 1, 0, (), "it died")
UNITS = replace(GOOD, keeper="units", ended="down", noticed_s=None, answers_s=None, failed=34)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_case_has_a_line_that_fits(case: object) -> None:
    rows = [replace(GOOD, case=case, answers_s=331.4), replace(UNITS, case=case)]
    assert len(table.line(rows)) <= 120
    assert len(table.line(rows[:1])) <= 90
    assert case.what in table.line(rows), "the name of the fault is cut"  # type: ignore[attr-defined]


def test_rows_of_two_keepers_stand_side_by_side() -> None:
    heading, _, line, *_ = table.text([GOOD, UNITS], ["sparkd", "units"]).splitlines()
    assert heading.split() == ["sparkd", "units"]
    assert line.split("  ")[0] == "engine's rank killed"
    assert line.index("again") < heading.index("units") <= line.index("down")


def test_what_is_wrong_is_told_below_its_row() -> None:
    left = replace(GOOD, left_behind=("spark2: segment psm_00000001",))
    assert "left behind: spark2: segment psm_00000001" in table.text([left], ["sparkd"])
    assert "psm" not in table.text([GOOD], ["sparkd"])
    lossy = replace(GOOD, case=CASES["agent-kill"], ended=Expect.GOES_ON, failed=2)
    assert not lossy.good
    assert "no request should have failed" in table.text([lossy], ["sparkd"])


def test_rows_come_back_from_json() -> None:
    assert table.from_json(table.as_json(GOOD), CASES) == GOOD


def test_the_page_marks_what_should_not_be() -> None:
    page = table.markdown([GOOD, UNITS], ["sparkd", "units"], ["Words."])
    assert "| again | 0.0 | 11.0 | 0 | **down** | - | - | 34 | nothing |" in page


def test_half_of_the_matrix_takes_each_node_once_and_both_loads_in_turn() -> None:
    half = list(catalogue.half(CASES.values()))
    assert {(case.id, node) for case, node, _ in half} == {
        (case.id, node) for case in CASES.values() for node in case.nodes
    }
    assert len(half) == len({(case.id, node) for case, node, _ in half})
    assert {load for case, _, load in half if case.id == "kill-rank"} == set(Load)
    assert {*half, *catalogue.half(CASES.values(), 2)} == set(catalogue.combinations(CASES.values()))
    assert not set(half) & set(catalogue.half(CASES.values(), 2))
