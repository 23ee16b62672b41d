"""One node examined: checks, logs and what changed, all at once; then the nodes seen together."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from sparkd import __version__
from sparkd.doctor.ask import Asked, ask, at_once, chosen, hide
from sparkd.doctor.check import Check
from sparkd.doctor.declared import of_layer, of_nodes, of_pairs
from sparkd.doctor.facts import Facts
from sparkd.doctor.judge import examination
from sparkd.host import clock
from sparkd.model.diagnosis import BaselineName, Boundary, Change, Diagnosis, Examination, Incident
from sparkd.model.errors import ConfigError
from sparkd.model.finding import Cure, Finding, Layer, Verdict, bad, warning

if TYPE_CHECKING:
    from sparkd.doctor.texts import Reading
    from sparkd.doctor.timeline import Present

LOGS, DRIFT = "logs", "drift"  # what --only and --skip understand besides ids and layers
LIMIT_S = 3.5
HISTORY_MAX_S = 1.5  # how long after the beginning another older log is still searched
SLOW_LIMIT_S = 60.0  # where a slow check was asked for by its name

_LOG_PLACE = re.compile(r"(?P<file>.*-(?P<epoch>\d+)\.log):(?P<line>\d+)")


@dataclass(frozen=True)
class Surroundings:
    """The boundary now, and what of it differs from the newest baseline."""

    boundary: Boundary
    baseline: BaselineName | None = None
    changes: tuple[Change, ...] = ()


def diagnose(
    facts: Facts,
    *,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    limit_s: float = LIMIT_S,
    thorough: bool = False,
) -> Diagnosis:
    """Everything about this node, within `limit_s`. A part that fails or is late is told in `unseen`."""
    began = clock.monotonic()
    checks = chosen(of_nodes(), only=only, skip=skip)
    comparing = any(chosen(of_pairs(), only=only, skip=skip))
    work: dict[str, Callable[[], object]] = {"checks": partial(ask, checks, facts, limit_s=limit_s)}
    if _wanted(LOGS, only, skip):
        work["logs"] = partial(incidents, facts, thorough=thorough, limit_s=limit_s)
    if _wanted(DRIFT, only, skip) or comparing:
        work["boundary"] = partial(surroundings, facts)
    done = at_once(work, limit_s=limit_s + 0.2)  # each part keeps its own limit; this is for one that does not
    asked, logs, around = done.get("checks"), done.get("logs"), done.get("boundary")
    found, unread = logs if isinstance(logs, tuple) else ((), ())
    drifted = around if isinstance(around, Surroundings) else None
    unseen = [_why_not(name, done.get(name), limit_s) for name in work if isinstance(done.get(name), Exception | None)]
    findings = asked.findings if isinstance(asked, Asked) else ()
    return Diagnosis(
        node=_node(facts),
        rank=facts.rank,
        host=_host_name(),
        version=__version__,
        boot_id=clock.boot_id(),
        at=now(),
        seconds=round(clock.monotonic() - began, 3),
        findings=(*_configuration(facts), *findings, *_late(asked, limit_s)),
        hidden=dict(asked.hidden) if isinstance(asked, Asked) else {},
        incidents=tuple(_while_units_fail(found, findings)),
        boundary=drifted.boundary if drifted else None,
        baseline=drifted.baseline if drifted else None,
        changes=drifted.changes if drifted else (),
        unseen=(*_general(facts), *unseen, *unread),
    )


def _wanted(part: str, only: Collection[str], skip: Collection[str]) -> bool:
    return (not only or part in only) and part not in skip


def _why_not(name: str, error: object, limit_s: float) -> str:
    what = {"checks": "the checks", "logs": "the logs", "boundary": "what changed"}[name]
    if error is None:
        return f"{what}: not done in {limit_s:g} s"
    return f"{what}: {error}"


def _node(facts: Facts) -> str:
    """By the configuration, else by the daemon, else by the machine's own name."""
    return facts.node or str((facts.status or {}).get("node") or _host_name())


def _configuration(facts: Facts) -> Iterable[Finding]:
    """One that is wrong is the first thing to mend. One that cannot be read is not seen: this may be no node at all."""
    error = facts.config_error
    if error is not None and not error.message.startswith("cannot be read"):
        id = error.id if isinstance(error, ConfigError) else "config.invalid"
        found = bad(id, str(error), cure=Cure.PERSON, remedy=error.hint or "sparkd config check")
        yield found.model_copy(update={"layer": Layer.UNIT.value})


