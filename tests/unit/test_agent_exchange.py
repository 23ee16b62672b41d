"""What a worker makes of a head that does not answer: a kernel that still takes connections belongs to a living host."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from peer_pair import KEY

from sparkd.agent.exchange import WorkerExchange
from sparkd.control import node as control
from sparkd.control.state import Event, Me, Silent
from sparkd.model.cluster import Cluster, Limits, Link, Node
from sparkd.peer.keys import Keyring

NAMES = ("spark1", "spark2")


class Worker:
    """Of the agent what its exchange uses."""

    def __init__(self) -> None:
        self.me = Me(NAMES[1], 1, NAMES, "b" * 32, "0.1.0", Limits(exchange_s=0.1))
        self.state = control.begin(self.me)
        self.version = 0
        self.posted: asyncio.Queue[Event] = asyncio.Queue()

    def post(self, event: Event) -> None:
        self.posted.put_nowait(event)

    async def wait_changed(self, known: int, hold_s: float) -> int:
        await asyncio.sleep(hold_s)
        return known


async def first_word(port: int) -> Event:
    nodes = tuple(Node(name=name, link_address=f"127.0.78.{n}") for n, name in enumerate(NAMES, start=1))  # type: ignore[arg-type]
    agent = Worker()
    questions: Any = None  # nobody asks here
    exchange = WorkerExchange(agent, Cluster(nodes=nodes, link=Link(port=port)), Keyring((KEY,)), questions)  # type: ignore[arg-type]
    await exchange.start()
    try:
        return await asyncio.wait_for(agent.posted.get(), 20)
    finally:
        await exchange.stop()


@pytest.mark.parametrize("listens", [True, False])
def test_a_head_that_stands_still_is_no_lost_host(listens: bool) -> None:
    """SIGSTOP, or a loop that hangs: TCP connects and nothing answers. Its watchdog ends it; the engine serves on."""
    with socket.socket() as standing_still:
        standing_still.bind(("127.0.78.1", 0))
        if listens:
            standing_still.listen()
        event = asyncio.run(first_word(standing_still.getsockname()[1]))
    assert event == Silent(0, "refused")
