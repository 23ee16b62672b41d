"""Small files: those of /proc, /sys and /etc, read in one piece, and our own, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

TEXT_MAX_BYTES = 1 << 20  # no file that is read in one piece is larger


def opened(path: Path) -> BinaryIO:
    """A regular file, for reading. Raises OSError for everything else, at once: a FIFO in its place would wait for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a file", str(path))
    return os.fdopen(descriptor, "rb")


def whole(path: Path, max_bytes: int = TEXT_MAX_BYTES) -> bytes:
    """A regular file in one piece. Raises OSError, also where it is larger: the end of a file may be what matters."""
    with opened(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"is larger than {max_bytes} bytes", str(path))
    return content


def text(path: Path, max_bytes: int = TEXT_MAX_BYTES) -> str:
    """Without the blanks around it. Empty for a missing file, and for what the kernel or its driver refuses to tell."""
    try:
        with opened(path) as file:
            return file.read(max_bytes).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def number(path: Path) -> int | None:
    """None for a missing file, for what the kernel refuses (`carrier` of an interface that is down), for other text."""
    try:
        return int(text(path, 64))
    except ValueError:
        return None


def tail(path: Path, max_bytes: int) -> str:
    """The last whole lines of a file: a line that does not fit is left out, not cut. Raises OSError."""
    with opened(path) as file:
        size = file.seek(0, os.SEEK_END)
        begin = max(0, size - max_bytes)
        file.seek(begin)
        data = file.read(max_bytes)
    return (data.partition(b"\n")[2] if begin else data).decode("utf-8", "replace")


def append_whole(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """All of it at the end of the file, or nothing: half a line would spoil the next one. Raises OSError."""
    descriptor = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, mode
    )
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):  # a FIFO would hold the daemon's only loop
            raise OSError(errno.EINVAL, "is not a file", str(path))
        size = status.st_size
        try:
            written = os.write(descriptor, data)
            if written < len(data):  # the disk is full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Write beside, sync, rename, sync the directory. Raises OSError (a full disk, say) with the old file untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)  # of a writer that was killed, or a link that somebody put there
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            beside.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
