"""A node's ear on the link: authentic messages reach the handler, everything else is refused with a reason.

It binds to the link address only. A client that goes away while its poll is held cancels the handler at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sparkd.model.errors import SparkdError
from sparkd.model.report import Intent, Report
from sparkd.peer.auth import Direction, Sessions, Stamp, headers, new_nonce, read_request, session_id, verifies
from sparkd.peer.listener import Embedded, bind
from sparkd.peer.wire import (
    BODY_MAX_BYTES,
    DIAGNOSE_MAX_S,
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
    """Listens for the other nodes on the link. `keys[0]` signs, all of them verify."""

    def __init__(self, node: str, address: str, port: int, keys: tuple[bytes, ...], handler: Handler) -> None:
        self._node, self._address, self._port = node, address, port
        self._keys, self._handler = keys, handler
        self._sessions = Sessions()
        self._app = Starlette(routes=[Route("/v1/{verb}", self._endpoint, methods=["POST"])])
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
                listening = bind(self._address, self._port)
                break
            except OSError as error:
                if complaint != str(error):  # once, not each second
                    complaint = str(error)
                    log.warning("cannot listen on %s:%d yet: %s", self._address, self._port, error.strerror)
                first_attempt.set()
            await asyncio.sleep(BIND_AGAIN_S)
        self._server = Embedded(self._app)
        self._bound.set()
        first_attempt.set()
        try:
            await self._server.serve(sockets=[listening])
        finally:
            self._bound.clear()
            listening.close()

    # --- one request ---

    async def _endpoint(self, request: Request) -> Response:
        stamp: Stamp | None = None  # once it is authentic: a refusal is then signed as well
        try:
            verb = _verb(request)
            body = await _body(request)
            stamp = self._authentic(request, verb, body)
            answer = await self._answer(request, stamp, body)
            if answer is None:
                return Response(status_code=499)  # nobody is there to read it
            content = pack(answer) if isinstance(answer, bytes) else encode(answer)
            return self._response(200, content, stamp.back(Direction.ANSWER))
        except Refusal as refusal:
            return self._refuse(refusal, stamp)
        except SparkdError as error:
            return self._refuse(Refusal(Reason.REFUSED, str(error)), stamp)
        except Exception:  # the edge: a fault here must not end the connection, and no peer is shown a traceback
            log.exception("a message from %s could not be answered", stamp.sender if stamp else "the link")
            return self._refuse(Refusal(Reason.INTERNAL, "a fault of sparkd; its log has it"), stamp)

    def _authentic(self, request: Request, verb: Verb, body: bytes) -> Stamp:
        """The stamp of a message that comes from the cluster, for this node, for the first time. Raises Refusal."""
        stamp, signature = read_request(request.headers, verb)
        if stamp.receiver != self._node:
            raise Refusal(Reason.WRONG_RECEIVER, f"this node is {self._node}, the message is for {stamp.receiver}")
        if stamp.sender == self._node:
            raise Refusal(Reason.REFLECTED, f"the message says that it comes from {self._node} itself")
        if not verifies(self._keys, stamp, body, signature):
            raise Refusal(Reason.WRONG_KEY, f"the message is not signed with the cluster key of {self._node}")
        return stamp

    async def _answer(self, request: Request, stamp: Stamp, body: bytes) -> Message | bytes | None:
        """What the verb gives (bytes: to be packed), or None where the client has gone away meanwhile. Raises Refusal,
        SparkdError."""
        peer = stamp.sender
        try:
            if stamp.verb is Verb.HELLO:
                decode(body, Hello)
                nonce = new_nonce()
                self._sessions.offer(peer, session_id(stamp.session, nonce))
                return HelloAnswer(nonce=nonce)
            self._sessions.accept(peer, stamp.session, stamp.sequence)
            if stamp.verb is Verb.ASK:
                ask = decode(body, AskRequest).ask
                # Not tied to the connection: an operator's word that was understood is carried out.
                async with asyncio.timeout(HANDLER_MAX_S):
                    return AskAnswer(answer=await self._handler.ask(peer, ask))
            if stamp.verb is Verb.DIAGNOSE:
                decode(body, DiagnoseRequest)
                async with asyncio.timeout(DIAGNOSE_MAX_S + TELLING_S):
                    return await _while_connected(request, self._handler.diagnose(peer))
            if stamp.verb is Verb.THROUGHPUT:
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
        signed = headers(self._keys[0], stamp, content)
        return Response(content, status, signed, "application/json")

    def _refuse(self, refusal: Refusal, stamp: Stamp | None) -> Response:
        if stamp is not None:
            return self._response(refusal.status, refusal.encode(), stamp.back(Direction.REFUSAL))
        # The rest of an unread body is not waited for.
        closing = {"connection": "close"} if refusal.reason in (Reason.TOO_LARGE, Reason.TIMED_OUT) else None
        return Response(refusal.encode(), refusal.status, closing, "application/json")


def _verb(request: Request) -> Verb:
    try:
        return Verb(request.path_params["verb"])
    except ValueError:
        raise Refusal(Reason.MALFORMED, "there is no such verb") from None


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
