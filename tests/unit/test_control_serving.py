"""Keeping the proof fresh: what counts as life, what as a hang, what a canary decides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparkd.control import serving
from sparkd.control.node import begin
from sparkd.control.state import Canary, CanaryBack, Counters, Launch, Me, NodeState, Note, Peer
from sparkd.model.cluster import Limits
from sparkd.model.finding import Cure, Finding, bad, unknown
from sparkd.model.report import Phase, Proof

LIMITS = Limits()
NOW = 1000.0
TIMEOUT = bad("endpoint.timeout", "no answer within 60 s", cure=Cure.RELAUNCH)
ERROR = bad("endpoint.error", "the endpoint answered 500", cure=Cure.RELAUNCH)


def head(**changes: object) -> NodeState:
    state = begin(Me("spark1", 0, ("spark1", "spark2"), "b", "0.1.0", LIMITS))
    proof = Proof(epoch=1, at=NOW)
    state = replace(
        state, phase=Phase.SERVING, epoch=1, since=NOW, launch=Launch(1, seen=True), proof=proof, moved_at=NOW
    )
    return replace(state, **changes)  # type: ignore[arg-type]


def asked(state: NodeState, now: float) -> tuple[NodeState, int]:
    moved = serving.watch(state, now)
    assert moved is not None
    [canary] = moved[1]
    assert isinstance(canary, Canary)
    return moved[0], canary.ticket


def test_a_quiet_endpoint_is_asked_every_interval() -> None:
    state = head()
    assert serving.watch(state, NOW + LIMITS.canary_interval_s - 1) is None
    state, ticket = asked(state, NOW + LIMITS.canary_interval_s)
    assert serving.watch(state, NOW + LIMITS.canary_interval_s + 30) is None, "one at a time"
    state, _ = serving.canary_back(state, CanaryBack(ticket, Proof(epoch=1, at=0)), NOW + 65)
    assert state.proof is not None and state.proof.at == NOW + 65


def test_a_request_that_completes_is_a_proof() -> None:
    state = serving.counted(head(), Counters(successes=1, movement=1, active=1), NOW)
    state = serving.counted(state, Counters(successes=2, movement=2), NOW + 50)
    assert state.proof is not None and state.proof.says == "a client's request completed"
    assert serving.watch(state, NOW + 100) is None


def test_a_silent_peer_makes_the_head_ask_sooner() -> None:
    state = head(peers={1: Peer("refused", NOW)})
    asked(state, NOW + LIMITS.link_loss_max_s / 4)


def test_a_timeout_is_enough_and_one_error_is_not() -> None:
    state, ticket = asked(head(), NOW + 60)
    lost, _ = serving.canary_back(state, CanaryBack(ticket, None, TIMEOUT), NOW + 120)
    assert lost.loss is not None and lost.loss.finding == TIMEOUT
    once, _ = serving.canary_back(state, CanaryBack(ticket, None, ERROR), NOW + 61)
    assert once.loss is None
    again, ticket = asked(once, NOW + 62)
    lost, _ = serving.canary_back(again, CanaryBack(ticket, None, ERROR), NOW + 62)
    assert lost.loss is not None and lost.loss.finding == ERROR


@pytest.mark.parametrize("finding", [TIMEOUT, ERROR])
def test_an_engine_that_works_on_others_is_left_alone(finding: Finding) -> None:
    state, ticket = asked(head(), NOW + 60)
    state = serving.counted(state, Counters(movement=1, active=16), NOW + 61)
    state = serving.counted(state, Counters(movement=2, active=16), NOW + 90)
    state, notes = serving.canary_back(state, CanaryBack(ticket, None, finding), NOW + 120)
    assert state.loss is None
    assert [note.id for note in notes if isinstance(note, Note)] == ["canary.unanswered"]
    assert "(stale: the engine is busy)" in serving.reason(state, NOW + 121)


def test_a_canary_that_could_not_be_asked_decides_nothing() -> None:
    state, ticket = asked(head(), NOW + 60)
    state, _ = serving.canary_back(state, CanaryBack(ticket, None, unknown("endpoint.unknown", "no key")), NOW + 61)
    assert (state.loss, state.canary_failures) == (None, 0)


def test_a_late_canary_of_another_question_is_dropped() -> None:
    state, ticket = asked(head(), NOW + 60)
    assert serving.canary_back(state, CanaryBack(ticket - 1, None, TIMEOUT), NOW + 61) == (state, [])


def test_frozen_counters_with_work_waiting_are_a_hang() -> None:
    state = serving.counted(head(), Counters(active=0), NOW + 500)
    state = serving.counted(state, Counters(active=1), NOW + 505)
    state = replace(state, canary_at=NOW + 505)
    assert serving.watch(state, NOW + 505 + LIMITS.hang_max_s) is None, "idle counters rest"
    lost = serving.watch(state, NOW + 506 + LIMITS.hang_max_s)
    assert lost is not None and lost[0].loss is not None
    assert lost[0].loss.finding.says == "1 requests are waiting and no counter has moved for 91 s: the engine hangs"


def test_silence_counts_only_when_nothing_was_answered_since() -> None:
    gone = NOW + 10
    silent = head(peers={1: Peer("unreachable", gone)}, canary_at=NOW)
    lost = serving.watch(silent, gone + LIMITS.link_loss_max_s + 1)
    assert lost is not None and lost[0].loss is not None and lost[0].loss.finding.id == "peer.unreachable"
    answered = replace(silent, proof=Proof(epoch=1, at=gone + 20))
    assert serving.watch(answered, gone + LIMITS.link_loss_max_s + 1) is None
    refused = replace(silent, peers={1: Peer("refused", gone)})
    assert serving.watch(refused, gone + 10_000) is None
