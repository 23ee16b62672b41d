"""Files in and out of a container are tar streams; this is the tar, without the daemon. Pure."""

from __future__ import annotations

import base64
import binascii
import io
import posixpath
import stat
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass

from sparkd.model.outside import parsed

_GO_MODE_DIR, _GO_MODE_SYMLINK = 1 << 31, 1 << 27  # Go's os.FileMode, which Docker puts into the header


@dataclass(frozen=True)
class PathStat:
    """What the daemon says about one path inside a container."""

    name: str
    size: int
    mode: int  # permission bits
    is_directory: bool
    link_target: str  # empty where it is not a symbolic link


def parse_stat(header: str) -> PathStat | None:
    """The `X-Docker-Container-Path-Stat` header: base64 of JSON. None where it is not that."""
    try:
        raw = parsed(base64.b64decode(header))
        mode = int(raw["mode"])
        return PathStat(
            name=raw["name"],
            size=int(raw["size"]),
            mode=stat.S_IMODE(mode & 0o777),
            is_directory=bool(mode & _GO_MODE_DIR),
            link_target=raw.get("linkTarget", "") if mode & _GO_MODE_SYMLINK else "",
        )
    except (binascii.Error, ValueError, KeyError, TypeError):
        return None


def pack(name: str, data: bytes, mode: int, *, directories: Iterable[str] = ()) -> bytes:
    """A tar with one file, owned by root, and the directories that have to be made for it (outermost first)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for directory in directories:
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(data), mode
        tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def unpack_one(stream: bytes) -> bytes | None:
    """The first regular file of a tar; None where there is none, or the tar is cut short."""
    try:
        with tarfile.open(fileobj=io.BytesIO(stream), mode="r:") as tar:
            for entry in tar:
                if entry.isreg():
                    source = tar.extractfile(entry)
                    data = source.read() if source is not None else b""
                    return data if len(data) == entry.size else None
    except (tarfile.TarError, EOFError):
        return None
    return None


def missing_directories(directory: str, existing: str) -> list[str]:
    """Which directories to make below `existing` so that `directory` is there, relative to it, outermost first."""
    relative = posixpath.relpath(directory, existing)
    if relative == ".":
        return []
    made: list[str] = []
    for part in relative.split("/"):
        made.append(posixpath.join(made[-1], part) if made else part)
    return made
