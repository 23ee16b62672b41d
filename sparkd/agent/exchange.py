"""The other nodes become events: a worker tells its report and hears the head's intent; the head probes who is silent.

State is level-triggered: every message is whole, so a node that missed every message for an hour converges from the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno

from sparkd.agent.loop import Agent
from sparkd.agent.questions import Questions
from sparkd.agent.tasks import unfailing
from sparkd.control import telling
from sparkd.control.state import Asked, Heard, Silent, Told
from sparkd.host.clock import monotonic
from sparkd.model.cluster import Cluster
from sparkd.model.errors import SparkdError, UnreachableError
from sparkd.model.finding import Cure, Finding, bad
from sparkd.model.report import Intent, Report
from sparkd.peer.client import LinkClient, PeerRefused, PeerRejected, PeerUnreachable
from sparkd.peer.keys import Keyring
from sparkd.peer.server import LinkServer
from sparkd.peer.wire import Answer, Ask, Reason, ThroughputAnswer, ThroughputRequest

SILENCE_S = 1.5  # beyond an exchange's hold: then a worker's host is probed
PROBE_MAX_S = 1.5
PROBE_EVERY_S = 1.0
AGAIN_S = 0.5  # after a failed exchange
REMEDIES: dict[str, str] = {
    Reason.WRONG_KEY: "make /etc/sparkd/cluster.key the same on all nodes (`sparkd key status`), then `systemctl restart sparkd`",
    Reason.PROTOCOL: "install the same sparkd on all nodes: scripts/install",
    Reason.REFUSED: "make /etc/sparkd/sparkd.yaml the same on all nodes",
}


class Listening:
    """What every node has: an ear on the link, and answers to the questions of the others."""

    def __init__(self, agent: Agent, cluster: Cluster, keyring: Keyring, questions: Questions) -> None:
        self._agent, self._cluster, self._questions = agent, cluster, questions
        address = str(cluster.nodes[agent.me.rank].link_address)
        self._server = LinkServer(
            agent.me.node,
            address,
            cluster.link.port,
            keyring,
            self,
            peers=[str(node.link_address) for node in cluster.nodes if node.name != agent.me.node],
            note=lambda says: agent.note("peer.unauthenticated", says),
        )

    async def exchange(self, peer: str, report: Report, known: int, hold_s: float) -> tuple[Intent, int]:
        raise self._is_worker("reports go")

    async def ask(self, peer: str, ask: Ask) -> Answer:
        raise self._is_worker(f"`{ask.verb}` goes")

    async def diagnose(self, peer: str) -> bytes:
        return await self._questions.diagnose(peer)

    async def throughput(self, peer: str, request: ThroughputRequest) -> ThroughputAnswer:
        return await self._questions.throughput(peer, request)

    def _is_worker(self, what: str) -> SparkdError:
        return SparkdError(f"{self._agent.me.node} is a worker: {what} to {self._agent.me.names[0]}, the head")


class HeadExchange(Listening):
    """The head's side: hears reports, holds long polls until the intent changes, probes silent workers."""

    def __init__(self, agent: Agent, cluster: Cluster, keyring: Keyring, questions: Questions) -> None:
        super().__init__(agent, cluster, keyring, questions)
        self._heard_at: dict[int, float] = {}
        self._probing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._server.start()
        self._probing = asyncio.create_task(unfailing("the probe of silent workers", self._probe))

    async def stop(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
        await self._server.stop()

    async def exchange(self, peer: str, report: Report, known: int, hold_s: float) -> tuple[Intent, int]:
        """Called by the server for an authenticated worker. `known` is the intent's version that it has."""
        if report.node != peer or self._agent.me.names[report.rank : report.rank + 1] != (peer,):
            raise SparkdError(f"{peer} reports as {report.node}, rank {report.rank}: the nodes' configurations differ")
        self._heard_at[report.rank] = monotonic()
        self._agent.post(Heard(report))
        version = await self._agent.wait_changed(known, hold_s)
        return self.intent(), version

    async def ask(self, peer: str, ask: Ask) -> Answer:
        """An operator's word that was said on a worker."""
        self._agent.post(Asked(ask.verb, ask.profile))
        return Answer(says=f"{self._agent.me.node} takes it: {ask.verb}")

    def intent(self) -> Intent:
        """As it stands, with what only the moment of telling knows."""
        state, now = self._agent.state, monotonic()
        age_s = now - state.proof.at if state.proof is not None and state.intent.serving else None
        update = {"head_reason": telling.reason(state, now), "proof_age_s": age_s, "at": now}
        return state.intent.model_copy(update=update)

    async def _probe(self) -> None:
        """Silent is either a living host whose agent is away (it refuses), or a host or link that is gone."""
        limits = self._agent.me.limits
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            now = monotonic()
            for rank in self._agent.me.workers:
                if now - self._heard_at.get(rank, 0.0) > limits.exchange_s + SILENCE_S:
                    node = self._cluster.nodes[rank]
                    reach = await reachability(str(node.link_address), self._cluster.link.port)
                    if monotonic() - self._heard_at.get(rank, 0.0) > limits.exchange_s:
                        self._agent.post(Silent(rank, reach))


async def reachability(address: str, port: int) -> str:
    """ "refused" where the host lives (it answers a connection to a port, either way), "unreachable" where nothing does."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), PROBE_MAX_S)
    except ConnectionRefusedError:
        return "refused"
    except (TimeoutError, OSError) as error:
        return "refused" if isinstance(error, OSError) and error.errno == errno.ECONNRESET else "unreachable"
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return "refused"


class WorkerExchange(Listening):
    """A worker's side: report out, intent in, once a second and at once when either changes."""

    def __init__(self, agent: Agent, cluster: Cluster, keyring: Keyring, questions: Questions) -> None:
        super().__init__(agent, cluster, keyring, questions)
        head = cluster.head
        self._client = LinkClient(agent.me.node, head.name, str(head.link_address), cluster.link.port, keyring)
        self._task: asyncio.Task[None] | None = None
        self._rejection = ""  # what was said last: told once, not twice a second

    async def start(self) -> None:
        await self._server.start()
        self._task = asyncio.create_task(unfailing("the exchange with the head", self._exchange))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        await self._client.close()
        await self._server.stop()

    async def pass_on(self, verb: str, profile: str | None) -> str:
        """Pass an operator's word on to the head. Raises UnreachableError where it cannot be told."""
        head = self._agent.me.names[0]
        try:
            return (await self._client.ask(Ask.model_validate({"verb": verb, "profile": profile}))).says
        except (PeerRefused, PeerUnreachable) as error:
            raise UnreachableError(f"{head}, the head, cannot be told: {error}", hint=f"run it on {head}") from error
        except PeerRejected as error:
            raise SparkdError(f"{head} refused: {error}", hint="compare `sparkd key status` on both nodes") from error

    async def _exchange(self) -> None:
        known, hold_s = 0, self._agent.me.limits.exchange_s
        while True:
            told = self._agent.version
            report = self._report()
            exchanging = asyncio.create_task(self._client.exchange(report, known, hold_s))
            changing = asyncio.create_task(self._agent.wait_changed(told, hold_s + 5))
            try:
                await asyncio.wait({exchanging, changing}, return_when=asyncio.FIRST_COMPLETED)
                if not exchanging.done():
                    continue  # our report changed: the head hears the new one now
                intent, known = exchanging.result()
                self._agent.post(Told(intent))
            except PeerRefused:
                known = await self._silent("refused")
            except PeerUnreachable:
                known = await self._silent(await self._reach())
            except PeerRejected as error:
                known = await self._silent("rejected", self._rejected(error))
            finally:
                for task in (exchanging, changing):
                    task.cancel()
                await asyncio.gather(exchanging, changing, return_exceptions=True)

    def _report(self) -> Report:
        return telling.report_now(self._agent.state, monotonic())

    async def _reach(self) -> str:
        """Of a head that did not answer. Where its kernel still takes a connection, its agent stands still or hangs: its
        watchdog ends that, and the engine is no worse for it."""
        head = self._cluster.head
        return await reachability(str(head.link_address), self._cluster.link.port)

    async def _silent(self, reach: str, finding: Finding | None = None) -> int:
        self._agent.post(Silent(0, reach, finding))
        await asyncio.sleep(AGAIN_S)
        return 0

    def _rejected(self, error: PeerRejected) -> Finding:
        says = f"{self._agent.me.names[0]} refuses our word: {error}"
        if says != self._rejection:
            self._agent.note("peer.rejected", says, alarm=True)
        self._rejection = says
        return bad("peer.rejected", says, cure=Cure.WAIT, remedy=REMEDIES.get(error.reason, ""))
