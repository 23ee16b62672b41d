"""Keeping the proof fresh: what counts as life, what as a hang, what a canary decides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparkd.control import serving
from sparkd.control.node import begin
from sparkd.control.state import Action, Canary, CanaryBack, Counters, Launch, Me, NodeState, Note, Peer
from sparkd.model.cluster import Limits
from sparkd.model.finding import Cure, Finding, bad, unknown
from sparkd.model.report import Phase, Proof, Report, Vitals

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


def watched(state: NodeState, now: float) -> tuple[NodeState, list[Action]]:
    """The head as it is when nothing more follows at this moment."""
    actions: list[Action] = []
    for _ in range(5):
        moved = serving.watch(state, now) if state.loss is None else None
        if moved is None:
            return state, actions
        state, more = moved
        actions += more
    raise AssertionError("it goes round in circles")


def asked(state: NodeState, now: float) -> tuple[NodeState, int]:
    state, actions = watched(state, now)
    [canary] = actions
    assert isinstance(canary, Canary)
    return state, canary.ticket


def worker(vitals: Vitals | None, heard_at: float) -> dict[int, Peer]:
    report = Report(
        node="spark2",
        rank=1,
        version="0.1.0",
        boot_id="b",
        epoch=1,
        phase=Phase.SERVING,
        engine_alive=True,
        vitals=vitals,
    )
    return {1: Peer("yes", NOW, heard_at, report)}


def test_a_quiet_endpoint_is_asked_every_interval() -> None:
    state = head()
    assert serving.watch(state, NOW + LIMITS.canary_interval_s - 1) is None
    state, ticket = asked(state, NOW + LIMITS.canary_interval_s)
    assert watched(state, NOW + LIMITS.canary_interval_s + 30)[1] == [], "one at a time"
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


def test_a_timeout_is_not_enough_it_is_asked_again_until_the_blind_limit() -> None:
    state, ticket = asked(head(), NOW + 60)
    state, notes = serving.canary_back(state, CanaryBack(ticket, None, TIMEOUT), NOW + 120)
    assert (state.loss, state.unanswered_since) == (None, NOW + 60)
    assert [note.id for note in notes if isinstance(note, Note)] == ["canary.unanswered"]
    assert watched(state, NOW + 121)[1] == [], "not in a circle"
    state, ticket = asked(state, NOW + 130)
    assert state.doubt, "every node is asked to look"
    state, notes = serving.canary_back(state, CanaryBack(ticket, None, TIMEOUT), NOW + 190)
    assert (notes, state.unanswered_since) == ([], NOW + 60), "said once"
    state = replace(state, canary_at=NOW + 400)
    state, actions = watched(state, NOW + 60 + LIMITS.hang_blind_max_s)
    assert actions == []
    state, _ = watched(state, NOW + 61 + LIMITS.hang_blind_max_s)
    assert state.loss is not None and state.loss.finding.id == "engine.hung"
    assert state.loss.finding.says.startswith(
        "a canary is unanswered and no counter has moved for 361 s: the engine hangs"
    )


@pytest.mark.parametrize("answer", ["a canary", "a token", "the KV cache"])
def test_whatever_moves_clears_the_suspicion(answer: str) -> None:
    state, ticket = asked(serving.counted(head(), Counters(), NOW), NOW + 60)
    state, _ = serving.canary_back(state, CanaryBack(ticket, None, TIMEOUT), NOW + 120)
    state, ticket = asked(state, NOW + 130)
    if answer == "a canary":
        state, _ = serving.canary_back(state, CanaryBack(ticket, Proof(epoch=1, at=0)), NOW + 140)
    else:
        counters = Counters(movement=3) if answer == "a token" else Counters(cache=0.1)
        state = serving.counted(state, counters, NOW + 140)
    state, _ = watched(state, NOW + 141)
    assert (state.unanswered_since, state.doubt, state.loss) == (None, False, None)


def test_one_error_is_not_enough_and_two_are() -> None:
    state, ticket = asked(head(), NOW + 60)
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
    spins = Vitals(
        cpu_percent=100, processes=1, stopped="", compiling="", link_bytes_s=900, gpu=True, gpu_watts=22, gpu_percent=95
    )
    at = NOW + 505 + LIMITS.hang_max_s
    state = replace(state, canary_at=NOW + 520, vitals=spins, vitals_at=at - 5, peers=worker(spins, at - 1))
    state, _ = watched(state, at)
    assert state.loss is None, "idle counters rest"
    state, _ = watched(state, at + 1)
    assert state.loss is not None
    says = "1 request is waiting and no counter has moved for 91 s: the engine hangs; spark1: its GPU is 95 % busy at 22 W, a "
    assert state.loss.finding.says == says + "silent spin"
    assert "no canary was answered for 76 s" in state.loss.finding.evidence
    assert "hang: spark2: its GPU is 95 % busy at 22 W, a silent spin" in state.loss.finding.evidence


def test_a_sign_of_work_starts_the_clock_anew() -> None:
    """A look may fall between two steps: what was seen once counts from then on."""
    quiet = Vitals(
        cpu_percent=50, processes=1, stopped="", compiling="", link_bytes_s=900, gpu=True, gpu_watts=15, gpu_percent=0
    )
    state = serving.counted(head(), Counters(active=1), NOW)
    state = replace(state, canary_at=NOW + 20, peers=worker(quiet.model_copy(update={"compiling": "cicc"}), NOW + 200))
    state = serving.noticed(state, NOW + 201)
    assert state.worked_at == NOW + 200
    state = replace(state, peers=worker(quiet, NOW + 205), vitals=quiet, vitals_at=NOW + 205)
    state = serving.noticed(state, NOW + 206)
    signals = serving.signals(state, NOW + 211)
    assert (signals.still_s, signals.quiet_s, state.worked_at) == (211, 11, NOW + 200)


def test_a_long_prefill_is_told() -> None:
    state = head()
    for second in range(0, 240, 10):
        state = serving.counted(state, Counters(active=1, cache=second / 1000), NOW + second)
        state, _ = watched(replace(state, canary_at=NOW), NOW + second)
        assert (state.loss, state.doubt) == (None, False)
    assert serving.reason(state, NOW + 235).endswith(
        "busy: a long prefill, no token for 235 s, but the KV cache moves (23% used)"
    )


def test_silence_counts_only_when_nothing_was_answered_since() -> None:
    gone = NOW + 10
    silent = head(peers={1: Peer("unreachable", gone)}, canary_at=NOW)
    lost = serving.watch(silent, gone + LIMITS.link_loss_max_s + 1)
    assert lost is not None and lost[0].loss is not None and lost[0].loss.finding.id == "peer.unreachable"
    answered = replace(silent, proof=Proof(epoch=1, at=gone + 20))
    assert watched(answered, gone + LIMITS.link_loss_max_s + 1)[0].loss is None
    refused = replace(silent, peers={1: Peer("refused", gone)})
    assert watched(refused, gone + LIMITS.hang_max_s + 100)[0].loss is None
