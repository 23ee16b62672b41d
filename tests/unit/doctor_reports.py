"""Excerpts of public incident reports (tests/data/reports), and what is said of each, for the test and scripts/bench-signatures.

Hosts, addresses, process numbers, times and paths are not those of the reporters, and lines were left out. Where the
origin begins with "composed:", the messages are those of the programs and of the source named, but what stands around
them was put together here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from sparkd.doctor.catalogue import record
from sparkd.doctor.signatures import Text, classify
from sparkd.model.diagnosis import Incident, Kind, Source

REPORTS = Path(__file__).resolve().parents[1] / "data" / "reports"


class Outcome(StrEnum):
    """How the first incident that is told compares with what a person would say."""

    RIGHT = "right"
    CONSEQUENCE_FIRST = "consequence first"
    NOTHING = "nothing named"
    WRONG = "wrong root"
    FALSE_ALARM = "false alarm"


@dataclass(frozen=True)
class Case:
    """One excerpt. No `expected`: healthy, or (with `note`) a failure that no record was written for when it was found."""

    name: str
    source: Source | None
    origin: str
    expected: tuple[str, ...]  # ids, the best first, the others acceptable
    text: str
    note: str = ""
    proposed: str = ""  # id that a record for it would have
    file: str = ""

    @property
    def is_healthy(self) -> bool:
        return not self.expected and not self.note


def cases(directory: Path = REPORTS) -> list[Case]:
    """Every case, file by file."""
    return [case for path in sorted(directory.glob("*.yaml")) for case in _of(path)]


def _of(path: Path) -> Iterator[Case]:
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        yield _case(document, path.name)


def _case(document: dict[str, Any], file: str) -> Case:
    source = document["source"]
    return Case(
        name=document["name"],
        source=Source(source) if source else None,
        origin=document["origin"],
        expected=tuple(document["expected"]),
        text=document["text"],
        note=document.get("note", ""),
        proposed=document.get("proposed", ""),
        file=file,
    )


def named(case: Case, *, guess: bool = False) -> list[Incident]:
    """What is said of an excerpt; `guess`: as if nobody had told what kind of text it is."""
    return classify([Text(source=None if guess else case.source, text=case.text, where=case.name)])


def outcome(case: Case, incidents: Sequence[Incident]) -> Outcome:
    """The verdict on one answer."""
    first = incidents[0] if incidents else None
    if case.is_healthy:
        return Outcome.FALSE_ALARM if first else Outcome.RIGHT
    if first is None:
        return Outcome.NOTHING if case.expected else Outcome.RIGHT
    if first.id in case.expected or first.id == case.proposed:
        return Outcome.RIGHT
    best = record(case.expected[0]) if case.expected else None
    if first.kind is Kind.CONSEQUENCE and best is not None and best.kind is not Kind.CONSEQUENCE:
        return Outcome.CONSEQUENCE_FIRST
    return Outcome.WRONG


def consequences_beside_roots(incidents: Sequence[Incident]) -> list[str]:
    """Consequences that are told although a root stands: there must be none."""
    if not any(one.kind is Kind.ROOT for one in incidents):
        return []
    return [one.id for one in incidents if one.kind is Kind.CONSEQUENCE]
