"""A node's ear on the link: authentic messages reach the handler.

An authentic message that is not taken is refused with its reason, signed. Whoever cannot sign gets one and the same answer
whatever was said, and the reason stays here. It binds to the link address only. A client that goes away while its poll is
held cancels the handler at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sparkd.host.clock import monotonic
from sparkd.model.errors import SparkdError
from sparkd.model.report import Intent, Report
from sparkd.peer.auth import Direction, Sessions, Stamp, headers, new_nonce, proven, read_request, session_id
from sparkd.peer.keys import Keyring
from sparkd.peer.limits import MESSAGES_BURST, MESSAGES_PER_S, Bucket, Refusals
from sparkd.peer.listener import Embedded, bind
from sparkd.peer.wire import (
    BODY_MAX_BYTES,
    DIAGNOSE_MAX_S,
    NO_VERB,
    STRANGER,
    STRANGER_STATUS,
    Answer,
    Ask,
    AskAnswer,
    AskRequest,
    DiagnoseRequest,
    ExchangeAnswer,
    ExchangeRequest,
    Hello,
    HelloAnswer,
    Message,
    Reason,
    Refusal,
    ThroughputAnswer,
    ThroughputRequest,
    Verb,
    decode,
    encode,
    pack,
)

log = logging.getLogger(__name__)
Result = TypeVar("Result")

BODY_MAX_S = 5.0  # for a request's body to arrive
HANDLER_MAX_S = 5.0  # beyond the hold that was asked for
TELLING_S = 1.0  # for a handler to say that it came to no answer within its own limit
BIND_AGAIN_S = 1.0
PACE_S = 0.2  # a peer that says too much waits so long for each answer
_PATH = "/v1/"


class Handler(Protocol):
    """What the agent does with authentic messages. It may raise SparkdError: the peer is told its words."""

    async def exchange(self, peer: str, report: Report, known: int, hold_s: float) -> tuple[Intent, int]:
        """The intent and its version, at once where it is not `known`, else when it changes or after `hold_s`."""

    async def ask(self, peer: str, ask: Ask) -> Answer: ...

    async def diagnose(self, peer: str) -> bytes:
        """This node's Diagnosis, as JSON, within DIAGNOSE_MAX_S."""

    async def throughput(self, peer: str, request: ThroughputRequest) -> ThroughputAnswer:
        """Send to the peer what it will count, within the seconds that it asks for and a few more."""


