"""What the daemon of a node says, asked from outside the node: no process is started for it, so that looking disturbs nothing."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

from .machine import Node

SOCKET = "run/sparkd/sparkd.sock"
ANSWERS_MAX_S = 5.0


def status(node: Node) -> dict[str, Any]:
    """As `sparkd status --json` gives it; empty where no daemon answers."""
    leader = node.leader()
    with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWERS_MAX_S)
        connection.connect(f"/proc/{leader}/root/{SOCKET}")
        connection.sendall(b'{"verb": "status"}\n')
        with connection.makefile() as lines:
            told: dict[str, Any] = json.loads(lines.readline())
        return told if "phase" in told else {}
    return {}
