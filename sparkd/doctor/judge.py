"""What is the one thing to act on? Pure: from all that was found on all nodes, the first line, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from sparkd.model.diagnosis import Diagnosis, Examination, Headline, Incident, Kind
from sparkd.model.finding import Finding, Verdict, Who, depth

_SEVERITY = {Verdict.BAD: 0, Verdict.WARNING: 1}


@dataclass(frozen=True)
class Suspect:
    """Something that is wrong now: a check's answer or an incident from a log."""

    node: str  # empty: only the nodes together show it
    id: str
    layer: str
    verdict: Verdict
    says: str
    who: Who
    remedy: str
    rank: int  # 0 a root, 1 a symptom or consequence: it says that, not what
    depth: int  # where in the order of layers it is told
    evidence: tuple[str, ...] = ()
    where: str = ""  # of an incident: the log and the line
    at: str = ""  # of an incident: when it was logged
    count: int = 1


def suspects(diagnoses: Iterable[Diagnosis], pair: Iterable[Finding] = ()) -> list[Suspect]:
    """What is wrong on any node, first what to act on: bad before doubtful, roots before symptoms, from the lowest layer up."""
    found = [suspect for diagnosis in diagnoses for suspect in _of(diagnosis)]
    found += [_finding("", finding) for finding in pair if finding.verdict in _SEVERITY]
    if any(suspect.rank == 0 and suspect.verdict is Verdict.BAD for suspect in found):
        # With a root in sight on either node, a consequence from a log explains nothing.
        found = [suspect for suspect in found if not (suspect.rank == 1 and suspect.where)]
    return sorted(_without_echoes(found), key=_order)


def _order(suspect: Suspect) -> tuple[int, int, int]:
    return (_SEVERITY[suspect.verdict], suspect.rank, suspect.depth)


def _of(diagnosis: Diagnosis) -> Iterator[Suspect]:
    """Checks before incidents of the same layer: what was seen on the host now is surer than what a log said."""
    for finding in diagnosis.findings:
        if finding.verdict in _SEVERITY:
            yield _finding(diagnosis.node, finding)
    deepest = 0
    for incident in diagnosis.incidents:
        if incident.current and incident.kind is not Kind.NOISE:
            # Incidents come with the most explaining one first; a vaguer one of a lower layer must not overtake it.
            deepest = max(deepest, depth(incident.layer))
            yield _incident(diagnosis.node, incident, deepest)


def _finding(node: str, finding: Finding) -> Suspect:
    return Suspect(
        node, finding.id, finding.layer, finding.verdict, finding.says, finding.who, finding.remedy,
        rank=int(finding.symptom), depth=depth(finding.layer), evidence=finding.evidence,
    )  # fmt: skip


def _incident(node: str, incident: Incident, place: int) -> Suspect:
    return Suspect(
        node, incident.id, incident.layer, incident.verdict, incident.says, incident.who, incident.remedy,
        rank=int(incident.kind is Kind.CONSEQUENCE), depth=place, evidence=incident.evidence,
        where=incident.where, at=incident.at, count=incident.count,
    )  # fmt: skip


def _without_echoes(found: Iterable[Suspect]) -> list[Suspect]:
    """The same id on the same node once: the daemon's blocked reason is often the very finding that a check gives, and the
    loss that it tells of is often what the log says, which then only adds the place."""
    kept: dict[tuple[str, str, str], Suspect] = {}
    told: dict[tuple[str, str], tuple[str, str, str]] = {}
    for suspect in found:
        key = (suspect.node, suspect.id, suspect.says)
        if suspect.where:
            key = told.get(key[:2], key)
        else:
            told.setdefault(key[:2], key)
        first = kept.setdefault(key, suspect)
        if suspect.where and not first.where:
            kept[key] = replace(first, where=suspect.where, at=suspect.at, count=suspect.count)
    return list(kept.values())


def examination(
    diagnoses: tuple[Diagnosis, ...],
    pair: tuple[Finding, ...],
    absent: Mapping[str, str],
    *,
    node: str,
    version: str,
    at: str,
    proven: bool = False,
) -> Examination:
    """All of it, with the worst verdict and the first line.

    A node that could not be asked is unknown, not good; so is one of which a whole part could not be seen. A question
    without an answer is, too, unless the engine has just proven (`proven`) what the question was for.
    """
    wrong = suspects(diagnoses, pair)
    headline = None
    verdict = Verdict.GOOD
    if wrong:
        first = wrong[0]
        verdict = first.verdict
        headline = Headline(
            node=first.node, id=first.id, verdict=first.verdict, says=first.says, who=first.who, remedy=first.remedy
        )
    elif absent or not diagnoses or any(each.unseen or (_unanswered(each) and not proven) for each in diagnoses):
        verdict = Verdict.UNKNOWN
    return Examination(
        version=version,
        at=at,
        node=node,
        verdict=verdict,
        headline=headline,
        nodes=diagnoses,
        pair=pair,
        absent=dict(absent),
    )


def _unanswered(diagnosis: Diagnosis) -> bool:
    return any(finding.verdict is Verdict.UNKNOWN for finding in diagnosis.findings)
