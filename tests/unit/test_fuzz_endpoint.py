"""A hostile server in vLLM's place: an answer or a finding, within the limit, whatever it sends and however slowly."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkd.engine import proof
from sparkd.engine.endpoint import Endpoint, sums
from sparkd.engine.metrics import parse_counters
from sparkd.model.finding import Finding
from tests.unit.fuzzing import DATA, broken, examples, resident_mib, runs

MAX_S = 1.0


@contextmanager
def server(*parts: bytes, endless: bytes = b"", pause_s: float = 0.0) -> Iterator[str]:
    """Says `parts` to whoever connects, then `endless` again and again, waiting `pause_s` before each."""
    stop = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(5)
                connection.recv(65536)
                for part in parts:
                    stop.wait(pause_s)
                    connection.sendall(part)
                while endless and not stop.is_set():
                    stop.wait(pause_s)
                    connection.sendall(endless)
            except OSError:
                return

    def accept() -> None:
        while not stop.is_set():
            try:
                connection, _ = ear.accept()
            except OSError:
                continue
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as ear:
        ear.settimeout(0.2)
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{ear.getsockname()[1]}"
        finally:
            stop.set()
            accepting.join(5)


def head(length: int | None = None, more: str = "", status: str = "200 OK") -> bytes:
    size = "" if length is None else f"content-length: {length}\r\n"
    return f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{size}{more}\r\n".encode()


def ask_everything(url: str) -> None:
    endpoint = Endpoint(url, "tiny", api_key="S3cr3tValue99")
    for answer in (
        endpoint.canary(MAX_S),
        endpoint.prove(reasoning=True, tools=True, max_s=MAX_S),
        endpoint.listed(MAX_S),
    ):
        if isinstance(answer, Finding):
            assert "S3cr3tValue99" not in answer.model_dump_json()
    endpoint.health(MAX_S)
    endpoint.counters(MAX_S)
    endpoint.metrics(MAX_S)
    endpoint.status("GET", "/v1/models", MAX_S)
    endpoint.close()


BOMB = gzip.compress(b"\0" * 50_000_000)
HOSTILE = {
    "nothing": ((b"",), b"", 0.0),
    "garbage": ((b"\x00\xff" * 500,), b"", 0.0),
    "no end of headers": ((b"HTTP/1.1 200 OK\r\n",), b"x-a: b\r\n", 0.0),
    "a byte of a header now and then": ((b"HTTP/1.1 200 OK\r\n",), b"x", 0.1),
    "a byte of a body now and then": ((head(10_000_000),), b" ", 0.1),
    "an endless body": ((head(),), b" " * 65536, 0.0),
    "an endless chunk": ((head(None, "transfer-encoding: chunked\r\n"), b"ffffffff\r\n"), b" " * 65536, 0.0),
    "less than was promised": ((head(100), b"{}"), b"", 0.0),
    "a compressed bomb": ((head(len(BOMB), "content-encoding: gzip\r\n"), BOMB), b"", 0.0),
    "a codec that is none of text": (
        (b"HTTP/1.1 500 no\r\ncontent-type: text/plain; charset=zlib\r\n\r\nabc",),
        b"",
        0.0,
    ),
    "elsewhere": ((head(0, "location: http://127.0.0.1:1/\r\n", "302 Found"),), b"", 0.0),
    "nested": ((head(), b"[" * 100_000), b"", 0.0),
    "a body of digits": ((head(), b"9" * 100_000), b"", 0.0),
    "halves of characters": (
        (head(), rb'{"choices":[{"message":{"content":"\ud800"}}],"data":[{"id":"\udfff"}]}'),
        b"",
        0.0,
    ),
    "early": ((b"HTTP/1.1 100 Continue\r\n\r\n" * 50, head(2), b"{}"), b"", 0.0),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_every_question_has_an_end(name: str) -> None:
    parts, endless, pause_s = HOSTILE[name]
    before = resident_mib()
    with server(*parts, endless=endless, pause_s=pause_s) as url:
        ask_everything(url)
    assert resident_mib() - before < 200


def test_a_redirect_is_not_followed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.3)
        to = f"location: http://127.0.0.1:{other.getsockname()[1]}/v1/models\r\n"
        with server(head(0, to, "307 Temporary Redirect")) as url:
            ask_everything(url)
        with pytest.raises(TimeoutError):
            other.accept()


BODIES = [
    path.read_bytes().partition(b"\n\n")[2] or path.read_bytes() for path in sorted((DATA / "field" / "http").glob("*"))
]
METRICS = [path.read_bytes() for path in sorted((DATA / "field").glob("metrics*.txt"))]
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "tool_calls", "function", "name", "arguments", "reasoning", "id"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@given(json_values, json_values)
@settings(max_examples=examples(150))
def test_any_json_is_an_answer_or_a_finding(value: object, call: object) -> None:
    for raw in (value, {"choices": [{"message": {"tool_calls": [call], "content": value}}]}):
        answer = proof.parse_answer(raw)
        for found in (proof.judge_tool_call(answer), proof.no_content(answer), proof.no_reasoning(answer)):
            if isinstance(found, Finding):
                found.model_dump_json()
    proof.http_error("/x", 500, json.dumps(value, default=str))


def test_broken_bodies_and_metrics() -> None:
    assert BODIES and METRICS
    for chance in runs(150):
        text = broken(chance.choice(BODIES), chance).decode("utf-8", "replace")
        proof.http_error("/v1/models", 400, text).model_dump_json()
        text = broken(
            chance.choice(METRICS), chance, (b"NaN", b"+Inf", b"-Inf", b"1e999", b"{", b"}", b" ", b"\n", b"-5")
        ).decode("utf-8", "replace")
        counters = parse_counters(text)
        assert counters is None or min(counters.running, counters.waiting, counters.generation_tokens) >= 0
        json.dumps(sums(text), allow_nan=False)


def test_series_without_an_end_are_not_kept() -> None:
    assert len(sums("".join(f"a{number} 1\n" for number in range(50_000)))) <= 5000
