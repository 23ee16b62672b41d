"""A port for a server that a test starts later."""

from __future__ import annotations

import random
import socket

# Below those that the kernel gives to connections (net.ipv4.ip_local_port_range begins at 32768): one of them may be free when
# it is asked for, and a connection's own a moment later.
FROM, TO = 12000, 32000
TRIES = 200


def free_port(address: str = "127.0.0.1") -> int:
    for _ in range(TRIES):
        port = random.randrange(FROM, TO)
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no port of {FROM} to {TO} is free at {address}")
