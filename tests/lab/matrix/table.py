"""Rows of the matrix as people read them: on a terminal, in docs/faults.md, and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tests.lab.matrix.case import Case, Expect, Load, Row

# What is shown of one keeper's row: heading and width. Times are seconds since the fault.
COLUMNS = (("ended", 8), ("noticed", 8), ("answers", 8), ("failed", 7))
LEFT = (("fault", 34), ("node", 7), ("load", 7), ("should", 8))
ROLES = {"spark1": "head", "spark2": "worker"}
SHORT = {Expect.GOES_ON: "goes on", Expect.SERVES_AGAIN: "again", Expect.BLOCKS: "blocks"}
RED, GREEN, DIM, PLAIN = "\033[31m", "\033[32m", "\033[2m", "\033[0m"

Key = tuple[str, str, Load]
LEGEND = (
    "goes on: the same processes serve. again: that launch is over on both nodes and a new one answers, without a person.",
    "blocks: a person is told what to mend; once mended, it serves again. noticed, answers: seconds since the fault, until the",
    "keeper acts and until clients are answered for good. failed: requests (loaded: of 3 clients that ask without a pause and",
    "once a second while refused; idle: of one user who comes when the keeper has had 30 s, or serves again).",
)


def key(row: Row) -> Key:
    return row.case.id, row.node, row.load


def seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def ended(row: Row) -> str:
    """In a word where it is one of the three ends; what happened instead in its own words."""
    return SHORT.get(row.ended, row.ended)  # type: ignore[call-overload, no-any-return]


def cells(row: Row | None) -> list[str]:
    if row is None:
        return ["", "", "", ""]
    return [ended(row), seconds(row.noticed_s), seconds(row.answers_s), str(row.failed)]


def line(rows: Sequence[Row | None], *, colours: bool = False) -> str:
    """One fault on one node under one load: a group of columns for each keeper."""
    first = next(row for row in rows if row is not None)
    what = [first.case.what, ROLES.get(first.node, first.node), first.load, SHORT[first.case.expect]]
    text = "".join(f"{cell[: width - 1]:<{width}}" for cell, (_, width) in zip(what, LEFT, strict=True))
    for row in rows:
        group = "".join(
            _cell(cell, width, at) for at, (cell, (_, width)) in enumerate(zip(cells(row), COLUMNS, strict=True))
        )
        colour = "" if row is None or not colours else GREEN if row.good else RED
        text += f"{colour}{group}{PLAIN if colour else ''} "
    return text.rstrip()


def _cell(cell: str, width: int, at: int) -> str:
    return f"{cell[: width - 1]:<{width}}" if at == 0 else f"{cell:>{width - 1}} "


def notes(rows: Sequence[Row | None]) -> list[str]:
    """What does not fit into columns, for rows that are not good."""
    told = []
    for row in rows:
        if row is None or row.good:
            continue
        if ended(row) not in SHORT.values():
            told.append(f"{row.keeper}: {row.ended}")
        if row.failed and row.case.lossless:
            told.append(f"{row.keeper}: no request should have failed")
        if row.left_behind:
            told.append(f"{row.keeper} left behind: {', '.join(row.left_behind)}")
    return told


def heading(keepers: Sequence[str]) -> list[str]:
    left = "".join(f"{name:<{width}}" for name, width in LEFT)
    group = "".join(_cell(name, width, at) for at, (name, width) in enumerate(COLUMNS)) + " "
    names = "".join(f"{name:<{len(group)}}" for name in keepers)
    return [f"{'':<{len(left)}}{names}".rstrip(), f"{left}{group * len(keepers)}".rstrip()]


def text(rows: Sequence[Row], keepers: Sequence[str], *, colours: bool = False) -> str:
    lines = heading(keepers)
    if colours:
        lines = [f"{DIM}{each}{PLAIN}" for each in lines]
    last = ""
    for group in grouped(rows, keepers):
        shown = line(group, colours=colours)
        what = next(row for row in group if row is not None).case.what
        lines.append(shown if what != last else " " * len(what) + shown[len(what) :])  # named once
        lines += [f"    {note}" for note in notes(group)]
        last = what
    return "\n".join([*lines, "", *LEGEND])


def grouped(rows: Sequence[Row], keepers: Sequence[str]) -> list[list[Row | None]]:
    """One list for each fault, node and load, in the order of the rows, with a place for each keeper."""
    found: dict[Key, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(key(row), {})[row.keeper] = row
    return [[of.get(keeper) for keeper in keepers] for of in found.values()]


def summaries(rows: Sequence[Row], keepers: Sequence[str]) -> list[str]:
    """One line for each keeper; where one has more rows than all have, another for those that all have."""
    shared = [row for each in grouped(rows, keepers) if None not in each for row in each if row is not None]
    told = []
    for keeper in keepers:
        told.append(summary(rows, keeper))
        if (same := summary(shared, keeper)) != told[-1]:
            told.append(f"{same}: on the rows of all keepers")
    return told


def summary(rows: Sequence[Row], keeper: str) -> str:
    mine = [row for row in rows if row.keeper == keeper]
    good, ends = (
        sum(row.good for row in mine),
        [row for row in mine if row.good and row.ended == Expect.SERVES_AGAIN],
    )
    failed = sum(row.failed for row in mine)
    told = f"{keeper}: {good} of {len(mine)} as they should end; {failed} requests failed"
    if ends:
        noticed = sorted(row.noticed_s for row in ends if row.noticed_s is not None)
        answers = sorted(row.answers_s for row in ends if row.answers_s is not None)
        if noticed and answers:
            told += f"; median {_median(noticed):.1f} s to notice, {_median(answers):.1f} s to answer again"
    return told


def _median(values: Sequence[float]) -> float:
    return values[len(values) // 2]


def as_json(row: Row) -> dict[str, Any]:
    told = {field.name: getattr(row, field.name) for field in dataclasses.fields(Row) if field.name != "case"}
    if row.good:
        told["story"] = ""
    return {"case": row.case.id, "what": row.case.what, "expect": row.case.expect, **told, "good": row.good}


def from_json(told: dict[str, Any], cases: dict[str, Case]) -> Row:
    names = [field.name for field in dataclasses.fields(Row) if field.name != "case"]
    values = {name: told[name] for name in names if name in told}
    values |= {"load": Load(told["load"]), "left_behind": tuple(told["left_behind"])}
    return Row(case=cases[told["case"]], **values)


def markdown(rows: Sequence[Row], keepers: Sequence[str], preface: Sequence[str]) -> str:
    """docs/faults.md, whole."""
    lines = ["# The fault matrix", "", *preface, ""]
    lines += [" ".join(LEGEND), "", *(f"- {told}" for told in summaries(rows, keepers)), ""]
    group = ("ended", "noticed s", "answers s", "failed")
    heads = [name if len(keepers) == 1 else f"{keeper}: {name}" for keeper in keepers for name in group]
    lines.append("| fault | node | load | expected | " + " | ".join(heads) + " | left behind |")
    lines.append("| --- | --- | --- | --- |" + " --- | ---: | ---: | ---: |" * len(keepers) + " --- |")
    for each in grouped(rows, keepers):
        first = next(row for row in each if row is not None)
        what = [first.case.what, ROLES.get(first.node, first.node), first.load, SHORT[first.case.expect]]
        shown = [cell for row in each for cell in _marked(row)]
        left = "; ".join(f"{row.keeper}: {', '.join(row.left_behind)}" for row in each if row and row.left_behind)
        lines.append("| " + " | ".join([*what, *shown, left or "nothing"]) + " |")
    return "\n".join(lines) + "\n"


def _marked(row: Row | None) -> list[str]:
    """An end that should not be stands out."""
    first, *rest = cells(row)
    return [first if row is None or row.good else f"**{first}**", *rest]
