"""The first line: which of all that is wrong is the one thing to act on."""

from __future__ import annotations

from typing import Any

from sparkd.doctor.judge import examination, suspects
from sparkd.model.diagnosis import Diagnosis, Incident, Kind
from sparkd.model.finding import Finding, Verdict, unknown, warning

AT = "2026-11-21T10:00:00Z"


def finding(id: str, layer: str, verdict: Verdict = Verdict.BAD, *, symptom: bool = False) -> Finding:
    return Finding(id=id, verdict=verdict, says=f"{id} is wrong", layer=layer, symptom=symptom)


def incident(id: str, layer: str, kind: Kind = Kind.ROOT, **more: Any) -> Incident:
    facts = {"verdict": Verdict.BAD, "says": f"{id} happened", "where": "/log:1"} | more
    return Incident(id=id, layer=layer, kind=kind, **facts)


def diagnosis(node: str, *findings: Finding, incidents: tuple[Incident, ...] = (), **more: Any) -> Diagnosis:
    return Diagnosis(node=node, at=AT, findings=findings, incidents=incidents, **more)


def ids(*diagnoses: Diagnosis) -> list[str]:
    return [each.id for each in suspects(diagnoses)]


def judged(*diagnoses: Diagnosis, absent: dict[str, str] | None = None, proven: bool = False) -> Any:
    return examination(diagnoses, (), absent or {}, node="spark1", version="1", at=AT, proven=proven)


def test_the_lowest_layer_of_either_node_is_first() -> None:
    one = diagnosis("spark1", finding("endpoint.down", "endpoint"), finding("weights.missing", "weights"))
    two = diagnosis("spark2", finding("unit.failed-path", "unit"))
    assert ids(one, two) == ["unit.failed-path", "weights.missing", "endpoint.down"]
    headline = judged(one, two).headline
    assert headline is not None and (headline.node, headline.id) == ("spark2", "unit.failed-path")


def test_bad_goes_before_doubtful_and_roots_before_symptoms() -> None:
    one = diagnosis(
        "spark1",
        finding("unit.failed", "unit", symptom=True),
        finding("memory.swap", "host-memory", Verdict.WARNING),
        finding("weights.missing", "weights"),
    )
    assert ids(one) == ["weights.missing", "unit.failed", "memory.swap"]


def test_a_consequence_from_a_log_is_silent_while_a_root_stands_on_the_other_node() -> None:
    one = diagnosis("spark1", incidents=(incident("engine-dead", "engine", Kind.CONSEQUENCE),))
    two = diagnosis("spark2", incidents=(incident("driver-xid-79", "driver"),))
    assert ids(one) == ["engine-dead"]
    assert ids(one, two) == ["driver-xid-79"]


def test_a_vague_incident_of_a_lower_layer_does_not_overtake_the_one_that_explains_more() -> None:
    told = (incident("engine-oom-at-start", "engine"), incident("link-reset", "link"))
    assert ids(diagnosis("spark1", incidents=told)) == ["engine-oom-at-start", "link-reset"]
    with_check = diagnosis("spark1", finding("docker.full", "docker"), incidents=told)
    assert ids(with_check)[0] == "docker.full"


def test_history_and_noise_are_not_suspects() -> None:
    past = incident("driver-xid-79", "driver", current=False)
    noise = incident("engine-warning", "engine", Kind.NOISE)
    assert judged(diagnosis("spark1", incidents=(past, noise))).verdict is Verdict.GOOD


def test_the_same_finding_twice_is_told_once() -> None:
    same = finding("link.missing", "link")
    assert ids(diagnosis("spark1", same, same)) == ["link.missing"]


def test_verdicts() -> None:
    good = diagnosis("spark1", Finding(id="a.b", verdict=Verdict.GOOD, says="fine"))
    blind = diagnosis("spark1", unknown("a.b", "cannot look"))
    assert judged(good).verdict is Verdict.GOOD
    assert judged(blind).verdict is Verdict.UNKNOWN
    assert judged(blind, proven=True).verdict is Verdict.GOOD
    assert judged(good.model_copy(update={"unseen": ("not root",)}), proven=True).verdict is Verdict.UNKNOWN
    assert judged(good, absent={"spark2": "off"}, proven=True).verdict is Verdict.UNKNOWN
    assert judged().verdict is Verdict.UNKNOWN
    assert judged(diagnosis("spark1", warning("a.b", "soon"))).verdict is Verdict.WARNING
    assert judged(diagnosis("spark1", finding("a.b", "unit")), absent={"spark2": "off"}).verdict is Verdict.BAD


def test_what_the_daemon_and_its_log_both_tell_is_told_once_with_the_place() -> None:
    told = incident("engine-oom", "engine", where="/log:7", at="10:00:00", count=2)
    (found,) = suspects([diagnosis("spark1", finding("engine-oom", "engine"), incidents=(told,))])
    assert (found.says, found.where, found.count) == ("engine-oom is wrong", "/log:7", 2)
    elsewhere = diagnosis("spark2", incidents=(told,))
    assert ids(diagnosis("spark1", finding("engine-oom", "engine")), elsewhere) == ["engine-oom", "engine-oom"]
