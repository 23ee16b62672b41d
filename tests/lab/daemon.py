"""What the daemon of a node says, asked from outside the node: no process is started for it, so that looking disturbs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparkd.agent import local
from sparkd.model.errors import SparkdError

from .machine import Node

SOCKET = "run/sparkd/sparkd.sock"
ANSWERS_MAX_S = 5.0


def status(node: Node) -> dict[str, Any]:
    """As `sparkd status --json` gives it; empty where no daemon answers."""
    try:
        return local.ask(Path(f"/proc/{node.leader()}/root/{SOCKET}"), "status", timeout_s=ANSWERS_MAX_S)
    except (SparkdError, OSError):
        return {}
