"""How every command prints: text for people, JSON for programs, one line for what went wrong."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from sparkd.model.errors import SparkdError
from sparkd.model.outside import clean

Function = TypeVar("Function", bound=Callable[..., Any])

COLOURS = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}
CLEAR = "\033[H\033[J"  # cursor home, then everything after it


def json_option(function: Function) -> Function:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def say(text: str = "") -> None:
    """A line for a person, at once: a pipe's reader must see a change when it happens."""
    print(text, flush=True)


def say_json(data: Any, *, lines: bool = False) -> None:
    """`lines`: one object a line, for streams."""
    print(json.dumps(data, ensure_ascii=False, indent=None if lines else 2), flush=True)


def note(text: str) -> None:
    """Beside the output: what its reader should know about it."""
    print(f"sparkd: {text}", file=sys.stderr, flush=True)


def error(message: str, *, where: str = "", hint: str = "") -> None:
    place = f"{where}: " if where else ""
    print(clean(f"sparkd: {place}{message}"), file=sys.stderr)
    if hint:
        print(clean(f"  hint: {hint}"), file=sys.stderr)


def report_error(failure: SparkdError, *, as_json: bool) -> None:
    error(failure.message, where=failure.where, hint=failure.hint)
    if as_json:
        told = {"message": failure.message, "where": failure.where, "hint": failure.hint}
        say_json({"error": {name: clean(text) for name, text in told.items()}})


def colours_wanted() -> bool:
    """Only on a terminal, and not against the reader's will (no-color.org)."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def painter(wanted: bool) -> Callable[[str, str], str]:
    """A function `paint(text, colour)`; without colours it returns the text as it is."""

    def paint(text: str, colour: str) -> str:
        return f"\033[{COLOURS[colour]}m{text}\033[0m" if wanted and colour and text else text

    return paint
