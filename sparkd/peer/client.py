"""A node's voice on the link. Three ways to fail, which mean different things and are told apart exactly.

- PeerRefused: its host answers, its agent does not. The engine there may well be alive.
- PeerUnreachable: nothing answers. The host, its agent's loop or the link is gone, for now.
- PeerRejected: an agent answers and does not accept us: keys, configuration or versions differ.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterator
from typing import TypeVar

import h11
import httpx

from sparkd.model.errors import SparkdError
from sparkd.model.report import Intent, Report
from sparkd.peer.auth import Direction, Stamp, headers, new_nonce, proven, session_id, signatures
from sparkd.peer.keys import Keyring
from sparkd.peer.wire import (
    BODY_MAX_BYTES,
    HOLD_MAX_S,
    NO_VERB,
    PACKED_MAX_BYTES,
    Answer,
    Ask,
    AskAnswer,
    AskRequest,
    ExchangeAnswer,
    ExchangeRequest,
    Hello,
    HelloAnswer,
    Message,
    Reason,
    Refusal,
    Verb,
    decode,
    encode,
    unpack,
)

CONNECT_MAX_S = 2.0
ANSWER_MAX_S = 3.0  # beyond the hold, for everything: connecting, a session, one repetition
KEPT_ALIVE_S = 5.0  # less than the server keeps an idle connection, so that the two never cross

Kind = TypeVar("Kind", bound=Message)
Result = TypeVar("Result")

_HOST_LIVES = {errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE}


class PeerError(SparkdError):
    """The peer was not heard. Only its three kinds are raised."""


class PeerRefused(PeerError):
    """TCP was refused or reset, or the connection was closed: a living host whose agent is away."""


class PeerUnreachable(PeerError):
    """No answer in time, or no way there."""


class PeerRejected(PeerError):
    """An agent answered and did not accept the message, or answered with what this node cannot accept."""

    def __init__(self, reason: str, says: str) -> None:
        super().__init__(f"{says} ({reason})")
        self.reason = reason


class LinkClient:
    """Speaks with one peer as `node`."""

    def __init__(self, node: str, peer: str, address: str, port: int, keyring: Keyring) -> None:
        # An ask must not wait behind a held poll, nor overtake it: each has its own session, so each its own order.
        self._exchanges = Conversation(node, peer, f"http://{address}:{port}", keyring, kept_alive=True)
        self._asks = Conversation(node, peer, f"http://{address}:{port}", keyring, kept_alive=False)

    async def exchange(self, report: Report, known: int, hold_s: float) -> tuple[Intent, int]:
        """The head's intent and its version: at once where that is not `known`, else after at most `hold_s` seconds (5).

        May be cancelled at any moment and called anew at once. Raises PeerError's kinds, within `hold_s` + 3 s.
        """
        hold_s = min(max(hold_s, 0.0), HOLD_MAX_S)
        request = ExchangeRequest(report=report, known=known, hold_s=hold_s)
        answer = await self._exchanges.say(Verb.EXCHANGE, request, ExchangeAnswer, hold_s)
        return answer.intent, answer.version

    async def ask(self, ask: Ask) -> Answer:
        """Pass an operator's word on. Raises PeerError's kinds, within 3 s.

        Never said twice: where the connection broke after it was said, PeerRefused or PeerUnreachable leave open
        whether the peer took it.
        """
        return (await self._asks.say(Verb.ASK, AskRequest(ask=ask), AskAnswer, 0.0)).answer

    async def close(self) -> None:
        await self._exchanges.close()
        await self._asks.close()


class Conversation:
    """One session at a time and its sequence numbers, over one connection. Raises PeerError's kinds."""

    def __init__(self, node: str, peer: str, url: str, keyring: Keyring, *, kept_alive: bool) -> None:
        self._node, self._peer, self._url, self._keyring = node, peer, url, keyring
        self._kept_alive = kept_alive
        self._session: str | None = None
        self._sequence = 0
        self._one_at_a_time = asyncio.Lock()
        self._http = self._new_http()

    async def say(self, verb: Verb, message: Message, kind: type[Kind], hold_s: float) -> Kind:
        """The peer's answer, within `hold_s` + 3 s."""
        return await self._answer(verb, message, hold_s, lambda body: decode(body, kind))

    async def say_large(self, verb: Verb, message: Message, hold_s: float) -> bytes:
        """The content of an answer that is packed, within `hold_s` + 3 s."""
        return await self._answer(verb, message, hold_s, unpack)

    async def _answer(self, verb: Verb, message: Message, hold_s: float, read: Callable[[bytes], Result]) -> Result:
        limit_s = hold_s + ANSWER_MAX_S
        try:
            async with asyncio.timeout(limit_s), self._one_at_a_time:
                return read(await self._say(verb, encode(message)))
        except TimeoutError:
            raise PeerUnreachable(f"{self._peer} did not answer within {limit_s:g} s", where=self._url) from None
        except Refusal as refusal:
            raise PeerRejected(refusal.reason, refusal.says) from refusal

    async def close(self) -> None:
        await self._http.aclose()

    def _new_http(self) -> httpx.AsyncClient:
        kept = int(self._kept_alive)
        return httpx.AsyncClient(
            trust_env=False,
            verify=False,  # there is no TLS on the link; else each client would load the system's certificates
            timeout=httpx.Timeout(None, connect=CONNECT_MAX_S),
            limits=httpx.Limits(max_keepalive_connections=kept, keepalive_expiry=KEPT_ALIVE_S),
        )

    async def _say(self, verb: Verb, body: bytes) -> bytes:
        """The body of the authentic answer. Raises Refusal, PeerRefused, PeerUnreachable."""
        broken = unknown = False
        while True:
            try:
                if self._session is None:
                    self._session = await self._open()
                    self._sequence = 0
                self._sequence += 1  # before it is sent: a number that may have been seen is never used again
                return await self._post(self._stamp(self._session, self._sequence, verb), body)
            except _UnknownSessionError as refusal:
                self._session = None
                if unknown:
                    raise refusal.refusal from None
                unknown = True
            except PeerRefused:
                # A kept connection that the peer's restarted agent knows nothing of. A fresh one tells the truth.
                if broken or verb is not Verb.EXCHANGE:  # a whole, level-triggered message may be said again
                    raise
                broken = True

    async def _open(self) -> str:
        """A new session: both sides' nonces make its name, so neither can be led into an old one."""
        nonce = new_nonce()
        answer = await self._post(self._stamp(nonce, 0, Verb.HELLO), encode(Hello()))
        return session_id(nonce, decode(answer, HelloAnswer).nonce)

    def _stamp(self, session: str, sequence: int, verb: Verb) -> Stamp:
        return Stamp(Direction.REQUEST, self._node, self._peer, session, sequence, verb)

    async def _post(self, stamp: Stamp, body: bytes) -> bytes:
        url = f"{self._url}/v1/{stamp.verb}"
        signed = {**headers(self._keyring.keys, stamp, body), "accept-encoding": "identity"}
        is_whole = False
        try:
            async with self._http.stream("POST", url, content=body, headers=signed) as response:
                content = await _content(response, PACKED_MAX_BYTES if stamp.verb is Verb.DIAGNOSE else BODY_MAX_BYTES)
            is_whole = True
        except httpx.TransportError as error:
            raise self._told_apart(error) from error
        finally:
            if not is_whole:
                # A cancelled request can leave httpcore's pool with a connection that it never gives out nor closes
                # (seen about once in a hundred). The next message begins with a new pool, whatever ended this one.
                discarded, self._http = self._http, self._new_http()
                await discarded.aclose()
        return self._authentic(stamp, response, content)

    def _authentic(self, stamp: Stamp, response: httpx.Response, content: bytes) -> bytes:
        """The content of the peer's own answer to this message. Raises Refusal in the peer's words, where it signed them,
        and in ours where nobody did: what anybody can say is not shown to a person."""
        given = signatures(response.headers)
        is_good = response.status_code == 200
        direction = Direction.ANSWER if is_good else Direction.REFUSAL
        keys = proven(self._keyring.keys, stamp.back(direction), content, given)
        if keys:
            self._keyring.shown(self._peer, keys)
        if is_good and keys:
            return content
        if is_good:
            says = f"what answers for {self._peer} does not have this node's cluster key"
            raise Refusal(Reason.WRONG_KEY if given else Reason.NOT_SPARKD, says)
        refusal = Refusal.decode(content)
        if refusal is None:
            says = f"what answers for {self._peer} is not sparkd (HTTP {response.status_code})"
            raise Refusal(Reason.NOT_SPARKD, says)
        if not keys:
            raise self._unsigned(refusal)
        if refusal.reason is Reason.UNKNOWN_SESSION:
            raise _UnknownSessionError(refusal)
        raise refusal

    def _unsigned(self, refusal: Refusal) -> Refusal:
        if refusal.reason is Reason.MALFORMED and refusal.says == NO_VERB:
            return refusal  # of an older sparkd
        if refusal.reason is Reason.WRONG_KEY:
            return Refusal(
                Reason.WRONG_KEY, f"{self._peer} does not have this node's cluster key, or another one answers"
            )
        return Refusal(
            refusal.reason, f"what answers for {self._peer} refuses, and does not show that it is {self._peer}"
        )

    def _told_apart(self, error: httpx.TransportError) -> Exception:
        """Which of the three it was. What is not known to come from a living host counts as unreachable."""
        if isinstance(error, httpx.TimeoutException):
            return PeerUnreachable(f"{self._peer} does not answer", where=self._url)
        causes = list(_causes(error))
        numbers = {cause.errno for cause in causes if isinstance(cause, OSError) and cause.errno is not None}
        if numbers & _HOST_LIVES:
            return PeerRefused(f"the host of {self._peer} lives, its sparkd does not answer", where=self._url)
        if numbers:
            number = min(numbers)
            words = errno.errorcode.get(number, str(number))
            return PeerUnreachable(f"{self._peer} cannot be reached ({words})", where=self._url)
        protocol = [str(cause) for cause in causes if isinstance(cause, h11.RemoteProtocolError)]
        if protocol and not protocol[0].startswith("peer "):  # h11 has "peer closed ..." for an answer cut short
            return Refusal(Reason.NOT_SPARKD, f"what answers for {self._peer} does not speak HTTP")
        if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError):
            return PeerRefused(f"{self._peer} closed the connection", where=self._url)
        return PeerUnreachable(f"{self._peer} cannot be reached", where=self._url)


class _UnknownSessionError(Exception):
    """The server says, authentically, that it does not have our session (and so has not taken the message)."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.says)
        self.refusal = refusal


async def _content(response: httpx.Response, max_bytes: int) -> bytes:
    content = bytearray()
    async for part in response.aiter_raw():
        content += part
        if len(content) > max_bytes:
            raise Refusal(Reason.TOO_LARGE, f"the answer has more than {max_bytes} bytes")
    return bytes(content)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and all that led to it; httpx, httpcore and anyio each wrap the kernel's word in their own."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                yield from _causes(inner)
        error = error.__cause__ or error.__context__
