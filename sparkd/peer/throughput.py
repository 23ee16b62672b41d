"""How much the link carries between two daemons: plain TCP, opened for one measurement, bounded in time and bytes.

    asker                                                    peer
      │  listens on its link address, on a port for this once  │
      │  throughput: token, port, streams, seconds (signed)    │
      ├───────────────────────────────────────────────────────▶│
      │  each stream: its number, a proof by the cluster key   │
      │◀───────────────────────────────────────────────────────┤
      │  zeros, for that many seconds                          │
      │◀───────────────────────────────────────────────────────┤
      │  what was received is what counts                      │

Neither side copies the data: it is sent from one page-cached piece and thrown away by the kernel as it arrives.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import struct
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sparkd.host.clock import monotonic
from sparkd.model.errors import SparkdError

BYTES_MAX = 256 * 10**9  # of all streams: five seconds at 400 Gb/s
PIECE_BYTES = 1024 * 1024
CONNECT_MAX_S = 1.5  # for all streams to come
HEADER_MAX_S = 0.5  # for one stream to say who it is
SILENCE_MAX_S = 1.0  # a stream that moves nothing for so long has ended
PROOF_BYTES = 32
STRANGERS_MAX = 16  # connections that prove nothing, before the measurement is given up


@dataclass(frozen=True)
class Received:
    """What came in, from the first stream's word to the last byte."""

    total_bytes: int
    seconds: float
    streams: int

    @property
    def gbps(self) -> float:
        """Gigabits a second, 0 where nothing came."""
        return self.total_bytes * 8 / self.seconds / 1e9 if self.seconds > 0 else 0.0


# --- receiving -----------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    """A port of the kernel's choice on the link address. Raises SparkdError where this node does not have the address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as ear:
        try:
            ear.bind((address, 0))
            ear.listen(STRANGERS_MAX)
        except OSError as error:
            raise SparkdError(f"cannot listen on {address}: {error.strerror}", hint="sparkd doctor") from None
        ear.settimeout(0.1)
        yield ear


def receive(
    ear: socket.socket, proofs: Sequence[Collection[bytes]], *, peer: str, seconds: float, stop: threading.Event
) -> Received:
    """Count what the streams bring from the address `peer`. `proofs[n]`: what stream n may begin with. Blocks; ends within
    `seconds` + 4 s, or soon after `stop`. Raises SparkdError where not all streams come."""
    streams: dict[int, socket.socket] = {}
    began = 0.0
    try:
        strangers, until = 0, monotonic() + CONNECT_MAX_S
        while len(streams) < len(proofs):
            if stop.is_set() or monotonic() > until or strangers > STRANGERS_MAX:
                raise SparkdError(f"{len(streams)} of {len(proofs)} streams came")
            connection = _accepted(ear, peer)
            if connection is None:
                continue
            number = _proven(connection, proofs)
            if number is None or number in streams:
                strangers += 1
                connection.close()
                continue
            began = began or monotonic()
            streams[number] = connection
        deadline = began + seconds + SILENCE_MAX_S
        with ThreadPoolExecutor(len(streams)) as pool:
            counted = list(pool.map(lambda one: _count(one, deadline, stop), streams.values()))
    finally:
        for connection in streams.values():
            connection.close()
    ended = max(at for _, at in counted)
    return Received(sum(count for count, _ in counted), max(ended - began, 1e-6), len(streams))


def _accepted(ear: socket.socket, peer: str) -> socket.socket | None:
    try:
        connection, (address, _) = ear.accept()
    except TimeoutError:
        return None
    if address != peer:  # not waited for: it cannot take the peer's time
        connection.close()
        return None
    connection.settimeout(HEADER_MAX_S)
    return connection


def _proven(connection: socket.socket, proofs: Sequence[Collection[bytes]]) -> int | None:
    """The number of the stream, where it proves that it is one."""
    said = bytearray()
    until = monotonic() + HEADER_MAX_S
    try:
        while len(said) < 1 + PROOF_BYTES and monotonic() < until:
            part = connection.recv(1 + PROOF_BYTES - len(said))
            if not part:
                return None
            said += part
    except OSError:
        return None
    number, proof = said[0], bytes(said[1:])
    if number >= len(proofs) or not any(hmac.compare_digest(proof, right) for right in proofs[number]):
        return None
    return number


def _count(connection: socket.socket, deadline: float, stop: threading.Event) -> tuple[int, float]:
    """How many bytes came, and when the last one did."""
    _limit(connection, socket.SO_RCVTIMEO)
    nowhere = bytearray(PIECE_BYTES)  # never written to: MSG_TRUNC lets the kernel throw the data away (tcp(7))
    total, at = 0, monotonic()
    with contextlib.suppress(OSError):  # silence, or the peer broke it off: what came counts
        while total < BYTES_MAX and at < deadline and not stop.is_set():
            count = connection.recv_into(nowhere, PIECE_BYTES, socket.MSG_TRUNC)
            if not count:
                break
            total, at = total + count, monotonic()
    return total, at


# --- sending -------------------------------------------------------------------------------------


def send(source: str, to: str, port: int, proofs: Sequence[bytes], *, seconds: float, stop: threading.Event) -> int:
    """Send zeros for `seconds` over as many streams as there are proofs. Blocks; ends within `seconds` + 3 s, or
    soon after `stop`. Returns the bytes that the kernel took. Raises SparkdError where the asker cannot be reached."""
    streams: list[socket.socket] = []
    until = monotonic() + CONNECT_MAX_S
    piece = os.memfd_create("sparkd-throughput")
    try:
        os.truncate(piece, PIECE_BYTES)
        for _ in proofs:
            left_s = until - monotonic()
            if left_s <= 0 or stop.is_set():
                raise SparkdError(f"only {len(streams)} of {len(proofs)} streams to {to}:{port} came about")
            streams.append(socket.create_connection((to, port), left_s, (source, 0)))
        for number, (stream, proof) in enumerate(zip(streams, proofs, strict=True)):
            stream.sendall(bytes([number]) + proof)
        deadline = monotonic() + seconds
        with ThreadPoolExecutor(len(streams)) as pool:
            return sum(pool.map(lambda one: _pour(one, piece, deadline, BYTES_MAX // len(streams), stop), streams))
    except OSError as error:
        raise SparkdError(f"no stream to {to}:{port}: {error.strerror or error}") from None
    finally:
        for stream in streams:
            stream.close()
        os.close(piece)


def _pour(stream: socket.socket, piece: int, deadline: float, bytes_max: int, stop: threading.Event) -> int:
    _limit(stream, socket.SO_SNDTIMEO)
    total = 0
    with contextlib.suppress(OSError):  # the asker has enough, or has gone
        while total < bytes_max and monotonic() < deadline and not stop.is_set():
            total += os.sendfile(stream.fileno(), piece, 0, PIECE_BYTES)
        stream.shutdown(socket.SHUT_WR)
    return total


def _limit(connection: socket.socket, option: int) -> None:
    """A limit that the kernel keeps: Python's own would cost a second system call for each piece."""
    connection.settimeout(None)
    whole = int(SILENCE_MAX_S)
    connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", whole, int((SILENCE_MAX_S - whole) * 1e6)))
