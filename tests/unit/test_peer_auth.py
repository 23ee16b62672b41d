"""Keys, signatures and sessions, each alone."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkd.model.errors import ConfigError
from sparkd.peer.auth import (
    PEERS_MAX,
    SESSIONS_MAX_PER_PEER,
    Direction,
    Sessions,
    Stamp,
    load_keys,
    new_key,
    read_request,
    session_id,
    sign,
    verifies,
)
from sparkd.peer.wire import Reason, Refusal, Verb

KEY = b"k" * 32
STAMP = Stamp(Direction.REQUEST, "spark2", "spark1", "a" * 64, 7, Verb.EXCHANGE)


def key_file(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "cluster.key"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_new_key_can_be_loaded(tmp_path: Path) -> None:
    key = new_key()
    assert load_keys(key_file(tmp_path, key + "\n")) == (bytes.fromhex(key),)
    assert key != new_key()


def test_two_keys_keep_their_order_and_comments_are_left_out(tmp_path: Path) -> None:
    path = key_file(tmp_path, f"# new since Monday\n{'ab' * 16}\n\n{'CD' * 32}\n")
    assert load_keys(path) == (b"\xab" * 16, b"\xcd" * 32)


@pytest.mark.parametrize(
    ("text", "says", "line"),
    [
        ("", "no key", ""),
        ("# nothing\n", "no key", ""),
        ("ab" * 15, "too short", ":1"),
        ("\n" + "xy" * 16, "hexadecimal", ":2"),
        ("a" * 33, "even number", ":1"),
        (("ab" * 16 + "\n") * 3, "3 keys", ""),
        ("é" * 40, "hexadecimal", ""),
    ],
)
def test_a_bad_key_file_says_where_and_shows_nothing_of_it(tmp_path: Path, text: str, says: str, line: str) -> None:
    path = key_file(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as error:
        load_keys(path)
    assert error.value.where == f"{path}{line}"
    assert "openssl rand" in error.value.hint
    assert "abab" not in str(error.value) + error.value.hint


@pytest.mark.parametrize("bit", [stat.S_IRGRP, stat.S_IROTH, stat.S_IWOTH])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, bit: int) -> None:
    with pytest.raises(ConfigError, match="others") as error:
        load_keys(key_file(tmp_path, new_key(), 0o600 | bit))
    assert "chmod 0600" in error.value.hint


def test_a_missing_key_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as error:
        load_keys(tmp_path / "none")
    assert "openssl rand -hex 32" in error.value.hint
    with pytest.raises(ConfigError):
        load_keys(tmp_path)


def test_a_signature_holds_for_nothing_else() -> None:
    signature = sign(KEY, STAMP, b"body")
    assert verifies((KEY,), STAMP, b"body", signature)
    assert verifies((b"other" * 8, KEY), STAMP, b"body", signature)
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
    assert not any(verifies((KEY,), other, b"body", signature) for other in others)
    assert not verifies((KEY,), STAMP, b"bodY", signature)
    assert not verifies((b"other" * 8,), STAMP, b"body", signature)
    assert not verifies((), STAMP, b"body", signature)
    assert not verifies((KEY,), STAMP, b"body", "é" * 64)


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
    sessions.offer("spark2", "s")
    assert refusal(sessions, "spark2", "s", 0) is Reason.REPLAYED
    sessions.accept("spark2", "s", 1)
    sessions.accept("spark2", "s", 5)
    assert refusal(sessions, "spark2", "s", 5) is Reason.REPLAYED
    assert refusal(sessions, "spark2", "s", 3) is Reason.REPLAYED
    sessions.accept("spark2", "s", 6)


def test_a_session_belongs_to_one_peer() -> None:
    sessions = Sessions()
    sessions.offer("spark2", "s")
    assert refusal(sessions, "spark3", "s", 1) is Reason.UNKNOWN_SESSION


def test_replayed_hellos_never_push_out_a_session_in_use() -> None:
    sessions = Sessions()
    sessions.offer("spark2", "used")
    sessions.accept("spark2", "used", 1)
    for number in range(1000):
        sessions.offer("spark2", f"offered {number}")
    sessions.accept("spark2", "used", 2)
    assert len(sessions) == SESSIONS_MAX_PER_PEER + 1


def test_sessions_are_bounded_and_the_newest_stay() -> None:
    sessions = Sessions()
    for number in range(10):
        sessions.offer("spark2", f"s{number}")
        sessions.accept("spark2", f"s{number}", 1)
    assert refusal(sessions, "spark2", "s5", 2) is Reason.UNKNOWN_SESSION
    sessions.accept("spark2", "s6", 2)
    for number in range(200):
        sessions.offer(f"node{number}", "s")
        sessions.accept(f"node{number}", "s", 1)
    assert len(sessions) <= PEERS_MAX * SESSIONS_MAX_PER_PEER * 2


@given(st.dictionaries(st.sampled_from(["sparkd-from", "sparkd-to", "sparkd-session", "sparkd-sequence"]), st.text()))
def test_headers_are_taken_only_as_sparkd_writes_them(found: dict[str, str]) -> None:
    with pytest.raises(Refusal) as refused:
        read_request(found, Verb.EXCHANGE)
    assert refused.value.reason is Reason.MALFORMED
