"""Words into lines for a screen: wrapped below their beginning, commands whole, colours without width. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Paint = Callable[[str, str], str]

LABEL = 10


def plain(text: str, colour: str) -> str:
    return text


@dataclass(frozen=True)
class View:
    """How it is shown. `stands`: how the cluster stands in the daemon's words, empty where none answered."""

    width: int = 100
    verbose: bool = False
    paint: Paint = plain
    stands: str = ""


def labelled(label: str, text: str, view: View) -> Iterator[str]:
    front = f"  {label + ':' if label else '':<{LABEL - 2}}"
    yield from hanging(front, text, view)


def steps(label: str, text: str, view: View, *, indent: int = 0, lines_max: int = 6) -> Iterator[str]:
    """Commands one below the other, so that each can be copied as it stands."""
    if not text:
        return
    front = f"{' ' * indent}{label}: " if indent else f"  {label + ':':<{LABEL - 2}}"
    parts = [text] if len(front) + len(text) <= view.width else [part for part in text.split("; ") if part.strip()]
    if len(parts) > lines_max and not view.verbose:
        parts = [*parts[: lines_max - 1], f"{parts[lines_max - 1]}; ..."]
    for part in parts:
        yield from hanging(front, part, view)
        front = " " * len(front)


def hanging(front: str, text: str, view: View, *, lines_max: int = 0) -> Iterator[str]:
    """`front` and the text, wrapped below its beginning. Words, paths and commands are not cut apart."""
    indent = visible(front)
    room = max(30, view.width - indent)
    wrapped = textwrap.wrap(one_line(text), room, break_long_words=False, break_on_hyphens=False) or [""]
    if lines_max and len(wrapped) > lines_max and not view.verbose:
        last = wrapped[lines_max - 1]
        wrapped = [*wrapped[: lines_max - 1], f"{last[: room - 4]} ..."]
    yield (front + wrapped[0]).rstrip()
    for line in wrapped[1:]:
        yield " " * indent + line


def visible(text: str) -> int:
    """Colours have no width."""
    length = 0
    in_colour = False
    for char in text:
        if char == "\033":
            in_colour = True
        elif in_colour:
            in_colour = char != "m"
        else:
            length += 1
    return length


def plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def one_line(text: str) -> str:
    return " ".join(text.split())


def cut(text: str, max_chars: int, view: View) -> str:
    return text if view.verbose or len(text) <= max_chars else f"{text[: max_chars - 4]} ..."
