"""Messages: what is taken, what is ignored, what is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peer_pair import report
from pydantic import ValidationError

from sparkd.model.finding import Cure, bad
from sparkd.peer.wire import (
    BODY_MAX_BYTES,
    PROTOCOL,
    Ask,
    AskRequest,
    ExchangeRequest,
    Message,
    Reason,
    Refusal,
    decode,
    encode,
)


def reason_for(body: bytes, kind: type[Message] = ExchangeRequest) -> Reason:
    with pytest.raises(Refusal) as refused:
        decode(body, kind)
    return refused.value.reason


def test_a_message_comes_back_as_it_was() -> None:
    message = ExchangeRequest(report=report(), known=3, hold_s=1)
    assert decode(encode(message), ExchangeRequest) == message


def test_what_a_newer_version_adds_is_ignored_at_every_depth() -> None:
    blocked = bad("x.y", "says", cure=Cure.PERSON)
    message = ExchangeRequest(report=report().model_copy(update={"blocked": blocked}))
    told = json.loads(encode(message))
    told["new"] = told["report"]["new"] = told["report"]["progress"]["new"] = told["report"]["blocked"]["new"] = [1]
    told["protocol"] = PROTOCOL + 1
    assert decode(json.dumps(told).encode(), ExchangeRequest).report == message.report


@pytest.mark.parametrize("protocol", [PROTOCOL - 2, PROTOCOL + 2, 10**9])
def test_a_protocol_too_far_away_is_refused_before_anything_else(protocol: int) -> None:
    assert reason_for(json.dumps({"protocol": protocol, "report": "another shape"}).encode()) is Reason.PROTOCOL


@pytest.mark.parametrize("hold_s", ["NaN", "-1", "5.1", "1e400"])
def test_a_hold_is_bounded(hold_s: str) -> None:
    body = b'{"protocol":1,"report":%s,"hold_s":%s}' % (report().model_dump_json().encode(), hold_s.encode())
    assert reason_for(body) is Reason.MALFORMED


@pytest.mark.parametrize(
    "ask",
    [
        {"verb": "clean"},
        {"verb": "start; reboot"},
        {"verb": "start", "profile": "../../etc/shadow"},
        {"verb": "start", "profile": "a\n"},
        {"verb": "start", "profile": ""},
        {"profile": "latency"},
    ],
)
def test_only_the_closed_set_of_asks_exists(ask: dict[str, str]) -> None:
    assert reason_for(json.dumps({"protocol": 1, "ask": ask}).encode(), AskRequest) is Reason.MALFORMED
    with pytest.raises(ValidationError):
        Ask.model_validate(ask)


def test_a_message_too_large_for_the_peer_is_not_sent() -> None:
    with pytest.raises(Refusal) as refused:
        encode(ExchangeRequest(report=report(reason="x" * BODY_MAX_BYTES)))
    assert refused.value.reason is Reason.TOO_LARGE


@given(st.binary() | st.text().map(str.encode) | st.sampled_from([b"[" * 60000, b'{"a":' * 10000, b"null", b"[]"]))
def test_any_other_bytes_are_malformed(body: bytes) -> None:
    assert reason_for(body) is Reason.MALFORMED
    assert Refusal.decode(body) is None


def test_a_refusal_is_shown_without_control_characters() -> None:
    told = json.dumps({"reason": "refused", "says": "\x1b[2J gone\n" + "x" * 1000}).encode()
    refusal = Refusal.decode(told)
    assert refusal is not None
    assert refusal.says.startswith("[2J gonexxx")
    assert len(refusal.says) == 300
