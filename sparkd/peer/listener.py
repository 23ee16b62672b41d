"""uvicorn inside the agent's loop: no signal handlers, no threads, no polling, and a limit to what a stranger can hold."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_MAX_S = 15  # a connection without a request in progress; clients close theirs sooner
CONNECTIONS_MAX_PER_ADDRESS = 16
HEADERS_MAX_BYTES = 8192
UNSENT_MAX_MS = 10_000  # an answer that a dead peer never acknowledges

_IP_FREEBIND = 15  # linux/in.h; the socket module has no name for it


def bind(address: str, port: int) -> socket.socket:
    """A listening socket on exactly this address, which need not exist yet: at boot the link may be down.

    With IP_FREEBIND the kernel delivers to it as soon as the address comes, and again when it went away and came back,
    with nothing to notice or to retry here. Raises OSError (the port is taken).
    """
    # With the protocol named, asyncio turns Nagle's algorithm off; it would add 40 ms to each exchange.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNSENT_MAX_MS)
        listening.bind((address, port))
        listening.listen(64)
    except OSError:
        listening.close()
        raise
    return listening


class BoundedProtocol(H11Protocol):
    """uvicorn has no limit for a connection that never sends a request, nor for how many one host opens."""

    _idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        address = _address_of(self)
        if sum(_address_of(other) == address for other in self.connections) > CONNECTIONS_MAX_PER_ADDRESS:
            transport.abort()
            return
        self._await_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._idle is not None:
            self._idle.cancel()
        super().connection_lost(exc)

    def _await_request(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = self.loop.call_later(IDLE_MAX_S, self._end_if_idle)

    def _end_if_idle(self) -> None:
        # A request in progress is bounded by the application, and comes back here when it is answered.
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


def _address_of(connection: object) -> str:
    return connection.client[0] if isinstance(connection, H11Protocol) and connection.client else ""


class Embedded(uvicorn.Server):
    """One server in a loop that is not uvicorn's."""

    def __init__(self, app: Any) -> None:
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",  # what strangers send is answered, not logged
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=IDLE_MAX_S,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=HEADERS_MAX_BYTES,
        )
        super().__init__(config)
        self._ending = asyncio.Event()

    async def main_loop(self) -> None:
        """uvicorn would wake ten times a second here, to look whether a signal came and for the date."""
        await self.on_tick(0)
        await self._ending.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # signals are the agent's

    def end(self) -> None:
        """Break every connection: held polls end, and their clients see at once that nobody is here."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        self.should_exit = True
        self._ending.set()
