"""How much room a file system has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sparkd.model.errors import SparkdError


@dataclass(frozen=True)
class Room:
    """Of the file system that holds `path`; `free_bytes` is what a program without privileges may still take."""

    path: Path
    total_bytes: int
    free_bytes: int

    @property
    def used_share(self) -> float:
        return 1 - self.free_bytes / self.total_bytes if self.total_bytes else 0.0


def room(path: Path) -> Room:
    """Raises SparkdError where there is no such path, or it is not ours to look at."""
    try:
        about = os.statvfs(path)
    except OSError as error:
        raise SparkdError(f"cannot look at it: {error.strerror}", where=str(path)) from None
    return Room(path, about.f_blocks * about.f_frsize, about.f_bavail * about.f_frsize)
