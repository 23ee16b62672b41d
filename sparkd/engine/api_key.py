"""The key that clients must show: read from the node's own file, sent as a header, staged as a file, never shown."""

from __future__ import annotations

from pathlib import Path

from sparkd.host.files import whole
from sparkd.model.errors import SparkdError

FILE_MAX_BYTES = 4096


def read(path: Path) -> str:
    """Raises SparkdError, which has nothing of the content. What no header can carry would fail later, and worse."""
    try:
        content = whole(path, FILE_MAX_BYTES)
    except OSError as error:
        raise SparkdError(f"the API key file {path} cannot be read: {error.strerror}") from None
    key = content.strip()
    if not key:
        raise SparkdError(f"the API key file {path} is empty")
    if not all(0x21 <= byte <= 0x7E for byte in key):
        raise SparkdError(f"the API key file {path} must hold one word of printable ASCII")
    return key.decode("ascii")
