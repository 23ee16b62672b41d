"""What the catalogue says of public incident reports: the right root first, no consequence before it, nothing on healthy logs."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace

import pytest
from doctor_reports import REPORTS, Case, Outcome, cases, consequences_beside_roots, named, outcome

from sparkd.doctor.catalogue import record
from sparkd.model.diagnosis import Source

CASES = cases()
FIELD = REPORTS.parent / "field" / "pair-head.log"
STARTED = FIELD.read_text(encoding="utf-8").partition("Starting vLLM server")[0].split("\n")[:-1]
KNOWN_MISSES: dict[str, str] = {  # name of a case -> why it is not named right
}


def _parameters() -> list[object]:
    return [
        pytest.param(
            case,
            id=case.name,
            marks=[pytest.mark.xfail(reason=KNOWN_MISSES[case.name], strict=True)] if case.name in KNOWN_MISSES else [],
        )
        for case in CASES
    ]


@pytest.mark.parametrize("case", _parameters())
def test_a_report_is_named_by_its_root(case: Case) -> None:
    incidents = named(case)
    assert outcome(case, incidents) is Outcome.RIGHT, [one.id for one in incidents]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_consequence_is_told_beside_a_root(case: Case) -> None:
    assert consequences_beside_roots(named(case)) == []


@pytest.mark.parametrize("case", [case for case in CASES if case.is_healthy], ids=lambda case: case.name)
def test_a_healthy_text_stays_healthy_when_nobody_says_what_it_is(case: Case) -> None:
    assert [one.id for one in named(case, guess=True)] == []


SURROUNDINGS = {
    "after a start": lambda lines: STARTED + lines,
    "in Kubernetes": lambda lines: [f"2026-09-19T09:14:37.123456789Z stderr F {line}" for line in STARTED + lines],
    "in compose": lambda lines: [f"vllm-head-1  | {line}" for line in STARTED + lines],
    "in Docker's JSON": lambda lines: [
        json.dumps({"log": f"{line}\n", "stream": "stderr", "time": "2026-09-19T09:14:37.1Z"})
        for line in STARTED + lines
    ],
    "in the journal": lambda lines: [f"Aug 19 18:34:27 spark-a docker[2411]: {line}" for line in STARTED + lines],
    "saved on Windows": lambda lines: [f"{line}\r" for line in lines],
}


@pytest.mark.parametrize("around", list(SURROUNDINGS))
def test_a_report_is_named_alike_inside_a_long_log(around: str) -> None:
    """Hundreds of lines of a healthy start before it, and the envelope of what kept the log."""
    missed = []
    failures = [
        case for case in CASES if case.expected and case.source is Source.VLLM_LOG and case.name not in KNOWN_MISSES
    ]
    for case in failures[list(SURROUNDINGS).index(around) :: len(SURROUNDINGS)]:
        text = "\n".join(SURROUNDINGS[around](case.text.split("\n")))
        first = next(iter(named(replace(case, text=text))), None)
        if first is None or first.id not in case.expected:
            missed.append((case.name, first.id if first else "nothing"))
    assert missed == []


def test_what_is_said_has_no_hole_in_it() -> None:
    """A sentence whose group is missing would show braces or end in an empty bracket."""
    for case in CASES:
        for one in named(case):
            assert one.says and one.remedy, (case.name, one.id)
            assert not re.search(r"\{\w*\}|\(\s*\)|  ", one.says), (case.name, one.says)


def test_reports_are_what_they_claim() -> None:
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []
    assert set(KNOWN_MISSES) <= {case.name for case in CASES}
    assert all(case.text.strip() and case.origin for case in CASES)
    unknown = {id for case in CASES for id in case.expected if record(id) is None}
    assert unknown == set()


def test_there_are_enough_of_each_kind() -> None:
    failures = [case for case in CASES if case.expected]
    assert REPORTS.is_dir()
    assert len(failures) >= 500
    assert len([case for case in CASES if case.is_healthy]) >= 60


def test_most_of_the_catalogue_is_tried_on_reports() -> None:
    assert len({id for case in CASES for id in case.expected}) >= 140
