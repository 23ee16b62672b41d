"""Refused, unreachable or rejected: what each means for an engine is different, so they must never be mixed up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from free_port import free_port
from peer_pair import Head, report, run, serving, speaking

from sparkd.peer.client import LinkClient, PeerRefused, PeerRejected, PeerUnreachable
from sparkd.peer.listener import bind
from sparkd.peer.wire import Ask


async def until_heard(client: LinkClient) -> None:
    """The neighbour table and a retried port need a moment; `run` limits it."""
    while True:
        try:
            await client.exchange(report(), 0, 0)
            return
        except (PeerRefused, PeerUnreachable):
            await asyncio.sleep(0.1)


def test_a_host_without_an_agent_refuses() -> None:
    async def test() -> None:
        async with speaking(free_port()) as client:
            with pytest.raises(PeerRefused):
                await client.exchange(report(), 0, 0)
            with pytest.raises(PeerRefused):
                await client.ask(Ask(verb="stop"))

    run(test())


@pytest.mark.parametrize("how", ["reset", "closed", "cut short"])
def test_an_agent_that_ends_during_an_exchange_refuses(how: str) -> None:
    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if how == "reset":
            linger = b"\1\0\0\0\0\0\0\0"
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        elif how == "cut short":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
            await writer.drain()
        writer.close()

    async def test() -> None:
        server = await asyncio.start_server(meet, "127.0.0.1", 0)
        async with server, speaking(server.sockets[0].getsockname()[1]) as client:
            for asking in (client.exchange(report(), 0, 0), client.ask(Ask(verb="stop"))):
                with pytest.raises(PeerRefused):
                    await asking

    run(test())


@pytest.mark.parametrize(
    "says",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n" * 5000,
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
    ],
)
def test_something_else_that_listens_there_is_rejected(says: bytes) -> None:
    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(says)
        with contextlib.suppress(OSError):
            await writer.drain()
            await reader.read()
        writer.close()

    async def test() -> None:
        server = await asyncio.start_server(meet, "127.0.0.1", 0)
        async with server, speaking(server.sockets[0].getsockname()[1]) as client:
            with pytest.raises(PeerRejected) as rejected:
                await client.exchange(report(), 0, 0)
            assert rejected.value.reason == "not-sparkd"

    run(test())


def test_an_agent_that_is_stuck_is_unreachable() -> None:
    """Its kernel takes the connection, nobody answers; the same is seen on a kept connection whose host lost power."""

    async def test() -> None:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            async with speaking(listening.getsockname()[1]) as client:
                with pytest.raises(PeerUnreachable):
                    await client.exchange(report(), 0, 0)

    run(test())


def test_an_address_that_does_not_exist_yet_can_be_listened_at() -> None:
    listening = bind("192.0.2.77", free_port(), ["192.0.2.78"])
    assert [each.getsockname()[0] for each in listening] == ["192.0.2.77"] * 2
    for each in listening:
        each.close()


def test_a_taken_port_is_tried_until_it_is_free() -> None:
    async def test() -> None:
        port = free_port()
        (taken,) = bind("127.0.0.1", port)
        async with serving(Head(), port=port), speaking(port) as client:
            taken.close()
            await until_heard(client)

    run(test())


# --- in a network namespace ---

FAR = "sparkd-t-far"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


@pytest.fixture
def far_host() -> Iterator[None]:
    """Another host: a namespace at 198.18.77.2, joined to ours (198.18.77.1) by a cable that can be pulled."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes a network namespace")
    here = f"spkt{os.getpid() % 10000}"
    subprocess.run(["ip", "netns", "delete", FAR], capture_output=True, timeout=10)
    try:
        ip("netns", "add", FAR)
        ip("link", "add", here, "type", "veth", "peer", "name", "link0", "netns", FAR)
        ip("address", "add", "198.18.77.1/24", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", FAR, "link", "set", "link0", "up")
        yield
    finally:
        subprocess.run(["ip", "link", "delete", here], capture_output=True, timeout=10)
        subprocess.run(["ip", "netns", "delete", FAR], capture_output=True, timeout=10)


def test_a_host_that_comes_goes_and_comes_back(far_host: None) -> None:
    """The far side serves before it has its address, then loses it, then has it again; its server is never restarted."""

    async def test() -> None:
        code = (
            "import asyncio, sys; sys.path.insert(0, sys.argv[1])\n"
            "from peer_pair import Head, serving\n"
            "async def main():\n"
            "    async with serving(Head(), address='198.18.77.2', port=7420):\n"
            "        print('up', flush=True); await asyncio.sleep(60)\n"
            "asyncio.run(main())\n"
        )
        here = str(Path(__file__).parent)
        far = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", FAR, sys.executable, "-c", code, here), stdout=asyncio.subprocess.PIPE
        )
        assert far.stdout is not None
        try:
            assert await far.stdout.readline() == b"up\n"
            async with speaking(7420, address="198.18.77.2") as client, speaking(7421, address="198.18.77.2") as none:
                with pytest.raises(PeerUnreachable):  # no such host
                    await client.exchange(report(), 0, 0)
                ip("-n", FAR, "address", "add", "198.18.77.2/24", "dev", "link0")
                await until_heard(client)
                with pytest.raises(PeerRefused):  # it lives, nobody listens on this port
                    await none.exchange(report(), 0, 0)
                ip("-n", FAR, "link", "set", "link0", "down")  # the kept connection is silently dead
                with pytest.raises(PeerUnreachable):
                    await client.exchange(report(), 1, 0.2)
                with pytest.raises(PeerUnreachable):
                    await none.ask(Ask(verb="stop"))
                ip("-n", FAR, "link", "set", "link0", "up")
                ip("-n", FAR, "address", "delete", "198.18.77.2/24", "dev", "link0")
                ip("-n", FAR, "address", "add", "198.18.77.2/24", "dev", "link0")
                await until_heard(client)
        finally:
            far.terminate()
            await far.wait()

    run(test())


def test_no_route_is_unreachable(far_host: None) -> None:
    async def test() -> None:
        ip("route", "add", "unreachable", "198.18.78.0/24")
        try:
            async with speaking(7420, address="198.18.78.2") as client:
                with pytest.raises(PeerUnreachable):
                    await client.exchange(report(), 0, 0)
        finally:
            ip("route", "delete", "unreachable", "198.18.78.0/24")

    run(test())
