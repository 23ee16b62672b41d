"""Which incidents stand in texts: signatures searched in logs, roots told before what follows from them. Pure."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sparkd.doctor.catalogue import Record, Signature, records
from sparkd.doctor.normalise import Lines, logged_at, normalise, uptime_s, without_prefix
from sparkd.doctor.searching import Place, Searched, places_of
from sparkd.model.diagnosis import Incident, Kind, Source
from sparkd.model.finding import Verdict, depth
from sparkd.model.redact import redact

READY = "application startup complete"

_BOOT = r"\bLinux version \d|Booting Linux on physical CPU"
_BOOT_MAX_S = 300.0  # ports and devices come and go while a machine boots

REPEATS_MIN = 400  # places of one record from which on they are not all looked at

_EVIDENCE_MAX_LINES = 4
_EVIDENCE_MAX_CHARS = 300
_HOST_SOURCES = (Source.PROC, Source.SYSFS)


@dataclass(frozen=True)
class Text:
    """One text to look in. `source` None: unknown, so every source's signatures are tried."""

    source: Source | None
    text: str
    where: str = ""  # file name or "kernel log of the previous boot"
    node: str = ""
    current: bool = True  # False: of an earlier launch or boot


def classify(texts: Sequence[Text], *, noise: bool = False, served: bool = False) -> list[Incident]:
    """What stands in the texts, the most explaining first; nothing on healthy ones.

    A consequence is told only where no root of the same time stands in any of the texts. `noise`: also what
    looks bad and is not, last. `served`: the engine had come up, so what only a start can meet is not looked for.
    """
    found = [one for text in texts for one in _found_in(text, served=served)]
    told = [*_told([one for one in found if one.current]), *_told([one for one in found if not one.current])]
    if noise:
        told += [one for one in found if one.kind is Kind.NOISE]
    return [_incident(one) for one in told]


@dataclass(slots=True)
class _Found:
    """One record in one text."""

    record: Record
    signature: Signature
    text: Text
    lines: Lines
    places: list[Place]
    current: bool
    kind: Kind
    verdict: Verdict
    is_weak: bool
    count: int

    @property
    def id(self) -> str:
        return self.record.id


def _found_in(text: Text, *, served: bool) -> list[_Found]:
    if not text.text.strip():
        return []
    searched = Searched(normalise(text.text))
    ready = searched.spaced.rfind(READY)
    ready_line = bisect_right(searched.starts, ready) - 1 if ready >= 0 else -1
    asked = (record for record in records().values() if not (served and record.startup))
    return [found for record in asked if (found := _look(record, text, searched, ready_line)) is not None]


def _look(record: Record, text: Text, searched: Searched, ready_line: int) -> _Found | None:
    """One record in one text, by all of its signatures."""
    places: dict[int, Place] = {}
    by: list[Signature] = []
    for signature in record.signatures:
        if text.source not in (None, *_HOST_SOURCES) and signature.source in _HOST_SOURCES and not searched.is_excerpt:
            continue
        here = list(places_of(searched, signature.regex))
        if here:
            by.append(signature)
            for place in here:
                known = places.get(place.first)
                if known is None or len(place.groups) > len(known.groups):
                    places[place.first] = place
    if not places:
        return None
    found = _Found(
        record=record,
        signature=by[0],
        text=text,
        lines=searched.lines,
        places=[places[first] for first in sorted(places)],
        current=text.current,
        kind=record.kind,
        verdict=record.verdict,
        is_weak=all(signature.weak for signature in by),
        count=len(places) + sum(_left_out(searched, signature, len(places)) for signature in by),
    )
    return _weighed(found, searched, ready_line)


def _left_out(searched: Searched, signature: Signature, seen: int) -> int:
    """Of a line that repeats without end not every one is looked at: the rest is taken for the same."""
    return searched.left_out(signature.regex) if seen >= REPEATS_MIN else 0


def _weighed(found: _Found, searched: Searched, ready_line: int) -> _Found | None:
    """What a match is worth where it stands: history, harmless, or more than it seems."""
    record, last = found.record, found.places[-1]
    history = record.verdict is Verdict.BAD or record.kind is not Kind.ROOT
    if history and last.last < ready_line:
        if record.kind is Kind.CONSEQUENCE or found.is_weak:
            return None  # the engine came up after it: what it warned of did not happen
        found.current = False
    if record.at_end and sum(1 for line in searched.lines.normal[last.last + 1 :] if line) > record.at_end:
        return None
    if record.is_noise:
        return found
    is_excerpt, count = _is_cut_out(found, searched), found.count
    if record.healthy_below and count >= record.healthy_below:
        found.verdict = Verdict.BAD
    if not (is_excerpt and record.told_in_excerpts) and record.harmless_when:
        after = _named(record.harmless_when, searched, last)
        found.kind = Kind.NOISE if any(place.first > last.last for place in after) else found.kind
    if is_excerpt:
        return found
    if count < record.healthy_below or (record.needs_before and not _had_been_up(record.needs_before, searched, last)):
        found.kind = Kind.NOISE
    return found


