"""The catalogue of incidents: data in `records/*.yaml`, read when first asked for, dropped when no longer needed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sparkd.doctor.needles import needles
from sparkd.model.diagnosis import Kind, Source
from sparkd.model.errors import SparkdError
from sparkd.model.finding import LAYERS, Cure, Verdict, Who
from sparkd.model.invalid import first_fault

# libyaml's loader is ten times as fast; a PyYAML without it reads the same.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Signature(_Strict):
    """One way in which an incident shows. `weak`: true in itself, but it loses to any other root."""

    source: Source
    regex: str
    example: str = ""  # a real line
    examples: tuple[str, ...] = ()  # more of them, in other versions' words
    origin: str = ""  # where the line stands
    weak: bool = False
    note: str = ""


class Record(_Strict):
    """What is known of one incident."""

    id: str
    layer: str
    kind: Kind
    verdict: Verdict
    says: str
    cause: str
    remedy: str
    fix: str
    who: Who
    cure: Cure
    startup: bool = False
    explains: tuple[str, ...] = ()
    healthy_below: int = 0  # in a whole log, fewer of them than this are told as noise; from this on they are bad
    harmless_when: str = ""  # noise where this still follows it: it went on. May name groups: {interface}
    told_in_excerpts: bool = False  # an event that passes: told where somebody cut it out, although it passed
    needs_before: str = ""  # in a whole log, noise where this does not stand before it: it had never been up
    at_end: int = 0  # told only where no more than so many lines follow it: a normal line, unless it is the last
    checks: tuple[str, ...] = ()
    look: str = ""
    refs: tuple[str, ...] = ()
    confidence: str = ""
    signatures: tuple[Signature, ...] = ()

    @property
    def is_noise(self) -> bool:
        return self.kind is Kind.NOISE


def record(id: str) -> Record | None:
    """One record; None where the catalogue has none of this id."""
    return records().get(id)


@lru_cache(maxsize=1)
def records() -> Mapping[str, Record]:
    """All records by id, lowest layer first. Raises SparkdError that names file and record."""
    return load(resources.files("sparkd.doctor") / "records")


@lru_cache(maxsize=2048)
def pattern(regex: str) -> re.Pattern[str]:
    """A signature, compiled when a text holds its needle: most never are."""
    return re.compile(regex, re.IGNORECASE)


@lru_cache(maxsize=2048)
def wanted(regex: str) -> tuple[str, ...]:
    """A signature's needles, read off it once."""
    return needles(regex)


def forget() -> None:
    """Gives the memory back: a daemon asks once in a while."""
    records.cache_clear()
    pattern.cache_clear()
    wanted.cache_clear()
    re.purge()


def load(folder: Traversable) -> Mapping[str, Record]:
    """The records of a folder. A file's name is the layer of its records, where they say nothing else."""
    found: dict[str, Record] = {}
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    for entry in sorted(files, key=lambda entry: entry.name):
        for one in _records_of(entry):
            if one.id in found:
                raise SparkdError(f"two records are called {one.id}", where=entry.name, hint="reinstall sparkd")
            found[one.id] = one
    return MappingProxyType(dict(sorted(found.items(), key=lambda item: LAYERS.index(item[1].layer))))


def _records_of(entry: Traversable) -> list[Record]:
    try:
        content = yaml.load(entry.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SparkdError(f"cannot be read: {error}", where=entry.name, hint="reinstall sparkd") from error
    if content is None:
        return []
    if not isinstance(content, list):
        raise SparkdError("is not a list of records", where=entry.name, hint="reinstall sparkd")
    return [_record(entry.name, one) for one in content]


def _record(name: str, content: Any) -> Record:
    id = content.get("id", "?") if isinstance(content, dict) else "?"
    where = f"{name}: {id}"
    try:
        one = Record.model_validate({"layer": name.removesuffix(".yaml"), **content})
    except (TypeError, ValidationError) as error:
        key, fault = first_fault(error) if isinstance(error, ValidationError) else ("", "is not a record")
        raise SparkdError(f"{key}: {fault}".lstrip(": "), where=where, hint="reinstall sparkd") from error
    if one.layer not in LAYERS:
        raise SparkdError(f"layer: {one.layer} is none", where=where, hint="reinstall sparkd")
    return one
