"""What a stranger, a broken peer or a local user may send: refused, and the daemon answers the next one as before."""

from __future__ import annotations

import asyncio
import json
import socket
import zlib
from pathlib import Path
from typing import Any

import pytest
from free_port import free_port
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkd.agent.asked import Clean, Events, Intent, Throughput, told
from sparkd.model.errors import UsageError
from sparkd.model.report import Report
from sparkd.peer.client import LinkClient, PeerError
from sparkd.peer.keys import Keyring
from sparkd.peer.wire import DIAGNOSIS_MAX_BYTES, ExchangeRequest, Refusal, decode, pack, unpack
from tests.unit.fuzzing import broken, examples, open_files, runs
from tests.unit.peer_pair import KEY, WORKER, Head, report, run, serving, speaking

REQUEST = (
    b"POST /v1/exchange HTTP/1.1\r\nhost: x\r\nsparkd-from: spark2\r\nsparkd-to: spark1\r\nsparkd-session: "
    + b"a" * 64
    + b"\r\nsparkd-sequence: 1\r\nsparkd-signature: "
    + b"b" * 64
    + b"\r\ncontent-length: 2\r\n\r\n{}"
)
CRUDE = (
    b"",
    b"\0" * 4000,
    b"GET / HTTP/9.9\r\n\r\n",
    REQUEST * 20,
    REQUEST.replace(b"content-length: 2", b"content-length: -2"),
    REQUEST.replace(b"content-length: 2", b"content-length: 2\r\ncontent-length: 3"),
    REQUEST.replace(b"content-length: 2", b"content-length: 2\r\ntransfer-encoding: chunked"),
    REQUEST.replace(b"content-length: 2", b"content-length: 99999999999999999999"),
    REQUEST[:-1],
    REQUEST.replace(b"content-length: 2\r\n\r\n{}", b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n"),
    b"POST /v1/" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"POST /v1/hello HTTP/1.1\r\n" + b"a: b\r\n" * 5000,
    b"\x16\x03\x01\x02\x00" * 99,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    REQUEST.replace(b"exchange", b"../../etc/passwd"),
    REQUEST.replace(b"1\r\n", b"\xd9\xa1\r\n"),
)


async def spoken(port: int, data: bytes, *, half_closed: bool) -> None:
    """Said by a stranger, who reads a little and goes."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        if half_closed and writer.can_write_eof():
            writer.write_eof()
        async with asyncio.timeout(0.2):
            await reader.read(4096)
    except (OSError, TimeoutError):
        pass
    finally:
        writer.close()


def test_strangers_change_nothing() -> None:
    async def test() -> None:
        head = Head()
        async with serving(head) as port, speaking(port) as worker:
            await worker.exchange(report(), 0, 0)
            files, tasks = open_files(), len(asyncio.all_tasks())
            for data in CRUDE:
                await spoken(port, data, half_closed=False)
                await spoken(port, data, half_closed=True)
            for chance in runs(40):
                await spoken(port, broken(REQUEST, chance), half_closed=chance.random() < 0.5)
            intent, _ = await worker.exchange(report(), 0, 0)
            assert intent is not None and len(head.reports) == 2
            await asyncio.sleep(0.3)
            assert open_files() <= files + 2 and len(asyncio.all_tasks()) <= tasks + 2

    run(test())


BODY = ExchangeRequest(report=report()).model_dump_json().encode()
BODIES = (
    b"[" * 30_000,
    b'{"report":' * 3000,
    BODY.replace(b'"epoch":1', b'"epoch":1' + b"0" * 40),
    BODY.replace(b'"epoch":1', b'"epoch":-1'),
    BODY.replace(b'"epoch":1', b'"epoch":NaN'),
    BODY.replace(b'"rank":1', b'"rank":-1'),
    BODY.replace(b'"rank":1', b'"rank":' + b"9" * 5000),
    BODY.replace(b'"reason":""', rb'"reason":"\ud800"'),
    BODY.replace(b'"hold_s":0.0', b'"hold_s":1e999'),
    b"null",
    b"\xff",
    b"",
    BODY.replace(b'"eta_s":null', b'"eta_s":NaN'),
)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:12]))
def test_an_authentic_body_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal):
        decode(body, ExchangeRequest)


def test_broken_authentic_bodies() -> None:
    for chance in runs(300):
        try:
            report = decode(broken(BODY, chance), ExchangeRequest).report
        except Refusal as refusal:
            assert len(refusal.encode()) < 60_000
            continue
        assert 0 <= report.epoch <= 10**15 and 0 <= report.rank <= 10**15
        report.model_dump_json()


def test_what_a_peer_says_obeys_no_terminal_and_holds_no_secret() -> None:
    said = report(reason="\x1b]0;owned\x07 --api-key S3cr3tValue99 \udcff").reason
    assert said == "\\x1b]0;owned\\x07 --api-key [redacted] \\xff"
    assert Report.model_validate_json(report(reason=said).model_dump_json()).reason == said


def test_a_bomb_is_not_unpacked() -> None:
    with pytest.raises(Refusal, match="more than"):
        unpack(zlib.compress(b"\0" * (DIAGNOSIS_MAX_BYTES * 40), 9))
    whole = pack(b'{"a": "' + b"x" * 100_000 + b'"}')
    for chance in runs(100):
        try:
            assert len(unpack(broken(whole, chance))) <= DIAGNOSIS_MAX_BYTES
        except Refusal:
            continue


ANSWERS = (
    b"",
    b"\0" * 5000,
    b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 2_000_000,
    b"HTTP/1.1 500 x\r\n\r\n" + b"[" * 60_000,
    b"HTTP/1.1 401 x\r\n\r\n" + b'{"reason": "unknown-session", "says": "\\u001b[2J"}',
    b"HTTP/1.1 302 x\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n" + b"\x1f\x8b" * 99,
    b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000,
)


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: repr(answer[:24] + answer[-6:]))
def test_a_hostile_head_gives_the_worker_an_error_of_a_known_kind(answer: bytes) -> None:
    async def test() -> None:
        async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(4096)
            writer.write(answer)
            writer.close()

        port = free_port()
        async with await asyncio.start_server(meet, "127.0.0.1", port):
            worker = LinkClient(WORKER, "spark1", "127.0.0.1", port, Keyring((KEY,)))
            with pytest.raises(PeerError) as raised:
                await worker.exchange(report(), 0, 0)
            assert len(str(raised.value)) < 1000 and str(raised.value).isprintable()
            await worker.close()

    run(test())


# --- the local socket -----------------------------------------------------------------------------

anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
requests = st.dictionaries(
    st.sampled_from(["last", "follow", "profile", "dry_run", "only", "node", "seconds", "x"]), anything
)


@given(requests)
@settings(max_examples=examples(300))
def test_arguments_of_any_type_are_taken_or_refused_with_64(request: dict[str, Any]) -> None:
    for kind in (Events, Intent, Clean, Throughput):
        try:
            asked = told({"verb": "x", **request}, kind)
        except UsageError as error:
            assert error.exit_code == 64 and len(str(error)) < 2000
        else:
            assert asked.model_dump_json()


@pytest.mark.parametrize(
    ("kind", "request_"),
    [
        (Events, {"last": "many"}),
        (Events, {"last": -1}),
        (Events, {"last": 1.5}),
        (Events, {"follow": "false"}),
        (Events, {"last": 10**400}),
        (Intent, {"profile": ["a"]}),
        (Intent, {"profile": {"a": 1}}),
        (Intent, {"profile": 5}),
        (Clean, {"only": 5}),
        (Clean, {"only": [1]}),
        (Clean, {"dry_run": "false"}),
        (Throughput, {"seconds": 10**400}),
        (Throughput, {"seconds": float("nan")}),
        (Throughput, {"node": 1}),
    ],
)
def test_arguments_that_ended_in_a_traceback(kind: Any, request_: dict[str, Any]) -> None:
    """`clean` with dry_run "false" did clean: the text is true to Python."""
    with pytest.raises(UsageError):
        told({"verb": "x", **request_}, kind)


LINES = (
    b"\n",
    b"{}\n",
    b"null\n",
    b"[" * 20_000 + b"\n",
    b"\xff\n",
    b"x" * 200_000 + b"\n",
    b'{"verb": 5}\n',
    b'{"verb": "nope\\ud800"}\n',
    b"9" * 5000 + b"\n",
    b'{"verb": "status"',
    b'{"verb": "status", "verb": "nope"}\n',
    b"\0" * 100 + b"\n",
)


def test_the_local_socket_survives_what_it_is_told(tmp_path: Path) -> None:
    from tests.unit.test_socket_control import serve

    def talk(path: Path, line: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(15)
            connection.connect(str(path))
            try:
                connection.sendall(line)
                connection.shutdown(socket.SHUT_WR)
                return connection.makefile("rb").readline()
            except OSError:
                return b""

    path = tmp_path / "s"

    def test(_: object) -> None:
        whole = json.dumps({"verb": "status"}).encode() + b"\n"
        for line in [*LINES, *(broken(whole, chance) for chance in runs(60))]:
            answer = talk(path, line)
            if answer and b'"error"' in answer:
                assert json.loads(answer)["error"]["exit_code"] in (64, 2)
        assert b"spark1" in talk(path, whole)

    serve(path, test)