def _late(asked: object, limit_s: float) -> Iterable[Finding]:
    """What hangs is a symptom, although nobody can say of what; with an engine that serves it would else be overlooked."""
    if isinstance(asked, Asked) and asked.late:
        names = ", ".join(each.id for each in asked.late)
        count = f"{len(asked.late)} {'check' if len(asked.late) == 1 else 'checks'}"
        says = f"{count} had no answer in {limit_s:.1f} s: something hangs, or this node is overloaded"
        remedy = f"sparkd doctor --only {asked.late[0].id}"
        found = warning("doctor.no-answer", says, evidence=(names,), remedy=remedy)
        yield found.model_copy(update={"layer": asked.late[0].layer.value, "symptom": True})


def _general(facts: Facts) -> Iterable[str]:
    """What the whole examination had to do without."""
    if facts.config_error is not None:
        yield f"no configuration: {facts.config_error}"
    if facts.status is None:
        yield f"no word from the daemon: {facts.without_daemon or 'not asked'}"
    if os.geteuid() != 0:
        yield "not root: other users' processes, their maps and most logs cannot be read; sudo sparkd doctor"


def _host_name() -> str:
    return socket.gethostname()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# --- the parts of a diagnosis ----------------------------------------------------------------------


def incidents(
    facts: Facts, *, thorough: bool = False, limit_s: float = LIMIT_S
) -> tuple[tuple[Incident, ...], tuple[str, ...]]:
    """What the logs of this node say, and which logs could not be read."""
    from sparkd.doctor import signatures, texts

    began = clock.monotonic()
    gathered = texts.gather(facts, thorough, limit_s=0.7 * limit_s)  # the rest is for the search
    now = [reading.text for reading in gathered.readings if reading.text.current]
    past = [reading.text for reading in gathered.readings if not reading.text.current]
    found = signatures.classify(now, served=gathered.present.served)
    unread = 0
    for text in past:  # each by itself: what one launch died of does not explain another's end
        if thorough or clock.monotonic() - began < HISTORY_MAX_S:
            found += signatures.classify([text])
        else:
            unread += 1
    late: tuple[str, ...] = ()
    if unread and not gathered.present.proven:  # else they explain nothing anyway
        late = (f"{unread} older logs were not searched, for want of time: --thorough does",)
    places = {reading.text.where: reading for reading in gathered.readings}
    told = (_settled(incident, places, gathered.present) for incident in found)
    return tuple(told), (*gathered.unseen, *late)


def _settled(incident: Incident, places: Mapping[str, Reading], here: Present) -> Incident:
    """Where it stands as a person would look for it, and whether a proof has followed."""
    disproved = here.proven and incident.verdict is Verdict.BAD and incident.where.startswith("/")
    where = _in_the_file(incident.where, places)
    return incident.model_copy(update={"where": where, "current": incident.current and not disproved})


def _while_units_fail(found: Iterable[Incident], findings: Collection[Finding]) -> Iterator[Incident]:
    """What the journal says of a unit's failure is history once systemd says that no unit is in trouble any more."""
    in_trouble = {finding.id for finding in findings if finding.verdict is not Verdict.GOOD}
    about = ("unit.failed", "unit.start-limit", "unit.restart-loop", "unit.engine-gone", "daemon.silent")
    is_well = any(finding.id == "unit.failed" for finding in findings) and not in_trouble.intersection(about)
    for incident in found:
        past = is_well and incident.layer == Layer.UNIT and incident.where == "journal"
        yield incident.model_copy(update={"current": False}) if past else incident


def _in_the_file(where: str, places: Mapping[str, Reading]) -> str:
    """The line's number as an editor counts it, where the middle of a long log was left out; none in host logs."""
    name, _, number = where.rpartition(":")
    reading = places.get(name)
    if reading is None or not number.isdecimal():
        return where
    if not name.startswith("/"):
        return name
    return f"{name}:{int(number) + (reading.skipped if int(number) > reading.head else 0)}"


