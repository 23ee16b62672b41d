"""docs/doctor-json.md documents what `sparkd doctor --json` prints: each field of each model, and each word that one takes."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

import pytest
from pydantic import BaseModel

from sparkd.model.diagnosis import (
    SCHEMA_VERSION,
    BaselineName,
    Boundary,
    Change,
    Diagnosis,
    Examination,
    Headline,
    Incident,
    Kind,
    Source,
)
from sparkd.model.finding import Cure, Finding, Layer, Verdict, Who

PAGE = (Path(__file__).parents[2] / "docs/doctor-json.md").read_text()
MODELS = (Examination, Headline, Diagnosis, Finding, Incident, Boundary, Change)


def part(name: str) -> str:
    """What the page says of a model: from its name in a heading or in bold to the next of these."""
    begin = re.search(rf"^(?:## {name}\b|\*\*{name}\*\*)", PAGE, re.MULTILINE)
    assert begin is not None, f"{name} has no place of its own"
    end = re.search(r"^(?:## |\*\*[A-Z])", PAGE[begin.end() :], re.MULTILINE)
    return PAGE[begin.start() : begin.end() + end.start() if end else len(PAGE)]


def words(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_is_documented(model: type[BaseModel]) -> None:
    assert set(model.model_fields) <= words(part(model.__name__))


def test_no_field_is_documented_that_does_not_exist() -> None:
    for model in (Examination, Diagnosis, Finding, Incident):
        rows = re.findall(r"^\| (`[^|]*) \|", part(model.__name__), re.MULTILINE)
        assert set().union(*map(words, rows)) <= set(model.model_fields)


def test_the_name_of_a_baseline_is_documented() -> None:
    assert all(f'"{field}"' in part("Diagnosis") for field in BaselineName.model_fields)


@pytest.mark.parametrize("kind", [Verdict, Cure, Who, Layer, Kind, Source], ids=lambda kind: kind.__name__)
def test_every_word_that_a_field_takes_is_documented(kind: type[StrEnum]) -> None:
    assert {each.value for each in kind} <= words(PAGE)


def test_the_version_is_the_models() -> None:
    assert f"`schema_version` is {SCHEMA_VERSION}." in PAGE
