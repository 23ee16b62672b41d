"""What any node may ask any other: its doctor's findings and a measurement of the link, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
import time
import zlib

import pytest
from free_port import free_port
from peer_pair import HEAD, KEY, OTHER_KEY, WORKER, Head, Wire, report, run, send_raw, serving, speaking

from sparkd.model.errors import SparkdError
from sparkd.peer import questions, throughput, wire
from sparkd.peer.auth import Direction, Stamp, headers, new_nonce, stream_proof
from sparkd.peer.client import PeerRefused, PeerRejected, PeerUnreachable
from sparkd.peer.keys import Keyring
from sparkd.peer.questions import OlderError, Way
from sparkd.peer.wire import (
    BODY_MAX_BYTES,
    DIAGNOSIS_MAX_BYTES,
    PACKED_MAX_BYTES,
    STRANGER,
    DiagnoseRequest,
    Refusal,
    Verb,
)


def way(port: int, *, keys: tuple[bytes, ...] = (KEY,), peer: str = HEAD) -> Way:
    return Way(WORKER, "127.0.0.1", peer, "127.0.0.1", port, Keyring(keys))


# --- diagnose ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, BODY_MAX_BYTES, 2_000_000], ids=["small", "at the limit", "packed"])
def test_a_diagnosis_arrives_as_it_was_said(size: int) -> None:
    async def test() -> None:
        head = Head()
        head.diagnosis = json.dumps({"node": HEAD, "text": "a log line " * (size // 11)}).encode()
        async with serving(head) as port:
            assert await questions.diagnose(way(port)) == head.diagnosis
        assert head.diagnosed == [WORKER]

    run(test())


def test_a_diagnosis_is_for_those_with_the_key_alone() -> None:
    async def test() -> None:
        head = Head()
        async with serving(head) as port:
            with pytest.raises(PeerRejected) as rejected:
                await questions.diagnose(way(port, keys=(OTHER_KEY,)))
            assert rejected.value.reason == "wrong-key"
            assert STRANGER in await send_raw(
                port, b"POST /v1/diagnose HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
            )
            body = wire.encode(DiagnoseRequest())  # signed with the right key, in a session that was never opened
            stamp = Stamp(Direction.REQUEST, WORKER, HEAD, new_nonce(), 1, Verb.DIAGNOSE)
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers((KEY,), stamp, body).items())
            request = (
                f"POST /v1/diagnose HTTP/1.1\r\nhost: x\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body
            )
            assert b'"unknown-session"' in await send_raw(port, request)
        assert head.diagnosed == []

    run(test())


def test_a_recorded_question_is_not_answered_again() -> None:
    async def test() -> None:
        head = Head()
        async with serving(head) as port:
            relay = Wire(port)
            async with relay.relaying() as relayed:
                await questions.diagnose(way(relayed))
            told = [request for request in relay.requests if b"/v1/diagnose" in request]
            assert len(told) == 1
            assert b'"replayed"' in await send_raw(port, told[0])
        assert head.diagnosed == [WORKER]

    run(test())


def test_too_much_is_refused_where_it_is_said() -> None:
    async def test() -> None:
        head = Head()
        async with serving(head) as port:
            for content in (b"{" + b" " * DIAGNOSIS_MAX_BYTES, b"{" + os.urandom(PACKED_MAX_BYTES + BODY_MAX_BYTES)):
                head.diagnosis = content
                with pytest.raises(PeerRejected) as rejected:
                    await questions.diagnose(way(port))
                assert rejected.value.reason == "too-large"
            oversized = b"{" + b" " * BODY_MAX_BYTES + b"}"
            request = (
                b"POST /v1/diagnose HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(oversized) + oversized
            )
            assert STRANGER in await send_raw(port, request)

    run(test())


def test_what_is_unpacked_is_bounded() -> None:
    with pytest.raises(Refusal, match="unpacked"):
        wire.unpack(zlib.compress(b" " * 200_000_000, 9))  # 195 KB that would become 200 MB
    with pytest.raises(Refusal, match="broke off"):
        wire.unpack(zlib.compress(os.urandom(1000))[:-20])
    with pytest.raises(Refusal, match="neither"):
        wire.unpack(b"[1]")
    assert wire.unpack(wire.pack(b"{" + b" " * 100_000 + b"}")) == b"{" + b" " * 100_000 + b"}"


def test_an_asker_that_leaves_ends_its_question() -> None:
    class Slow(Head):
        ended = 0

        async def diagnose(self, peer: str) -> bytes:
            self.diagnosed.append(peer)
            try:
                await asyncio.sleep(3600)
            finally:
                self.ended += 1
            return b""

    async def test() -> None:
        head = Slow()
        async with serving(head) as port:
            asking = asyncio.create_task(questions.diagnose(way(port)))
            while not head.diagnosed:
                await asyncio.sleep(0.005)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            while not head.ended:
                await asyncio.sleep(0.005)

    run(test())


def test_a_doctor_that_hangs_is_cut_off_on_both_sides() -> None:
    class Hung(Head):
        async def diagnose(self, peer: str) -> bytes:
            await asyncio.sleep(3600)
            return b""

    async def test() -> None:
        async with serving(Hung(), diagnosed_max_s=0.2) as port:
            with pytest.raises(PeerRejected) as rejected:
                await questions.diagnose(way(port))
            assert rejected.value.reason == "timed-out"
        stuck = await asyncio.start_server(lambda *_: asyncio.sleep(3600), "127.0.0.1", 0)
        async with stuck:
            with pytest.raises(PeerUnreachable, match=r"did not answer within 0\.5 s"):
                await questions.diagnose(way(stuck.sockets[0].getsockname()[1]), answered_max_s=-2.5)

    run(test())


def test_a_diagnosis_does_not_wait_behind_a_held_poll_nor_disturb_it() -> None:
    async def test() -> None:
        head = Head()
        async with serving(head) as port, speaking(port) as client:
            polling = asyncio.create_task(client.exchange(report(), 1, 5))
            await head.until_held(1)
            for _ in range(10):  # each in a session of its own
                await questions.diagnose(way(port))
            assert not polling.done()
            await head.change()
            assert (await polling)[1] == 2

    run(test())


def test_an_older_sparkd_does_not_know_the_question() -> None:
    """What it answers to a verb that it does not have: unsigned, before anything was verified."""

    async def test() -> None:
        async def older(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            hello = await reader.readuntil(b"\r\n\r\n")
            assert hello.startswith(b"POST /v1/hello")
            body = Refusal(wire.Reason.MALFORMED, "there is no such verb").encode()
            writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(older, "127.0.0.1", 0)
        async with server:
            with pytest.raises(OlderError, match="its sparkd is older: spark1 cannot be asked"):
                await questions.diagnose(way(server.sockets[0].getsockname()[1]))
        with pytest.raises(PeerRefused):
            await questions.diagnose(way(free_port()))

    run(test())


# --- throughput --------------------------------------------------------------------------------------


def test_a_measurement_counts_what_was_received() -> None:
    async def test() -> None:
        head = Head()
        async with serving(head) as port:
            received = await questions.measure(way(port), streams=4, seconds=1.0)
        assert received.streams == 4
        assert 0.9 < received.seconds < 2.0
        assert received.total_bytes > 50_000_000
        assert received.gbps == pytest.approx(received.total_bytes * 8 / received.seconds / 1e9)
        assert threading.active_count() < 20

    run(test())


def test_a_key_may_be_rotated_between_the_two() -> None:
    async def test() -> None:
        head = Head()
        head.keys = (OTHER_KEY, KEY)
        async with serving(head, keys=(OTHER_KEY, KEY)) as port:
            assert (await questions.measure(way(port, keys=(KEY, OTHER_KEY)), streams=1, seconds=1.0)).total_bytes > 0

    run(test())


def test_streams_without_the_key_do_not_count() -> None:
    """The sender signs the streams with another key: whoever only saw the token on the wire is in no other place."""

    async def test() -> None:
        head = Head()
        head.keys = (OTHER_KEY,)
        async with serving(head) as port:
            with pytest.raises(SparkdError):
                await questions.measure(way(port), streams=2, seconds=1.0)

    run(test())


def test_a_measurement_that_is_refused_ends_at_once() -> None:
    class Refusing(Head):
        async def throughput(self, peer: str, request: wire.ThroughputRequest) -> wire.ThroughputAnswer:
            raise SparkdError("a measurement is under way")

    async def test() -> None:
        async with serving(Refusing()) as port:
            began = time.monotonic()
            with pytest.raises(PeerRejected, match="under way"):
                await questions.measure(way(port), streams=2, seconds=5.0)
            assert time.monotonic() - began < 1.0

    run(test())


def test_what_is_asked_for_is_bounded() -> None:
    async def test() -> None:
        head = Head()
        async with serving(head) as port:
            conversation = questions._conversation(way(port))
            for changed in ({"seconds": 60}, {"streams": 1000}, {"port": 0}, {"token": "x"}):
                asked = {"token": new_nonce(), "port": 9, "streams": 1, "seconds": 1.0} | changed
                request = wire.ThroughputRequest.model_construct(**asked)
                with pytest.raises(PeerRejected) as rejected:
                    await conversation.say(Verb.THROUGHPUT, request, wire.ThroughputAnswer, 1.0)
                assert rejected.value.reason == "malformed"
            await conversation.close()
        assert head.measured == []

    run(test())


def test_strangers_are_let_go_and_a_stream_counts_once() -> None:
    proofs = [stream_proof(KEY, HEAD, WORKER, "t" * 64, number) for number in range(2)]
    stop = threading.Event()
    with throughput.listening("127.0.0.1") as ear:
        port = ear.getsockname()[1]
        got: list[throughput.Received] = []

        def count() -> None:
            got.append(throughput.receive(ear, [{proof} for proof in proofs], peer="127.0.0.1", seconds=1.0, stop=stop))

        receiving = threading.Thread(target=count)
        receiving.start()
        hello = [b"GET / HTTP/1.1\r\nhost: localhost-and-more\r\n\r\n", bytes([0]) + proofs[1], bytes([9]) + proofs[0]]
        strangers = [socket.create_connection(("127.0.0.1", port), 2) for _ in hello]
        for stranger, said in zip(strangers, hello, strict=True):
            stranger.sendall(said)
        sent = throughput.send("127.0.0.1", "127.0.0.1", port, proofs, seconds=0.3, stop=stop)
        receiving.join(10)
        for stranger in strangers:
            stranger.close()
    assert got and got[0].streams == 2
    assert got[0].total_bytes == sent


def test_streams_from_elsewhere_cost_a_measurement_nothing() -> None:
    """Not even with the right proof, and not however many."""
    proof = stream_proof(KEY, HEAD, WORKER, "t" * 64, 0)
    stop, got = threading.Event(), []
    with throughput.listening("127.0.0.1") as ear:
        to = ear.getsockname()

        def count() -> None:
            got.append(throughput.receive(ear, [{proof}], peer="127.0.0.1", seconds=1.0, stop=stop))

        receiving = threading.Thread(target=count)
        receiving.start()
        for _ in range(throughput.STRANGERS_MAX + 4):
            with socket.create_connection(to, 2, ("127.0.0.3", 0)) as stranger, contextlib.suppress(OSError):
                stranger.sendall(bytes([0]) + proof)
                stranger.recv(1)  # until it is turned away: a full backlog would cost the next one a second
        sent = throughput.send("127.0.0.1", "127.0.0.1", to[1], [proof], seconds=0.3, stop=stop)
        receiving.join(10)
    assert got and got[0].total_bytes == sent > 0


def test_a_receiver_that_is_told_to_stop_stops() -> None:
    stop = threading.Event()
    with throughput.listening("127.0.0.1") as ear:
        threading.Timer(0.1, stop.set).start()
        began = time.monotonic()
        with pytest.raises(SparkdError, match="0 of 1 streams came"):
            throughput.receive(ear, [{b"x" * 32}], peer="127.0.0.1", seconds=5.0, stop=stop)
        assert time.monotonic() - began < 1.0


def test_an_asker_who_takes_no_connection_does_not_hold_the_sender() -> None:
    """All streams together have one limit for connecting, and the first that finds nobody ends the attempt."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        began = time.monotonic()
        with pytest.raises(SparkdError, match=r"no stream to|came about"):
            throughput.send(
                "127.0.0.1", "127.0.0.1", deaf.getsockname()[1], [b"x" * 32] * 16, seconds=1.0, stop=threading.Event()
            )
        assert time.monotonic() - began < throughput.CONNECT_MAX_S + 1.0


def test_a_link_address_that_is_not_here_is_said() -> None:
    with pytest.raises(SparkdError, match=r"cannot listen on 203\.0\.113\.1"), throughput.listening("203.0.113.1"):
        pass
