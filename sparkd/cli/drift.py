"""`sparkd drift`: what changed around the engine, on both nodes, since it last proved itself."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from sparkd.cli import others, output
from sparkd.cli.options import config_option, node_option
from sparkd.cli.table import duration, plain
from sparkd.model.diagnosis import BaselineName, Change, Diagnosis
from sparkd.model.errors import EXIT_GOOD, EXIT_UNKNOWN, EXIT_WARNINGS, UnreachableError

HIGH, MIDDLE = 80, 50  # of suspicion: what a reader sees first

Paint = Callable[[str, str], str]


@dataclass(frozen=True)
class Drift:
    """One node's part. `baseline` None: it has none, and `why` says so."""

    node: str
    baseline: BaselineName | None
    changes: tuple[Change, ...] = ()
    unseen: dict[str, str] = field(default_factory=dict)
    why: str = ""


@click.command()
@click.option(
    "--baseline", "name", metavar="NAME", help="Compare with this one instead of the newest (this node only)."
)
@click.option("--list", "as_list", is_flag=True, help="Show the baselines that this node keeps.")
@click.option("--no-peer", is_flag=True, help="Do not ask the other nodes.")
@config_option
@node_option
@output.json_option
def drift(name: str | None, as_list: bool, no_peer: bool, config_path: Path, node: str | None, as_json: bool) -> int:
    """Show what changed since the engine last proved itself: units, scripts, environment, image, driver, kernel, link.

    The number before a change says how often such a change is what broke it, 0 to 100.

    \b
      sparkd drift                      now against the newest, both nodes
      sparkd drift --list               the baselines that this node keeps

    Exit status: 0 nothing changed, 1 something did, 3 cannot tell (there is no baseline yet, say).
    """
    from sparkd.cli.here import facts_here
    from sparkd.host.paths import Paths

    if as_list:
        return _list(Paths.from_environment(), as_json)
    facts = facts_here(config_path, node)
    if facts.config_error is not None:
        output.note(f"without a configuration: {facts.config_error}")
    hold_s = facts.settings.limits.hold_s if facts.settings else None
    found: list[Drift] = [_here(facts, name, hold_s)]
    absent: dict[str, str] = {}
    if not no_peer and (facts.settings is None or facts.settings.cluster.size > 1):
        answers: others.Answers = {}
        others.ask(answers)
        diagnoses, absent = others.read(facts, answers)
        found += [of_peer(each, hold_s) for each in diagnoses]
    if as_json:
        output.say_json(as_data(found, absent))
    else:
        output.say("\n".join(lines(found, absent, output.painter(output.colours_wanted()), now=datetime.now(UTC))))
    return exit_code(found, absent)


def exit_code(found: Sequence[Drift], absent: dict[str, str]) -> int:
    """A change anywhere is told, whatever else could not be seen."""
    if any(each.changes for each in found):
        return EXIT_WARNINGS
    return EXIT_UNKNOWN if absent or any(each.baseline is None for each in found) else EXIT_GOOD


# --- asking --------------------------------------------------------------------------------------


def _here(facts: Any, name: str | None, hold_s: float | None) -> Drift:
    from sparkd.doctor import baselines, boundary
    from sparkd.doctor import drift as pure

    node = facts.node or socket.gethostname()
    if name is None:
        newest = baselines.newest(facts.paths, output.note)
        if newest is None:
            return Drift(node, None, why=none_yet(hold_s))
        known, before = newest
    else:
        before = baselines.load(facts.paths, name)
        known = baselines.parse_name(name) or BaselineName(epoch=0, at=before.at)
    after = boundary.take(facts)
    return Drift(node, known, tuple(pure.changes(before, after)), dict(pure.unseen(before, after)))


def none_yet(hold_s: float | None) -> str:
    held = f"has served for {duration(hold_s)}" if hold_s is not None else "has proven itself and held"
    return f"there is no baseline yet: one is written when a launch {held}"


def of_peer(told: Diagnosis, hold_s: float | None) -> Drift:
    unseen = dict(told.boundary.unseen) if told.boundary else {}
    return Drift(told.node, told.baseline, told.changes, unseen, "" if told.baseline else none_yet(hold_s))


# --- telling -------------------------------------------------------------------------------------


def as_data(found: Sequence[Drift], absent: dict[str, str]) -> dict[str, Any]:
    return {
        "nodes": [
            {
                "node": each.node,
                "baseline": each.baseline.name if each.baseline else None,
                "changes": [change.model_dump(mode="json") for change in each.changes],
                "unseen": each.unseen,
                "why": each.why,
            }
            for each in found
        ],
        "absent": absent,
    }


def lines(found: Sequence[Drift], absent: dict[str, str], paint: Paint = plain, *, now: datetime) -> Iterator[str]:
    for each in found:
        yield from _node(each, paint, now)
    for node, why in absent.items():
        yield f"{paint(node, 'bold')}: could not be asked: {why}"


def _node(one: Drift, paint: Paint, now: datetime) -> Iterator[str]:
    """The group with the most suspicious change first, as the changes themselves are."""
    from sparkd.doctor.drift import title

    if one.baseline is None:
        yield f"{paint(one.node, 'bold')}: {one.why}"
        return
    count = f"{len(one.changes)} change{'s' if len(one.changes) != 1 else ''}" if one.changes else "nothing changed"
    yield f"{paint(one.node, 'bold')}: {count} since {one.baseline.name}{_age(one.baseline, now)}"
    for group in dict.fromkeys(change.group for change in one.changes):
        yield f"  {title(group)}"
        for change in one.changes:
            if change.group == group:
                colour = "red" if change.suspicion >= HIGH else "yellow" if change.suspicion >= MIDDLE else "dim"
                yield f"    {paint(f'{change.suspicion:>3}', colour)}  {change.says}"
    for group, why in one.unseen.items():
        yield paint(f"  not compared: {group}: {why}", "dim")


def _age(name: BaselineName, now: datetime) -> str:
    try:
        age_s = (now - datetime.fromisoformat(name.at)).total_seconds()
    except ValueError:
        return ""
    return f" ({duration(age_s)} ago)" if age_s >= 0 else ""


def _list(paths: Any, as_json: bool) -> int:
    from sparkd.doctor import baselines

    known = baselines.all(paths, output.note)
    if as_json:
        output.say_json([{"name": each.name, "epoch": each.epoch, "at": each.at} for each in known])
    elif known:
        output.say("\n".join(f"{each.name}{_age(each, datetime.now(UTC))}" for each in known))
    if not known and not as_json:
        raise UnreachableError(
            "there is no baseline yet", hint="one is written when a launch has served for limits.hold_s"
        )
    return EXIT_GOOD if known else EXIT_UNKNOWN
