"""What a worker shows of its head: also what a person has to do there."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from sparkd.agent import view
from sparkd.cli import table
from sparkd.control import cluster, telling
from sparkd.control import node as control
from sparkd.control.state import Me, Peer
from sparkd.model.cluster import Limits
from sparkd.model.finding import Cure, bad
from sparkd.model.report import Digests, Gate, Intent, Phase
from sparkd.model.status import Status

NAMES = ("spark1", "spark2")
FINDING = bad(
    "weights.path-missing",
    "/models/x does not exist",
    cure=Cure.PERSON,
    remedy="mount the weights",
    evidence=("mounted: /y",),
)


def me(rank: int) -> Me:
    return Me(NAMES[rank], rank, NAMES, "b" * 32, "0.1.0", Limits())


def told_by_head(phase: Phase = Phase.BLOCKED) -> Intent:
    """What goes over the link, as the link carries it."""
    head = replace(control.begin(me(0)), phase=phase, blocked=FINDING)
    return Intent.model_validate_json(cluster.publish(head).intent.model_dump_json())


def status(intent: Intent) -> Status:
    """The worker's own."""
    worker = replace(control.begin(me(1)), intent=intent, peers={0: Peer(reach="yes", heard_at=99.0)})
    rank = SimpleNamespace(cluster="spark", api_port=8000)
    node = SimpleNamespace(lan="192.0.2.1")
    effects: Any = SimpleNamespace(
        cluster_plan=SimpleNamespace(ranks=(rank, rank), recipe="r", profile=None), pending="",
        configuration=SimpleNamespace(settings=SimpleNamespace(cluster=SimpleNamespace(head=node))),
    )  # fmt: skip
    return view.status(worker, effects, 100.0)


def test_a_worker_shows_the_heads_remedy() -> None:
    shown = status(told_by_head())
    assert shown.nodes[0].blocked == FINDING
    text = table.status_text(shown.model_dump(mode="json"))
    assert "spark1: /models/x does not exist [weights.path-missing]" in text
    assert "mount the weights" in text and "mounted: /y" in text


def test_a_head_that_is_not_blocked_any_more_says_so() -> None:
    assert told_by_head(Phase.IDLE).blocked is None


def test_an_older_head_still_tells_that_it_is_blocked() -> None:
    older = told_by_head().model_copy(update={"blocked": None, "head_reason": "blocked: /models/x does not exist"})
    text = table.status_text(status(older).model_dump(mode="json"))
    assert "spark1: /models/x does not exist [peer.blocked]" in text
    assert "see `sparkd status` on spark1" in text


def test_armed_nodes_that_differ_say_what_a_person_has_to_make_equal() -> None:
    """Neither is blocked: they would go on by themselves. Whoever looks has to be told all the same, on either node."""
    told = Intent(run=True, epoch=7, gate=Gate.CLOSED, head_phase=Phase.ARMED, plan_digest="aaaa")
    worker = replace(control.begin(me(1)), intent=told, epoch=7, phase=Phase.ARMED, digests=Digests(plan="bbbb"))
    head = replace(control.begin(me(0)), intent=told, epoch=7, phase=Phase.ARMED, digests=Digests(plan="aaaa"))
    head = replace(head, peers={1: Peer(reach="yes", heard_at=99.0, report=telling.report(worker))})
    for state in (worker, head):
        finding = cluster.held_up(state)
        assert finding is not None and finding.id == "peer.plan-differs"
        assert "sparkd restart" in finding.remedy
        assert cluster.held_up(replace(state, phase=Phase.SERVING)) is None
        assert cluster.held_up(replace(state, digests=Digests(plan="aaaa" if state is worker else "bbbb"))) is None
