"""HTTP with an end: whatever the other side does, an answer comes within its time and its size, or an error does.

httpx limits each read, not the whole: a server that sends a byte a minute would hold it for ever. Nothing is
unpacked (a small body can stand for gigabytes), and no redirect is followed.
"""

from __future__ import annotations

import threading
import time
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

BODY_MAX_BYTES = 8 << 20  # an answer of ours has some KB, /metrics some 100
READ_MIN_S = 0.001


@dataclass(frozen=True)
class Fetched:
    """What came: the text is UTF-8 whatever the server calls it."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


def client(base_url: str, headers: Mapping[str, str]) -> httpx.Client:
    # No TLS on this node's own endpoint: without `verify` the certificates of the whole web stay out of memory.
    transport = httpx.HTTPTransport(verify=False, trust_env=False)
    transport._pool = httpcore.ConnectionPool(network_backend=_Backend(), max_connections=10, keepalive_expiry=5.0)
    return httpx.Client(
        base_url=base_url, headers=headers, trust_env=False, follow_redirects=False, transport=transport
    )


def fetch(
    http: httpx.Client,
    request: httpx.Request,
    *,
    timeout_s: float,
    connect_max_s: float,
    max_bytes: int = BODY_MAX_BYTES,
) -> Fetched:
    """Within `timeout_s` for everything together. Raises httpx.HTTPError: also where more than `max_bytes` come."""
    request.headers["accept-encoding"] = "identity"
    request.extensions["timeout"] = httpx.Timeout(timeout_s, connect=min(connect_max_s, timeout_s)).as_dict()
    _here.deadline = time.monotonic() + timeout_s
    response = http.send(request, stream=True)
    try:
        body = bytearray()
        for part in response.iter_raw():
            body += part
            if len(body) > max_bytes:
                raise httpx.ReadError(f"the answer has more than {max_bytes} bytes", request=request)
        return Fetched(response.status_code, bytes(body))
    finally:
        response.close()


class _Here(threading.local):
    deadline = 0.0  # time.monotonic() at which the request of this thread ends


_here = _Here()


class _Backend(httpcore.SyncBackend):
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(super().connect_tcp(host, port, timeout, local_address, socket_options))


class _Stream(httpcore.NetworkStream):
    """A connection on which no read or write lasts beyond the request's end."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def get_extra_info(self, info: str) -> typing.Any:
        return self._inner.get_extra_info(info)


def _left(timeout: float | None, error: type[Exception]) -> float:
    left_s = _here.deadline - time.monotonic()
    if left_s <= 0:
        raise error("the request's time is over")
    return max(READ_MIN_S, left_s if timeout is None else min(timeout, left_s))
