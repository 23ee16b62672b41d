"""A real server and what may speak with it, over real sockets on loopback addresses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from free_port import free_port

from sparkd.model.report import Gate, Intent, Phase, Report
from sparkd.peer import questions
from sparkd.peer.client import LinkClient
from sparkd.peer.keys import Keyring
from sparkd.peer.questions import Way
from sparkd.peer.server import LinkServer
from sparkd.peer.wire import Answer, Ask, ThroughputAnswer, ThroughputRequest

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
HEAD, WORKER = "spark1", "spark2"
LIMIT_S = 30.0


def run(test: Coroutine[Any, Any, None]) -> None:
    """The test in a loop of its own, with a limit."""
    asyncio.run(asyncio.wait_for(test, LIMIT_S))


def report(node: str = WORKER, epoch: int = 1, reason: str = "") -> Report:
    return Report(node=node, rank=1, version="1", boot_id="b", epoch=epoch, phase=Phase.IDLE, reason=reason)


class Head:
    """A handler that holds polls as the agent does, and notes what reached it."""

    def __init__(self) -> None:
        self.version = 1
        self.reports: list[tuple[str, Report]] = []
        self.asks: list[tuple[str, Ask]] = []
        self.diagnosed: list[str] = []
        self.diagnosis = b'{"node":"spark1"}'
        self.measured: list[tuple[str, ThroughputRequest]] = []
        self.keys: tuple[bytes, ...] = (KEY,)
        self.held = self.cancelled = 0
        self.moved = asyncio.Condition()

    async def exchange(self, peer: str, report: Report, known: int, hold_s: float) -> tuple[Intent, int]:
        self.reports.append((peer, report))
        self.held += 1
        try:
            async with self.moved:
                self.moved.notify_all()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.moved.wait_for(lambda: self.version != known), hold_s)
            return Intent(run=True, epoch=self.version, gate=Gate.CLOSED), self.version
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.held -= 1

    async def ask(self, peer: str, ask: Ask) -> Answer:
        self.asks.append((peer, ask))
        return Answer(says=f"{ask.verb} for {peer}")

    async def diagnose(self, peer: str) -> bytes:
        self.diagnosed.append(peer)
        return self.diagnosis

    async def throughput(self, peer: str, request: ThroughputRequest) -> ThroughputAnswer:
        self.measured.append((peer, request))
        way = Way(HEAD, "127.0.0.1", peer, "127.0.0.1", 1, Keyring(self.keys))
        return await questions.send(way, request)

    async def change(self) -> None:
        async with self.moved:
            self.version += 1
            self.moved.notify_all()

    async def until_held(self, count: int) -> None:
        while self.held != count:
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(
    handler: Any,
    *,
    address: str = "127.0.0.1",
    port: int = 0,
    keys: tuple[bytes, ...] = (KEY,),
    peers: tuple[str, ...] = ("127.0.0.1",),
    **limits: float,
) -> AsyncIterator[int]:
    """A server of the head; gives its port."""
    port = port or free_port(address)
    server = LinkServer(HEAD, address, port, Keyring(keys), handler, peers=peers, **limits)
    await server.start()
    try:
        yield port
    finally:
        await server.stop()


@asynccontextmanager
async def speaking(
    port: int, *, node: str = WORKER, peer: str = HEAD, address: str = "127.0.0.1", keys: tuple[bytes, ...] = (KEY,)
) -> AsyncIterator[LinkClient]:
    client = LinkClient(node, peer, address, port, Keyring(keys))
    try:
        yield client
    finally:
        await client.close()


class Wire:
    """A relay between client and server that keeps every byte: what someone on the link could have recorded."""

    def __init__(self, to: int) -> None:
        self._to = to
        self.requests: list[bytes] = []
        self.answers: list[bytes] = []
        self.connections: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def relaying(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for writer in list(self.connections):
                writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self.connections |= {writer, far_writer}
        await asyncio.gather(
            _copy(reader, far_writer, self.requests), _copy(far_reader, writer, self.answers), return_exceptions=True
        )


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: list[bytes]) -> None:
    while data := await reader.read(65536):
        kept.append(data)
        writer.write(data)
        await writer.drain()
    writer.close()


async def send_raw(port: int, data: bytes, *, half_close: bool = False) -> bytes:
    """What the server says to exactly these bytes, until it closes or has said one whole answer with a body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        writer.write(data)
        if half_close:
            writer.write_eof()
        while not (b"\r\n\r\n" in got and got.rstrip().endswith(b"}")):
            part = await asyncio.wait_for(reader.read(65536), 5)
            if not part:
                break
            got += part
    except ConnectionError:
        pass  # an answer that closes while we still send
    finally:
        writer.close()
    return got