class LinkServer:
    """Listens for the other nodes on the link. `peers`: the addresses that they come from, which nobody else crowds out.

    `note` is told, seldom, that something was refused that is not from the cluster.
    """

    def __init__(
        self,
        node: str,
        address: str,
        port: int,
        keyring: Keyring,
        handler: Handler,
        *,
        peers: Collection[str] = (),
        note: Callable[[str], None] = log.warning,
        diagnosed_max_s: float = DIAGNOSE_MAX_S + TELLING_S,
    ) -> None:
        self._node, self._address, self._port = node, address, port
        self._keyring, self._handler, self._peers = keyring, handler, tuple(peers)
        self._note, self._refusals = note, Refusals()
        self._diagnosed_max_s = diagnosed_max_s
        self._sessions = Sessions()
        self._paces: dict[str, Bucket] = {}  # by peer; only who has the key is in it
        self._server: Embedded | None = None
        self._running: asyncio.Task[None] | None = None
        self._bound = asyncio.Event()

    async def start(self) -> None:
        """Returns once the port is bound, or after one attempt: then it is tried again each second, in the background."""
        first = asyncio.Event()
        self._running = asyncio.create_task(self._run(first))
        await first.wait()

    async def stop(self) -> None:
        """Held polls end; their handlers are cancelled."""
        if self._running is None:
            return
        if self._server is not None:
            self._server.end()
        else:
            self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        self._running = None

    @property
    def is_listening(self) -> bool:
        return self._bound.is_set()

    async def _run(self, first_attempt: asyncio.Event) -> None:
        complaint = ""
        while True:
            try:
                listening = bind(self._address, self._port, self._peers)
                break
            except OSError as error:
                if complaint != str(error):  # once, not each second
                    complaint = str(error)
                    log.warning("cannot listen on %s:%d yet: %s", self._address, self._port, error.strerror)
                first_attempt.set()
            await asyncio.sleep(BIND_AGAIN_S)
        self._server = Embedded(self._app, self._peers)
        self._bound.set()
        first_attempt.set()
        try:
            await self._server.serve(sockets=listening)
        finally:
            self._bound.clear()
            for each in listening:
                each.close()

    # --- one request ---

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await self._endpoint(request)
        await response(scope, receive, send)

    async def _endpoint(self, request: Request) -> Response:
        stamp: Stamp | None = None  # once it is authentic: a refusal is then signed, and has words
        try:
            verb = _verb(request)
            body = await _body(request)
            stamp, keys = self._authentic(request, verb, body)
            self._take(request, stamp, keys)
            await self._paced(stamp.sender)
            answer = await self._answer(request, stamp, body)
            if answer is None:
                return Response(status_code=499)  # nobody is there to read it
            content = pack(answer) if isinstance(answer, bytes) else encode(answer)
            return self._response(200, content, stamp.back(Direction.ANSWER))
        except Refusal as refusal:
            return self._refuse(refusal, stamp, request)
        except SparkdError as error:
            return self._refuse(Refusal(Reason.REFUSED, str(error)), stamp, request)
        except Exception:  # the edge: a fault here must not end the connection, and no peer is shown a traceback
            log.exception("a message from %s could not be answered", stamp.sender if stamp else "the link")
            return self._refuse(Refusal(Reason.INTERNAL, "a fault of sparkd; its log has it"), stamp, request)

    def _authentic(self, request: Request, verb: str, body: bytes) -> tuple[Stamp, tuple[bytes, ...]]:
        """The stamp of a message that someone with the cluster key made, for whomever, and with which. Raises Refusal."""
        stamp, signatures = read_request(request.headers, verb)
        keys = proven(self._keyring.keys, stamp, body, signatures)
        if not keys:
            raise Refusal(
                Reason.WRONG_KEY, f"a message in the name of {stamp.sender} is not signed with the cluster key"
            )
        return stamp, keys

    def _take(self, request: Request, stamp: Stamp, keys: tuple[bytes, ...]) -> None:
        """An authentic message, if it is for this node and new. Raises Refusal, in words that tell a repeater nothing."""
        if stamp.receiver != self._node:
            raise Refusal(Reason.WRONG_RECEIVER, f"the message is for {stamp.receiver}, which is another node")
        if stamp.sender == self._node:
            raise Refusal(Reason.REFLECTED, "the message names its receiver as its sender")
        if stamp.verb not in set(Verb):
            raise Refusal(Reason.MALFORMED, NO_VERB)
        if stamp.verb != Verb.HELLO:
            self._sessions.accept(stamp.sender, stamp.session, stamp.sequence)
            self._keyring.shown(stamp.sender, keys)
            if self._server is not None and request.client is not None:
                self._server.proved((request.client.host, request.client.port))

    async def _paced(self, peer: str) -> None:
        if not self._paces.setdefault(peer, Bucket(MESSAGES_PER_S, MESSAGES_BURST)).take(monotonic()):
            await asyncio.sleep(PACE_S)

    async def _answer(self, request: Request, stamp: Stamp, body: bytes) -> Message | bytes | None:
        """What the verb gives (bytes: to be packed), or None where the client has gone away meanwhile. Raises Refusal,
        SparkdError."""
        peer = stamp.sender
        try:
            if stamp.verb == Verb.HELLO:
                decode(body, Hello)
                nonce = new_nonce()
                self._sessions.offer(peer, stamp.session, session_id(stamp.session, nonce))
                return HelloAnswer(nonce=nonce)
            if stamp.verb == Verb.ASK:
                ask = decode(body, AskRequest).ask
                # Not tied to the connection: an operator's word that was understood is carried out.
                async with asyncio.timeout(HANDLER_MAX_S):
                    return AskAnswer(answer=await self._handler.ask(peer, ask))
            if stamp.verb == Verb.DIAGNOSE:
                decode(body, DiagnoseRequest)
                async with asyncio.timeout(self._diagnosed_max_s):
                    return await _while_connected(request, self._handler.diagnose(peer))
            if stamp.verb == Verb.THROUGHPUT:
                measured = decode(body, ThroughputRequest)
                async with asyncio.timeout(measured.seconds + HANDLER_MAX_S):
                    return await _while_connected(request, self._handler.throughput(peer, measured))
            told = decode(body, ExchangeRequest)
            exchanging = self._handler.exchange(peer, told.report, told.known, told.hold_s)
            async with asyncio.timeout(told.hold_s + HANDLER_MAX_S):
                result = await _while_connected(request, exchanging)
        except TimeoutError:
            raise Refusal(Reason.TIMED_OUT, f"{self._node} did not come to an answer") from None
        return None if result is None else ExchangeAnswer(intent=result[0], version=result[1])

    def _response(self, status: int, content: bytes, stamp: Stamp) -> Response:
        signed = headers(self._keyring.keys, stamp, content)
        return Response(content, status, signed, "application/json")

    def _refuse(self, refusal: Refusal, stamp: Stamp | None, request: Request) -> Response:
        if stamp is not None:
            return self._response(refusal.status, refusal.encode(), stamp.back(Direction.REFUSAL))
        address = request.client.host if request.client else "the link"
        if told := self._refusals.count(f"refused what came from {address}: {refusal.says}", monotonic()):
            self._note(told)
        # One answer for whatever it was; and no second try, nor the rest of an unread body, on this connection.
        return Response(STRANGER, STRANGER_STATUS, {"connection": "close"}, "application/json")


def _verb(request: Request) -> str:
    verb = request.url.path.removeprefix(_PATH)
    if request.method != "POST" or verb == request.url.path:
        raise Refusal(Reason.MALFORMED, "that is no message of sparkd's")
    return verb


async def _body(request: Request) -> bytes:
    """Raises Refusal (too-large, timed-out, malformed) without having kept more than BODY_MAX_BYTES."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_MAX_S):
            while True:
                message = await request.receive()
                if message["type"] != "http.request":
                    raise Refusal(Reason.MALFORMED, "the message broke off")
                body += message.get("body", b"")
                if len(body) > BODY_MAX_BYTES:
                    raise Refusal(Reason.TOO_LARGE, f"a message has at most {BODY_MAX_BYTES} bytes")
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise Refusal(Reason.TIMED_OUT, f"the message did not arrive within {BODY_MAX_S:.0f} s") from None


async def _while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """What `work` gives, or None as soon as the client has gone; nothing is left running in either case."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
