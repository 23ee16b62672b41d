"""`sparkd explain`: what an id means that doctor, status or events named."""

from __future__ import annotations

import difflib
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from sparkd.cli import output
from sparkd.model.errors import UsageError

if TYPE_CHECKING:
    from sparkd.doctor.catalogue import Record
    from sparkd.doctor.check import Check

LABEL = 12
NEAR_MAX = 3

# Ids that are made of a part that changes, and where the explanation stands.
MADE = (
    (re.compile(r"phase[.-][a-z]+"), "phase"),
    (
        re.compile(r"image[.-].+-(doubled|partial|unpatched|patched|superseded|file-missing|unreadable)"),
        "image.patches",
    ),
)


@click.command()
@click.argument("id", required=False)
@click.option("-v", "--verbose", is_flag=True, help="Also show the patterns by which logs are recognised.")
@output.json_option
def explain(id: str | None, verbose: bool, as_json: bool) -> None:
    """Explain a check, an incident or a reason of the daemon by its ID; without one, list them all.

    \b
      sparkd explain link.mtu                a check and what it means
      sparkd explain driver-xid-79-off-bus   an incident that stands in a log

    Exit status: 0, or 64 for an ID that is not known.
    """
    if id is None:
        _list(as_json)
        return
    known = everything()
    found = look_up(id, known)
    if found is None:
        hint = f"{did_you_mean(id, known)}sparkd explain lists all"
        raise UsageError(f"nothing is known of {id!r}", where="ID", hint=hint)
    if as_json:
        output.say_json(_json(found))
        return
    width = min(100, shutil.get_terminal_size((100, 40)).columns)
    for line in lines(found, width=width, verbose=verbose):
        output.say(line)


def everything() -> dict[str, Check | Record]:
    """All that has an id: checks first, then the catalogue's records."""
    from sparkd.doctor.catalogue import records
    from sparkd.doctor.declared import every_check

    found: dict[str, Check | Record] = {each.id: each for each in every_check()}
    for id, record in records().items():
        found.setdefault(id, record)
    return found


def look_up(id: str, known: Mapping[str, Check | Record]) -> Check | Record | None:
    """By its id; dots, dashes, underscores and capitals are all one. A check goes before a record of the same name."""
    if id in known:
        return known[id]
    alike = {_plain(name): name for name in reversed(list(known))}
    name = alike.get(_plain(id)) or next((to for made, to in MADE if made.fullmatch(id.strip().lower())), None)
    return known.get(name) if name is not None else None


def _plain(id: str) -> str:
    return id.strip().lower().replace(".", "-").replace("_", "-")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean a, b or c? `, empty where nothing is near."""
    names = list(known)
    plain = {_plain(each): each for each in names}
    near = [plain[each] for each in difflib.get_close_matches(_plain(name), plain, n=NEAR_MAX, cutoff=0.6)]
    near += [each for each in names if _plain(name) in _plain(each) and each not in near] if len(name) > 2 else []
    near = near[:NEAR_MAX]
    if not near:
        return ""
    either = ", ".join(near[:-1]) + (" or " if near[:-1] else "") + near[-1]
    return f"did you mean {either}? "


# --- telling -----------------------------------------------------------------------------------------


def lines(found: Check | Record, *, width: int = 100, verbose: bool = False) -> list[str]:
    from sparkd.doctor.check import Check

    rows = _check(found) if isinstance(found, Check) else _record(found, verbose=verbose)
    return [line for label, text in rows for line in _row(label, text, width)]


def _check(check: Check) -> Iterable[tuple[str, str]]:
    gate = f"; gates a launch ({check.gate.value})" if check.gate else ""
    yield "", f"{check.id} (check, layer {check.layer.value}{gate})"
    yield "question", check.question
    yield "how", check.how
    yield "if bad", check.means
    yield "sample", check.sample
    yield "do", check.remedy
    yield "who", check.who.value
    yield "cure", _CURES[check.cure.value]
    if check.after:
        yield "hidden by", ", ".join(check.after)
    if check.slow:
        yield "note", f"asked only when it is named: sparkd doctor --only {check.id}"


def _record(record: Record, *, verbose: bool) -> Iterable[tuple[str, str]]:
    kind = {"root": "a cause", "consequence": "a consequence of something else", "noise": "looks bad and is not"}
    yield "", f"{record.id} (incident, layer {record.layer}; {kind[record.kind.value]})"
    yield "says", record.says
    yield "cause", record.cause
    yield "do", record.remedy
    yield "fix", record.fix
    yield "who", record.who.value
    yield "cure", _CURES[record.cure.value]
    yield "look", record.look
    yield "checks", ", ".join(record.checks)
    yield "explains", ", ".join(record.explains)
    yield "refs", ", ".join(record.refs)
    yield "confidence", record.confidence
    if not verbose:
        return
    for signature in record.signatures:
        yield "pattern", f"[{signature.source.value}] {signature.regex}"
        for example in (signature.example, *signature.examples):
            yield "e.g.", example


_CURES = {
    "wait": "comes by itself while a node boots: sparkd waits for it",
    "relaunch": "another launch may succeed: sparkd tries again",
    "person": "no launch can succeed until a person has acted: sparkd waits blocked",
}


def _row(label: str, text: str, width: int) -> list[str]:
    if not text.strip():
        return []
    if not label:
        return [text]
    indent = " " * (LABEL + 2)
    front = f"  {label + ':':<{LABEL}}"
    front = front if len(front) <= len(indent) else front + " "
    return textwrap.wrap(
        " ".join(text.split()),
        max(40, width),
        initial_indent=front,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _json(found: Check | Record) -> dict[str, Any]:
    from sparkd.doctor.check import Check

    if not isinstance(found, Check):
        record = found.model_dump(mode="json")
        return {**record, "kind": "incident", "incident_kind": record["kind"]}
    return {
        "kind": "check",
        "id": found.id,
        "layer": found.layer.value,
        "question": found.question,
        "how": found.how,
        "means": found.means,
        "sample": found.sample,
        "remedy": found.remedy,
        "who": found.who.value,
        "cure": found.cure.value,
        "gate": found.gate.value if found.gate else None,
        "after": list(found.after),
        "pair": found.compare is not None,
        "slow": found.slow,
    }


def _list(as_json: bool) -> None:
    from sparkd.doctor.check import Check

    known = everything()
    told = {id: found.question if isinstance(found, Check) else found.says for id, found in known.items()}
    if as_json:
        kinds = {id: "check" if isinstance(found, Check) else "incident" for id, found in known.items()}
        output.say_json([{"id": id, "kind": kinds[id], "says": says} for id, says in told.items()])
        return
    width = max(map(len, told))
    for id, says in told.items():
        output.say(f"{id:<{width}}  {says}")