def surroundings(facts: Facts) -> Surroundings:
    """The boundary now against the newest baseline of this node."""
    from sparkd.doctor import baselines, boundary, drift

    here = boundary.take(facts)
    newest = baselines.newest(facts.paths)
    if newest is None:
        return Surroundings(here)
    name, before = newest
    return Surroundings(here, name, tuple(drift.changes(before, here)))


def narrowed(diagnosis: Diagnosis, only: Collection[str], skip: Collection[str]) -> Diagnosis:
    """Of another node's whole diagnosis what was asked for here."""

    def wanted(finding: Finding) -> bool:
        names = {finding.id, finding.layer, finding.id.partition(".")[0]}
        return (not only or bool(names & set(only))) and (finding.id in only or not names & set(skip))

    return diagnosis.model_copy(
        update={
            "findings": tuple(filter(wanted, diagnosis.findings)),
            "hidden": {} if only else diagnosis.hidden,
            "incidents": diagnosis.incidents if _wanted(LOGS, only, skip) else (),
            "changes": diagnosis.changes if _wanted(DRIFT, only, skip) else (),
        }
    )


# --- the nodes together ------------------------------------------------------------------------------


def compare(
    diagnoses: Iterable[Diagnosis], *, only: Collection[str] = (), skip: Collection[str] = ()
) -> tuple[Finding, ...]:
    """What only the nodes together show. What a fault on one of them explains is left out."""
    diagnoses = tuple(diagnoses)
    boundaries = {each.node: each.boundary for each in diagnoses if each.boundary is not None}
    if len(boundaries) < 2:
        return ()
    checks: list[Check] = chosen(of_pairs(), only=only, skip=skip)
    bad = {finding.id for each in diagnoses for finding in each.findings if finding.is_bad}
    bad |= {id for each in diagnoses for id in each.hidden}
    return hide(checks, {each.id: each.compared(boundaries) for each in checks}, elsewhere=bad).findings


def explained(diagnoses: tuple[Diagnosis, ...]) -> tuple[Diagnosis, ...]:
    """Without what a fault at the other end of the link explains: there is one link, and a node sees it from its end only."""
    after = {each.id: each.after for each in of_layer(Layer.LINK)}
    bad = {each.node: {finding.id for finding in each.findings if finding.is_bad} for each in diagnoses}

    def cause(finding: Finding, node: str) -> str | None:
        elsewhere = set().union(*(ids for name, ids in bad.items() if name != node))
        return next((id for id in after.get(finding.id, ()) if id in elsewhere), None) if finding.is_bad else None

    def rest(each: Diagnosis) -> Diagnosis:
        causes = {finding.id: found for finding in each.findings if (found := cause(finding, each.node))}
        kept = tuple(finding for finding in each.findings if finding.id not in causes)
        return each.model_copy(update={"findings": kept, "hidden": {**each.hidden, **causes}}) if causes else each

    return tuple(map(rest, diagnoses))


def settle(diagnoses: Iterable[Diagnosis]) -> tuple[Diagnosis, ...]:
    """In rank order, and of the engine logs only those of the latest epoch speak for the present: a node that did not
    take part in it has an older one."""
    ordered = sorted(diagnoses, key=lambda each: (each.rank is None, each.rank or 0, each.node))
    latest = max((_epoch(incident) for each in ordered for incident in each.incidents if incident.current), default=-1)

    def settled(incident: Incident) -> Incident:
        old = incident.current and -1 < _epoch(incident) < latest
        return incident.model_copy(update={"current": False}) if old else incident

    return tuple(each.model_copy(update={"incidents": tuple(map(settled, each.incidents))}) for each in ordered)


def _epoch(incident: Incident) -> int:
    """Of the launch whose log it stands in; -1 for other logs."""
    place = _LOG_PLACE.fullmatch(incident.where)
    return int(place["epoch"]) if place else -1


def together(
    diagnoses: Iterable[Diagnosis],
    absent: Mapping[str, str],
    *,
    node: str,
    proven: bool = False,
    only: Collection[str] = (),
    skip: Collection[str] = (),
) -> Examination:
    """All nodes that answered, with what their comparison shows and the one thing to act on.

    `proven`: the engine has just answered, so that what could not be looked at is no reason for doubt.
    """
    settled = explained(settle(diagnoses))
    pair = compare(settled, only=only, skip=skip)
    return examination(settled, pair, absent, node=node, version=__version__, at=now(), proven=proven)
