"""uvicorn inside the agent's loop: no signal handlers, no threads, no polling, and a limit to what a stranger can hold.

Two sockets listen on the one address and port. The kernel gives the nodes' connections to the first and everybody else's
to the second, each with a queue of its own, so that a flood from elsewhere does not even stand in the nodes' way.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import itertools
import logging
import socket
import struct
from collections.abc import Collection, Generator, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sparkd.host.clock import monotonic
from sparkd.peer.limits import ALLOWED, PROVEN_MAX_PER_ADDRESS, Gate

log = logging.getLogger(__name__)

IDLE_MAX_S = 15  # a connection without a request in progress; clients close theirs sooner
HEADERS_MAX_BYTES = 8192
UNSENT_MAX_MS = 10_000  # an answer that a dead peer never acknowledges
QUEUE_MAX = 64  # connections that the kernel has and we do not yet
REFUSED_PAUSE_S = 0.01  # after one that was not let in: the flood waits in the kernel, and costs us 100 looks a second
ACCEPT_AGAIN_S = 0.5  # after the kernel had no descriptor or no memory for one more

_IP_FREEBIND = 15  # linux/in.h; the socket module has no name for it
_SO_ATTACH_REUSEPORT_CBPF = 51  # asm-generic/socket.h
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: closed by a reset, with nothing left to keep


# --- listening -----------------------------------------------------------------------------------


def bind(address: str, port: int, nodes: Sequence[str] = ()) -> list[socket.socket]:
    """Listening sockets on exactly this address, which need not exist yet: at boot the link may be down. The first is for
    `nodes`, the second for everybody else; one for all where the kernel does not tell them apart.

    With IP_FREEBIND the kernel delivers to it as soon as the address comes, and again when it went away and came back,
    with nothing to notice or to retry here. Raises OSError (the port is taken).
    """
    with _bound(address, port, shared=False):
        pass  # sockets that share a port would not notice another program's, or another sparkd's
    first = _bound(address, port, shared=True)
    listening = [first]
    try:
        first.listen(QUEUE_MAX)
        if nodes:
            listening.append(_bound(address, port, shared=True))
            listening[-1].listen(QUEUE_MAX)
            _steer(first, nodes)
    except OSError as error:
        for each in listening[1:]:
            each.close()
        if len(listening) == 1:
            first.close()
            raise
        log.warning("nodes and strangers share one queue on the link: %s", error.strerror)
        return listening[:1]
    return listening


def _bound(address: str, port: int, *, shared: bool) -> socket.socket:
    # With the protocol named, asyncio turns Nagle's algorithm off; it would add 40 ms to each exchange.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        bound.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNSENT_MAX_MS)
        bound.bind((address, port))
    except OSError:
        bound.close()
        raise
    return bound


def _steer(listening: socket.socket, nodes: Sequence[str]) -> None:
    """A classic BPF program: the first socket of the group (0) for the nodes' addresses, else the second (1)."""
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD+W+ABS, BPF_JMP+JEQ+K, BPF_RET+K
    source = 0xFFF00000 + 12  # SKF_NET_OFF and where IPv4 has its source address
    code = [(load, 0, 0, source)]
    for left, node in zip(range(len(nodes), 0, -1), nodes, strict=True):
        (number,) = struct.unpack("!I", socket.inet_aton(node))
        code.append((equal, left, 0, number))
    code += [(give, 0, 0, 1), (give, 0, 0, 0)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
    listening.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, struct.pack("HL", len(code), ctypes.addressof(program))
    )


# --- one connection ------------------------------------------------------------------------------


_NUMBERS = itertools.count()  # the order in which connections came


class BoundedProtocol(H11Protocol):
    """uvicorn has no limit for a connection that never sends a request, nor for how many one host opens."""

    _idle: asyncio.TimerHandle | None = None
    is_proven = False  # an authentic message came over it
    number = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.number = next(_NUMBERS)
        self._await_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._idle is not None:
            self._idle.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self.transport.abort()  # what is no HTTP is not told by which library

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    def is_open(self) -> bool:
        return not self.transport.is_closing()

    def _await_request(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = self.loop.call_later(IDLE_MAX_S, self._end_if_idle)

    def _end_if_idle(self) -> None:
        # A request in progress is bounded by the application, and comes back here when it is answered.
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


# --- all of them ---------------------------------------------------------------------------------


class Embedded(uvicorn.Server):
    """One server in a loop that is not uvicorn's. `nodes`: the addresses from which peers come."""

    def __init__(self, app: Any, nodes: Collection[str] = ()) -> None:
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
        self._gate = Gate(nodes)
        self._accepting: list[asyncio.Task[None]] = []
        self._ending = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn would take in whatever comes, hundreds at a time."""
        self.servers = []
        self._accepting = [asyncio.create_task(self._accept(each)) for each in sockets or ()]
        self.started = True

    async def main_loop(self) -> None:
        """uvicorn would wake ten times a second here, to look whether a signal came and for the date."""
        await self.on_tick(0)
        await self._ending.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)

    def proved(self, client: tuple[str, int] | None) -> None:
        """An authentic message came over this connection."""
        for connection in self.server_state.connections:
            if isinstance(connection, BoundedProtocol) and connection.client == client:
                connection.is_proven = True

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        make = functools.partial(
            BoundedProtocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=loop,
        )
        while True:
            try:
                connection, (address, _) = await loop.sock_accept(listening)
            except OSError as error:
                log.warning("no connection can be taken on the link: %s", error.strerror)
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            if self._gate.admits(address, monotonic()) and self._room(address):
                with contextlib.suppress(OSError):  # it has gone already
                    await loop.connect_accepted_socket(make, connection)
                    continue
            _reset(connection)
            await asyncio.sleep(REFUSED_PAUSE_S)

    def _room(self, address: str) -> bool:
        """For one more of this crowd. The oldest that has proven nothing makes it: who is a node proves it at once."""
        crowd = self._gate.key(address)
        open_ = [one for one in self.server_state.connections if isinstance(one, BoundedProtocol) and one.is_open()]
        of_crowd = [one for one in open_ if self._gate.key(one.address) == crowd]
        unproven = [one for one in of_crowd if not one.is_proven]
        if len(of_crowd) - len(unproven) >= PROVEN_MAX_PER_ADDRESS:
            return False
        if len(unproven) >= ALLOWED[self._gate.crowd(address)].connections_max:
            min(unproven, key=lambda one: one.number).transport.abort()
        return True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # signals are the agent's

    def end(self) -> None:
        """Break every connection: held polls end, and their clients see at once that nobody is here."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        self.should_exit = True
        self._ending.set()


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    connection.close()
