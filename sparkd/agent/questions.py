"""What the nodes ask each other when a person asks one of them: both sides, as this node takes part in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sparkd.agent.loop import Agent
from sparkd.agent.ourselves import Ourselves
from sparkd.control.state import Peer
from sparkd.host.clock import monotonic
from sparkd.model.cluster import Cluster
from sparkd.model.errors import SparkdError, UnreachableError, UsageError
from sparkd.peer import questions
from sparkd.peer.client import PeerRefused, PeerUnreachable
from sparkd.peer.keys import Keyring
from sparkd.peer.questions import OlderError, Way
from sparkd.peer.throughput import Received
from sparkd.peer.wire import MEASURE_MAX_S, MEASURE_MIN_S, ThroughputAnswer, ThroughputRequest

STREAMS = 8  # a bond spreads connections over its ports, and one core cannot fill 200 Gb/s
HEARD_MAX_S = 3.0  # a node that was heard so lately has a living sparkd, whether or not that listens


class Questions:
    """Asked of this node's peers, and answered to them."""

    def __init__(self, agent: Agent, cluster: Cluster, keyring: Keyring, ourselves: Ourselves) -> None:
        self._agent, self._cluster, self._keyring, self._ourselves = agent, cluster, keyring, ourselves
        self._measuring = asyncio.Lock()  # either side: two measurements would measure each other

    # --- asking ---

    async def diagnoses(self) -> AsyncIterator[tuple[str, bytes | SparkdError]]:
        """(node, its Diagnosis as JSON or why there is none) of each other node, as they come, within 12 s."""

        async def ask(name: str) -> tuple[str, bytes | SparkdError]:
            try:
                return name, await questions.diagnose(self._way(name))
            except SparkdError as error:
                return name, self._told(name, error)

        asking = [asyncio.create_task(ask(name)) for name in self._others()]
        try:
            for answered in asyncio.as_completed(asking):
                yield await answered
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def measure(self, name: str | None, seconds: float) -> tuple[str, Received]:
        """What the other node can send to this one. Raises UsageError, UnreachableError, SparkdError."""
        others = self._others()
        if not others:
            raise UsageError("this node is alone: there is no link to measure")
        name = others[0] if name is None else name
        if name not in others:
            raise UsageError(f"{name} is not another node of this cluster", hint=f"there is {', '.join(others)}")
        if not MEASURE_MIN_S <= seconds <= MEASURE_MAX_S:
            raise UsageError(f"a measurement takes {MEASURE_MIN_S:g} to {MEASURE_MAX_S:g} seconds")
        try:
            async with self._alone():
                return name, await questions.measure(self._way(name), streams=STREAMS, seconds=seconds)
        except SparkdError as error:
            raise self._told(name, error) from error

    # --- being asked ---

    async def diagnose(self, peer: str) -> bytes:
        return await self._ourselves.diagnosis()

    async def throughput(self, peer: str, request: ThroughputRequest) -> ThroughputAnswer:
        async with self._alone():
            return await questions.send(self._way(peer), request)

    # --- in common ---

    def _alone(self) -> asyncio.Lock:
        if self._measuring.locked():
            raise SparkdError(f"a measurement is under way on {self._agent.me.node}", hint="try again in a few seconds")
        return self._measuring

    def _others(self) -> list[str]:
        return [node.name for node in self._cluster.nodes if node.name != self._agent.me.node]

    def _way(self, name: str) -> Way:
        """Addresses are this node's own configuration's: no message carries one."""
        known = {node.name: str(node.link_address) for node in self._cluster.nodes}
        me = self._agent.me.node
        if name not in known or name == me:
            raise SparkdError(f"{name} is no other node of this node's configuration: the configurations differ")
        return Way(me, known[me], name, known[name], self._cluster.link.port, self._keyring)

    def _told(self, name: str, error: SparkdError) -> SparkdError:
        """The one error that a person is shown. An older sparkd reports as a worker and listens to nobody."""
        if isinstance(error, PeerRefused):
            peer = self._agent.state.peers.get(self._agent.me.names.index(name), Peer())
            heard_s = monotonic() - peer.heard_at if peer.heard_at is not None else HEARD_MAX_S
            if peer.report is not None and heard_s < HEARD_MAX_S:
                return OlderError(name)
        if isinstance(error, PeerRefused | PeerUnreachable):
            return UnreachableError(error.message, hint=f"run it on {name}")
        return error
