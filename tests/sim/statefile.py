"""What becomes of the state file between two lives of the daemon, read as agent/store.py reads it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sparkd.model.report import Saved

if TYPE_CHECKING:
    from sim.truth import Host
    from sim.world import World

FATES = ("kept", "lost", "truncated", "older", "future", "newer", "alien")
FAR = 1000  # epochs ahead


def load(world: World, host: Host) -> Saved | None:
    """What the daemon gets; the file is afterwards what it was read from."""
    fate, host.fate = host.fate, "kept"
    if fate != "kept":
        host.disk = _changed(host, fate)
    return host.disk


def _changed(host: Host, fate: str) -> Saved | None:
    """lost: no file. truncated: half of it. older: a backup was put back. future: from a cluster that is far ahead.
    newer: a later sparkd wrote it, and said more. alien: it holds what this version has no word for."""
    if host.disk is None or fate == "lost":
        return None
    if fate == "older":
        return host.rng.choice(list(host.saves)) if host.saves else None
    text = host.disk.model_dump_json(indent=1)
    if fate == "truncated":
        return _read(text[: host.rng.randrange(len(text) - 1)])
    content: dict[str, Any] = json.loads(text)
    if fate == "future":
        content["epoch"] += FAR
        if host.rng.random() < 0.5 and content["launch_epoch"] is not None:
            content["launch_epoch"] += FAR
    elif fate == "newer":
        content |= {"schema": 9, "lease": {"holder": "spark1"}}
    else:
        content["gate"] = "ajar"
    return _read(json.dumps(content))


def _read(text: str) -> Saved | None:
    try:
        return Saved.model_validate_json(text)
    except ValidationError:
        return None  # set aside as corrupt, and told
