"""Signatures and sessions, each alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkd.peer.auth import (
    OFFERS_MAX_PER_PEER,
    PEERS_MAX,
    SESSIONS_MAX_PER_PEER,
    Direction,
    Sessions,
    Stamp,
    proven,
    read_request,
    session_id,
    sign,
)
from sparkd.peer.wire import Reason, Refusal, Verb

KEY = b"k" * 32
STAMP = Stamp(Direction.REQUEST, "spark2", "spark1", "a" * 64, 7, Verb.EXCHANGE)


def test_a_signature_holds_for_nothing_else() -> None:
    signature = sign(KEY, STAMP, b"body")
    assert proven((KEY,), STAMP, b"body", [signature]) == (KEY,)
    assert proven((b"other" * 8, KEY), STAMP, b"body", [signature]) == (KEY,)
    others = [
        Stamp(Direction.ANSWER, "spark2", "spark1", "a" * 64, 7, Verb.EXCHANGE),
        Stamp(Direction.REQUEST, "spark3", "spark1", "a" * 64, 7, Verb.EXCHANGE),
        Stamp(Direction.REQUEST, "spark2", "spark3", "a" * 64, 7, Verb.EXCHANGE),
        Stamp(Direction.REQUEST, "spark2", "spark1", "b" * 64, 7, Verb.EXCHANGE),
        Stamp(Direction.REQUEST, "spark2", "spark1", "a" * 64, 8, Verb.EXCHANGE),
        Stamp(Direction.REQUEST, "spark2", "spark1", "a" * 64, 7, Verb.ASK),
        STAMP.back(Direction.ANSWER),
        STAMP.back(Direction.REFUSAL),
    ]
    assert not any(proven((KEY,), other, b"body", [signature]) for other in others)
    assert not proven((KEY,), STAMP, b"bodY", [signature])
    assert not proven((b"other" * 8,), STAMP, b"body", [signature])
    assert not proven((), STAMP, b"body", [signature])
    assert not proven((KEY,), STAMP, b"body", ["é" * 64])


@given(st.tuples(st.text(), st.text(), st.binary()), st.tuples(st.text(), st.text(), st.binary()))
def test_no_two_messages_share_a_signature(one: tuple[str, str, bytes], two: tuple[str, str, bytes]) -> None:
    """Parts cannot be shifted into their neighbours: ("ab", "c") is not ("a", "bc")."""

    def signature(sender: str, receiver: str, body: bytes) -> str:
        return sign(KEY, Stamp(Direction.REQUEST, sender, receiver, "s", 1, Verb.ASK), body)

    assert (signature(*one) == signature(*two)) == (one == two)


def test_a_session_is_both_nonces() -> None:
    assert len({session_id("a", "b"), session_id("b", "a"), session_id("ab", ""), session_id("a", "c")}) == 4


def refusal(sessions: Sessions, peer: str, session: str, sequence: int) -> Reason:
    with pytest.raises(Refusal) as refused:
        sessions.accept(peer, session, sequence)
    return refused.value.reason


def test_a_sequence_only_grows() -> None:
    sessions = Sessions()
    sessions.offer("spark2", "n", "s")
    assert refusal(sessions, "spark2", "s", 0) is Reason.REPLAYED
    sessions.accept("spark2", "s", 1)
    sessions.accept("spark2", "s", 5)
    assert refusal(sessions, "spark2", "s", 5) is Reason.REPLAYED
    assert refusal(sessions, "spark2", "s", 3) is Reason.REPLAYED
    sessions.accept("spark2", "s", 6)


def test_a_session_belongs_to_one_peer() -> None:
    sessions = Sessions()
    sessions.offer("spark2", "n", "s")
    assert refusal(sessions, "spark3", "s", 1) is Reason.UNKNOWN_SESSION


def test_replayed_hellos_never_push_out_a_session_in_use() -> None:
    sessions = Sessions()
    sessions.offer("spark2", "n", "used")
    sessions.accept("spark2", "used", 1)
    for number in range(1000):
        sessions.offer("spark2", f"n{number}", f"offered {number}")
    sessions.accept("spark2", "used", 2)
    assert len(sessions) == OFFERS_MAX_PER_PEER + 1


def test_sessions_are_bounded_and_the_newest_stay() -> None:
    sessions = Sessions()
    for number in range(10):
        sessions.offer("spark2", f"n{number}", f"s{number}")
        sessions.accept("spark2", f"s{number}", 1)
    assert refusal(sessions, "spark2", "s5", 2) is Reason.UNKNOWN_SESSION
    sessions.accept("spark2", "s6", 2)
    for number in range(200):
        sessions.offer(f"node{number}", "n", "s")
        sessions.accept(f"node{number}", "s", 1)
    assert len(sessions) <= PEERS_MAX * (SESSIONS_MAX_PER_PEER + OFFERS_MAX_PER_PEER)


@given(st.dictionaries(st.sampled_from(["sparkd-from", "sparkd-to", "sparkd-session", "sparkd-sequence"]), st.text()))
def test_headers_are_taken_only_as_sparkd_writes_them(found: dict[str, str]) -> None:
    with pytest.raises(Refusal) as refused:
        read_request(found, Verb.EXCHANGE)
    assert refused.value.reason is Reason.MALFORMED
