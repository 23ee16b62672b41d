"""Nodes ask each other, through the daemons' own parts: real servers on loopback addresses, real processes as doctors."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from free_port import free_port
from peer_pair import KEY, report

from sparkd.agent.exchange import HeadExchange, Listening, WorkerExchange
from sparkd.agent.ourselves import Ourselves
from sparkd.agent.questions import Questions
from sparkd.control import node as control
from sparkd.control.state import Me, Peer
from sparkd.host.clock import monotonic
from sparkd.model.cluster import Cluster, Limits, Link, Node
from sparkd.model.errors import SparkdError, UnreachableError, UsageError
from sparkd.peer.client import LinkClient, PeerRejected
from sparkd.peer.keys import Keyring
from sparkd.peer.questions import OlderError
from sparkd.peer.wire import Ask

NAMES = ("spark1", "spark2", "spark3")
LIMIT_S = 30.0
DOCTOR = (
    "import json, os; print(json.dumps({'nodes': [{'node': os.environ['SPARKD_NODE'], 'findings': []}]}, indent=2))"
)


class Daemon:
    """Of the agent what its exchange and questions use."""

    def __init__(self, rank: int) -> None:
        self.me = Me(NAMES[rank], rank, NAMES, "b" * 32, "0.1.0", Limits())
        self.state = control.begin(self.me)
        self.notes: list[str] = []

    def note(self, id: str, says: str, *, alarm: bool = False) -> None:
        self.notes.append(says)


def cluster(port: int) -> Cluster:
    nodes = tuple(Node(name=name, link_address=f"127.0.77.{n}") for n, name in enumerate(NAMES, start=1))  # type: ignore[arg-type]
    return Cluster(nodes=nodes, link=Link(port=port))


class Pair:
    """A head and a worker that listen; the third node of the cluster is away."""

    def __init__(self, directory: Path, doctors: tuple[str, str]) -> None:
        self.cluster = cluster(free_port("127.0.77.1"))
        self.daemons = [Daemon(0), Daemon(1)]
        self.questions: list[Questions] = []
        self.exchanges: list[Listening] = []
        for daemon, doctor in zip(self.daemons, doctors, strict=True):
            file = directory / f"{daemon.me.node}.py"
            file.write_text(doctor)
            ourselves = Ourselves(directory / "sparkd.yaml", daemon.me.node, program=(sys.executable, str(file)))
            agent: Any = daemon
            asking = Questions(agent, self.cluster, Keyring((KEY,)), ourselves)
            self.questions.append(asking)
            kind = HeadExchange if daemon.me.is_head else WorkerExchange
            self.exchanges.append(kind(agent, self.cluster, Keyring((KEY,)), asking))


@asynccontextmanager
async def pair(directory: Path, head: str = DOCTOR, worker: str = DOCTOR) -> AsyncIterator[Pair]:
    """Only their ears: what they tell each other once a second is tried elsewhere."""
    both = Pair(directory, (head, worker))
    for exchange in both.exchanges:
        await exchange._server.start()
    try:
        yield both
    finally:
        for exchange in both.exchanges:
            await exchange._server.stop()
            if isinstance(exchange, WorkerExchange):
                await exchange._client.close()


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test, LIMIT_S))


@pytest.mark.parametrize(("asker", "asked"), [(0, "spark2"), (1, "spark1")])
def test_any_node_asks_any_other(tmp_path: Path, asker: int, asked: str) -> None:
    async def test() -> None:
        async with pair(tmp_path) as both:
            answers = {name: found async for name, found in both.questions[asker].diagnoses()}
            assert answers.keys() == {"spark1", "spark2", "spark3"} - {NAMES[asker]}
            found = answers[asked]
            assert isinstance(found, bytes)
            assert json.loads(found) == {"node": asked, "findings": []}
            away = answers["spark3"]
            assert isinstance(away, UnreachableError)
            assert away.message == "the host of spark3 lives, its sparkd does not answer"

    run(test())


def test_what_went_wrong_there_is_said_here(tmp_path: Path) -> None:
    async def test() -> None:
        async with pair(tmp_path, worker="import sys; print('no such recipe', file=sys.stderr); sys.exit(64)") as both:
            answers = {name: found async for name, found in both.questions[0].diagnoses()}
            assert "exited with status 64: no such recipe" in str(answers["spark2"])

    run(test())


def test_a_worker_that_reports_and_does_not_listen_is_older(tmp_path: Path) -> None:
    async def test() -> None:
        async with pair(tmp_path) as both:
            head = both.daemons[0]
            heard = Peer(reach="yes", heard_at=monotonic(), report=report("spark3"))
            head.state = replace(head.state, peers={2: heard})
            answers = {name: found async for name, found in both.questions[0].diagnoses()}
            assert isinstance(answers["spark3"], OlderError)
            assert "its sparkd is older" in answers["spark3"].message

    run(test())


def test_a_worker_takes_neither_reports_nor_orders(tmp_path: Path) -> None:
    async def test() -> None:
        async with pair(tmp_path) as both:
            client = LinkClient("spark3", "spark2", "127.0.77.2", both.cluster.link.port, Keyring((KEY,)))
            for refused in (client.ask(Ask(verb="stop")), client.exchange(report("spark3"), 0, 0)):
                with pytest.raises(PeerRejected, match=r"spark2 is a worker: .* to spark1, the head") as rejected:
                    await refused
                assert rejected.value.reason == "refused"
            await client.close()

    run(test())


def test_the_link_is_measured_from_either_side(tmp_path: Path) -> None:
    async def test() -> None:
        async with pair(tmp_path) as both:
            for asker, name in ((0, None), (1, "spark1")):
                node, received = await both.questions[asker].measure(name, 1.0)
                assert node == NAMES[1 - asker]
                assert received.gbps > 0.1 and received.streams == 8

    run(test())


def test_one_measurement_at_a_time(tmp_path: Path) -> None:
    async def test() -> None:
        async with pair(tmp_path) as both:
            first = asyncio.create_task(both.questions[0].measure("spark2", 1.0))
            await asyncio.sleep(0.5)
            with pytest.raises(SparkdError, match="a measurement is under way on spark1"):
                await both.questions[0].measure("spark2", 1.0)
            with pytest.raises(SparkdError, match="a measurement is under way on spark"):
                await both.questions[1].measure("spark1", 1.0)
            assert (await first)[1].total_bytes > 0
            assert (await both.questions[1].measure("spark1", 1.0))[1].total_bytes > 0

    run(test())


@pytest.mark.parametrize(
    ("name", "seconds", "why"),
    [
        ("spark1", 1.0, "not another node"),
        ("10.0.0.9", 1.0, "not another node"),
        ("spark2", 60.0, "1 to 5 seconds"),
        ("spark2", float("nan"), "1 to 5 seconds"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, name: str, seconds: float, why: str) -> None:
    async def test() -> None:
        async with pair(tmp_path) as both:
            with pytest.raises(UsageError, match=why):
                await both.questions[0].measure(name, seconds)

    run(test())