def _had_been_up(regex: str, searched: Searched, place: Place) -> bool:
    """Whether what is missed had been there: the text says so, or begins long after the boot."""
    if any(other.last <= place.first for other in _named(regex, searched, place)):
        return True
    seconds = uptime_s(searched.lines.bare[place.first])
    if seconds is not None:
        return seconds > _BOOT_MAX_S
    return not any(other.last < place.first for other in places_of(searched, _BOOT))


def _is_cut_out(found: _Found, searched: Searched) -> bool:
    """Whether somebody chose these lines: few, or most of them the same complaint."""
    return searched.is_excerpt or 4 * found.count >= searched.lines_told


def _named(regex: str, searched: Searched, place: Place) -> Iterator[Place]:
    """Where a pattern stands that names what a match told: `{interface}: Link up`."""
    return places_of(searched, re.sub(r"\{([a-z]+)\}", lambda name: re.escape(place.groups.get(name[1], "")), regex))


def _told(found: list[_Found]) -> list[_Found]:
    """Of what was found at one time: the roots, or else the consequences. The most explaining first."""
    explained = {id(one): [other for other in found if _explains(one, other)] for one in found}
    hidden = {id(other) for one in found for other in explained[id(one)] if not _explains(other, one)}
    for one in found:
        if one.kind is Kind.ROOT and any(other.verdict is Verdict.BAD for other in explained[id(one)]):
            one.verdict = Verdict.BAD  # what is harmless by itself broke something
    standing = [one for one in found if one.kind is not Kind.NOISE and id(one) not in hidden]
    if any(one.kind is Kind.ROOT and one.verdict is Verdict.BAD for one in standing):
        standing = [one for one in standing if one.kind is Kind.ROOT]
    return sorted(standing, key=lambda one: _order(one, len({other.id for other in explained[id(one)]})))


def _explains(one: _Found, other: _Found) -> bool:
    if other.id not in one.record.explains or other is one or (one.record.is_noise is False and one.kind is Kind.NOISE):
        return False
    if one.record.is_noise:  # an ordered stop explains what comes after it, not a crash before it
        return one.text is other.text and one.places[0].first <= other.places[0].first
    return True


def _order(one: _Found, explains: int) -> tuple[object, ...]:
    is_other_source = one.text.source is not None and one.signature.source is not one.text.source
    return (
        one.verdict is not Verdict.BAD,
        one.kind is not Kind.ROOT,
        one.is_weak,
        -explains,
        is_other_source,
        depth(one.record.layer),
        -max(place.chars for place in one.places)
        if one.kind is Kind.ROOT
        else 0,  # of consequences, the first is nearest
        one.places[0].first,
        one.id,
    )


def _incident(one: _Found) -> Incident:
    place = next((place for place in one.places if place.groups), one.places[0])
    first = one.places[0]
    where = (
        f"{one.text.where}:{one.lines.numbers[first.first]}"
        if one.text.where
        else f"line {one.lines.numbers[first.first]}"
    )
    return Incident(
        id=one.id,
        layer=one.record.layer,
        kind=one.kind,
        verdict=one.verdict,
        says=sentence(one.record.says, place.groups),
        evidence=_evidence(one),
        source=one.signature.source,
        where=where,
        at=logged_at(one.lines.bare[first.first]),
        count=one.count,
        remedy=one.record.remedy,
        who=one.record.who,
        cure=one.record.cure,
        node=one.text.node,
        current=one.current,
    )


def _evidence(one: _Found) -> tuple[str, ...]:
    """The lines of the first match, and the first line of others that read otherwise."""
    first, *others = one.places
    lines = [first.first + offset for offset in range(first.last - first.first + 1)]
    lines += [place.first for place in others]
    told = (redact(without_prefix(one.lines.bare[number]))[:_EVIDENCE_MAX_CHARS] for number in lines[:200])
    return tuple(list(dict.fromkeys(line for line in told if line))[:_EVIDENCE_MAX_LINES])


def sentence(says: str, groups: Mapping[str, str]) -> str:
    """A record's sentence with what the match tells; brackets and colons around nothing go with it."""
    told = re.sub(r"\{(\w+)\}", lambda name: " ".join(groups.get(name[1], "").split()).strip(" .,:;'\"")[:160], says)
    told = re.sub(r"\(\s*\)|\[\s*\]|''|\"\"", "", told)
    told = re.sub(r"\s+([,.:;)])", r"\1", re.sub(r"\s{2,}", " ", told))
    return redact(re.sub(r"[:,;]\s+(?=[:,;)])|[:,;]\s*$", "", told).strip())
