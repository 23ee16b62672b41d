"""A text made ready to be searched by hundreds of patterns, and where one of them is found in it. Pure.

A pattern is only tried on the lines (and on up to four of them joined, because terminals and reports wrap) that
hold its needle, so that megabytes of a healthy log cost little.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from sparkd.doctor.catalogue import pattern, wanted
from sparkd.doctor.normalise import Lines, normalise

_WINDOW_LINES = 4
_LOOKS_MAX = 250  # places of one needle that are looked at, from each end of a text
_WRAPS_MAX = 40  # places of one pattern at which lines are joined: what is wrapped is short
_WRAPPED_MAX_CHARS = 1000  # a terminal, a report or a logger cuts lines much shorter than this
_EXCERPT_MAX_LINES = 40
_BATCH_LINES = 4096
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_WORD_WRAP_MAX_CHARS = 256 * 1024  # lines cut inside a word are only put together in texts up to this


def matching(regex: str, text: str) -> bool:
    """Whether one signature is found in a text, in the way in which all are."""
    searched = Searched(normalise(text))
    return next(places_of(searched, regex), None) is not None


@dataclass(frozen=True, slots=True)
class Place:
    """One match: its lines in the text, and what its groups hold."""

    first: int
    last: int
    groups: Mapping[str, str]
    chars: int


class Searched:
    """A normalised text, with what searching it fast needs."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        spaced = "\n".join(lines.normal).lower()
        self.starts = [0, *accumulate(len(line) + 1 for line in lines.normal)]
        if len(spaced) != self.starts[-1] - 1:  # some letters of some scripts grow in lower case
            spaced = "\n".join(lines.normal)
            spaced = "".join(low if len(low := char.lower()) == 1 else char for char in spaced)
        self.spaced = spaced.replace("\n", " ")
        self.unspaced = spaced.replace("\n", "") if len(spaced) <= _WORD_WRAP_MAX_CHARS else ""
        self.words = _vocabulary(lines.normal)
        self.lines_told = sum(1 for line in lines.normal if line)

    @property
    def is_excerpt(self) -> bool:
        """Whether somebody cut it out because of what it says."""
        return self.lines_told <= _EXCERPT_MAX_LINES

    def holding(self, regex: str) -> list[int]:
        """Lines that hold, or begin, a needle of a pattern; all lines where it has none."""
        any_of = wanted(regex)
        if not any_of:
            return list(range(len(self.lines.normal)))
        found: set[int] = set()
        for needle in any_of:
            if self._may_hold(needle) and needle in self.spaced:
                found.update(bisect_right(self.starts, at) - 1 for at in _occurrences(self.spaced, needle))
            elif self.unspaced and needle in self.unspaced:
                found.update(self._wrapped(needle))
        return sorted(found)

    def _may_hold(self, needle: str) -> bool:
        """Whether the words of a needle are in the text at all: of each word there is one, so that this is soon said."""
        parts = _without_digits(needle).replace(" ", "\n \n").split(" ")
        return all(part in self.words for part in parts)

    def left_out(self, regex: str) -> int:
        """Places of a pattern's needles that were not looked at, because there are too many."""
        return sum(
            max(0, self.spaced.count(needle) - 2 * _LOOKS_MAX) for needle in wanted(regex) if self._may_hold(needle)
        )

    def _wrapped(self, needle: str) -> Iterator[int]:
        """Where a needle stands across lines that were cut inside a word."""
        starts = [0, *accumulate(len(line) for line in self.lines.normal)]
        return (bisect_right(starts, at) - 1 for at in _occurrences(self.unspaced, needle))

    def windows(self, at: int) -> Iterator[tuple[int, str, str]]:
        """Lines from some line before `at` on, joined: the first line's number, the text, what joined it."""
        normal = self.lines.normal
        for first in range(max(0, at - _WINDOW_LINES + 1), at + 1):
            window = normal[first : first + _WINDOW_LINES]
            yield first, " ".join(window), " "
            if self.unspaced:
                yield first, "".join(window), ""


def _vocabulary(lines: list[str]) -> str:
    """Each word once, any digit for all: what is not in here is not in the text, and it is much shorter."""
    words: set[str] = set()
    for first in range(0, len(lines), _BATCH_LINES):
        words.update(_without_digits(" ".join(lines[first : first + _BATCH_LINES]).lower()).split(" "))
    return "\n" + "\n".join(words) + "\n"


def _without_digits(text: str) -> str:
    """Any digit for all. Bytes are translated ten times as fast as text that holds a progress bar."""
    return text.encode("utf-8", "surrogatepass").translate(_DIGITS).decode("utf-8", "surrogatepass")


def _occurrences(text: str, needle: str) -> list[int]:
    """Where a needle stands: the first and the last of many, because what is between them says nothing new."""
    first: list[int] = []
    at = text.find(needle)
    while at >= 0 and len(first) < _LOOKS_MAX:
        first.append(at)
        at = text.find(needle, at + len(needle))
    last: list[int] = []
    end = text.rfind(needle, at) if at >= 0 else -1
    while end >= 0 and len(last) < _LOOKS_MAX:
        last.append(end)
        end = text.rfind(needle, at, end)
    return first + last[::-1]


def places_of(searched: Searched, regex: str) -> Iterator[Place]:
    """Every line, or run of joined lines, in which a pattern is found. The lines of one match are not asked again."""
    last, wraps = -1, 0
    for at in searched.holding(regex):
        if at <= last:
            continue
        match = pattern(regex).search(searched.lines.normal[at])
        if match:
            place = Place(at, at, _groups(match), match.end() - match.start())
        elif wraps < _WRAPS_MAX and (wide := _wide(searched, pattern(regex), at)) is not None and wide.first > last:
            place, wraps = wide, wraps + 1
        else:
            wraps += 1
            continue
        last = place.last
        yield place


def _wide(searched: Searched, signature: re.Pattern[str], at: int) -> Place | None:
    if len(searched.lines.normal[at]) > _WRAPPED_MAX_CHARS:
        return None
    for first, window, joiner in searched.windows(at):
        match = signature.search(window)
        if match is None:
            continue
        lines = searched.lines.normal[first : first + _WINDOW_LINES]
        starts = [0, *accumulate(len(line) + len(joiner) for line in lines)]
        begins, ends = (
            bisect_right(starts, offset) - 1 for offset in (match.start(), max(match.start(), match.end() - 1))
        )
        return Place(first + begins, first + min(ends, len(lines) - 1), _groups(match), match.end() - match.start())
    return None


def _groups(match: re.Match[str]) -> dict[str, str]:
    """What a match tells; `port2` is another place where the port may stand."""
    return {name.rstrip("0123456789"): value for name, value in match.groupdict().items() if value}
