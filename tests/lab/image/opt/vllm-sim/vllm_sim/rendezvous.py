"""How the ranks find each other: a TCP store at master_addr:master_port held by rank 0, then a connection to each rank.

Either order works and each side waits silently. Nothing is sent while idle, so a rank that died is noticed by the next
collective only, and one behind a broken link not even then: TCP keeps trying, as it did in the recordings.
"""

import contextlib
import errno
import os
import select
import socket
import time
from typing import Any

from vllm_sim import log
from vllm_sim.channel import Channel, Closed
from vllm_sim.config import EngineConfig

RANDOM_PORTS = 4  # the real one opens about 14 on each side
CONNECT_TIMEOUT_S = 5.0
RETRY_S = 0.2
FIRST_WORD_S = 138.0  # the real worker says its first word about an absent head after that


class RendezvousFailed(Exception):
    """The last line of the real traceback."""


class PeerLost(Exception):
    """A rank's connection broke during a collective."""

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(
            "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error "
            f"[{address[0]}]:{address[1]}: Connection reset by peer. This is typically caused by a remote worker hanging or "
            "bugs in the application. Check the logs of the remote worker before reporting an error. GLHF! 🏖️"
        )


class Group:
    """One rank's end of the group. Rank 0 leads: the others answer it."""

    def __init__(self) -> None:
        self.peers: list[tuple[tuple[str, int], Channel]] = []
        self.leader: Channel | None = None
        self.held: list[socket.socket] = []  # listening sockets and the store's connections, open for life

    def ask_all(self, message: Any) -> None:
        """Sends to every other rank. Raises PeerLost."""
        for address, channel in self.peers:
            try:
                channel.send(message)
            except Closed as exc:
                raise PeerLost(address) from exc

    def answers(self) -> list[Any]:
        """One answer of every other rank, however long they take. Raises PeerLost."""
        result = []
        for address, channel in self.peers:
            try:
                result.append(channel.receive())
            except Closed as exc:
                raise PeerLost(address) from exc
        return result


def join(config: EngineConfig, rank: int, address: tuple[str, int]) -> Group:
    """Blocks until all ranks are there. Raises RendezvousFailed."""
    group = Group()
    if config.world_size == 1:
        return group
    _listen_randomly(group, address[0])
    if rank == 0:
        _lead(group, config, address[1])
    else:
        _follow(group, config, rank, address)
    return group


def _listen_randomly(group: Group, fallback: str) -> None:
    """The message queues' ports, on VLLM_HOST_IP where this host has that address."""
    for host in (os.environ.get("VLLM_HOST_IP"), fallback, ""):
        if host is None:
            continue
        with contextlib.suppress(OSError):
            group.held += [socket.create_server((host, 0)) for _ in range(RANDOM_PORTS)]
            return


def _lead(group: Group, config: EngineConfig, port: int) -> None:
    store = _listen(port)
    group.held.append(store)
    deadline = time.monotonic() + config.timeout_s
    joined: dict[int, tuple[Channel, tuple[str, int]]] = {}
    callers: list[Channel] = []
    while len(joined) < config.world_size - 1:
        left = deadline - time.monotonic()
        if left <= 0:
            waited = int(config.timeout_s) + 1
            raise RendezvousFailed(
                f"torch.distributed.DistStoreError: Timed out after {waited} seconds waiting for clients. "
                f"{1 + len(joined)}/{config.world_size} clients joined."
            )
        sources: list[Any] = [store, *callers]
        for ready in select.select(sources, [], [], left)[0]:
            if ready is store:
                callers.append(Channel(store.accept()[0]))
                continue
            hello = _hello(ready)
            callers.remove(ready)
            if hello and hello.get("world_size") == config.world_size:
                joined[hello["rank"]] = (ready, (ready.sock.getpeername()[0].removeprefix("::ffff:"), hello["port"]))
            else:
                ready.close()  # somebody looked whether the port is open, or a rank of another world
    for rank in sorted(joined):
        caller, address = joined[rank]
        group.held.append(caller.sock)
        try:
            sock = socket.create_connection(address)
        except OSError as exc:
            raise RendezvousFailed(f"RuntimeError: Gloo connectFullMesh failed with [{address}]: {exc}") from exc
        group.peers.append((address, _channel(sock)))


def _hello(caller: Channel) -> dict[str, Any] | None:
    try:
        hello = caller.receive()
    except (Closed, ValueError):
        return None
    return hello if isinstance(hello, dict) and {"rank", "port"} <= hello.keys() else None


def _follow(group: Group, config: EngineConfig, rank: int, address: tuple[str, int]) -> None:
    store = _connect(config, address)
    mine = socket.create_server((store.getsockname()[0], 0), family=store.family)
    hello = {"rank": rank, "world_size": config.world_size, "port": mine.getsockname()[1]}
    caller = Channel(store)
    with contextlib.suppress(Closed):
        caller.send(hello)
    group.held += [store, mine]
    group.leader = _channel(mine.accept()[0])


def _connect(config: EngineConfig, address: tuple[str, int]) -> socket.socket:
    started = time.monotonic()
    said = False
    while True:
        left = started + config.timeout_s - time.monotonic()
        if left <= 0:
            where = f"({address[0]}, {address[1]})"
            text = f"The client socket has timed out after {int(config.timeout_s * 1000)}ms while trying to connect to {where}."
            log.c10d("E", "socket.cpp:1028", text)
            raise RendezvousFailed(f"torch.distributed.DistNetworkError: {text}")
        try:
            return socket.create_connection(address, min(CONNECT_TIMEOUT_S, left))
        except OSError:
            time.sleep(min(RETRY_S, left))
        if not said and time.monotonic() - started > FIRST_WORD_S:
            said = True
            log.c10d(
                "W",
                "TCPStore.cpp:340",
                f"TCP client failed to connect/validate to host {address[0]}:{address[1]} - retrying (try=0, "
                f"timeout={int(config.timeout_s * 1000)}ms, delay=81954ms)",
            )


def _listen(port: int) -> socket.socket:
    """The store's socket, on every address and both families where the host has both."""
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise RendezvousFailed(address_in_use(port)) from exc
    try:
        return socket.create_server(("", port))
    except OSError as exc:
        raise RendezvousFailed(address_in_use(port)) from exc


def address_in_use(port: int) -> str:
    return (
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. "
        f"port: {port}, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"
    )


def _channel(sock: socket.socket) -> Channel:
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Channel(sock)
