"""The events as they lie on disk: one JSON object a line. What somebody or a full disk made of a line costs that line only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparkd.host.files import tail
from sparkd.model.outside import parsed

Record = dict[str, Any]
SHAPE = {"at": str, "id": str, "says": str, "epoch": int, "phase": str}  # what readers rely on


def read(path: Path, max_bytes: int) -> list[Record]:
    """The last ones, oldest first. Raises OSError."""
    found = [_record(line) for line in tail(path, max_bytes).split("\n")]
    return [record for record in found if record is not None]


def _record(line: str) -> Record | None:
    try:
        record = parsed(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not all(isinstance(record.get(key), kind) for key, kind in SHAPE.items()):
        return None
    return record
