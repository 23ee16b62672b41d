"""Shared memory segments that engines leave in /dev/shm, and who still uses them.

vLLM's processes share `psm_*` (multiprocessing.shared_memory, 25 to 250 MB each) and `sem.mp-*` (its semaphores). A
killed engine leaves them behind, and on unified memory they cost GPU memory.
"""

from __future__ import annotations

import logging
import math
import os
import re
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparkd.host import procfs

log = logging.getLogger(__name__)

SHM = Path("/dev/shm")
DELETED = " (deleted)"

# What CPython names them: "psm_" + secrets.token_hex(4), "sem." + "mp-" + 8 of tempfile's characters.
_NAME = re.compile(r"psm_[0-9a-f]{8}|sem\.mp-[a-z0-9_]{8}")

_SEMAPHORE = "sem."

File = tuple[int, int]  # (device, inode): what a file is, whatever it is called in whichever container


@dataclass(frozen=True)
class Segment:
    """`bytes` is the memory it occupies; `modified_at` is seconds since 1970; `users` map it or hold it open.

    `certain` is False when some process could not be looked into: `users` may then lack one, and the segment is
    nobody's leftover.
    """

    path: Path
    bytes: int
    modified_at: float
    inode: int
    users: tuple[int, ...]
    certain: bool = False
    device: int = 0
    uid: int = 0  # its owner

    @property
    def file(self) -> File:
        return (self.device, self.inode)


@dataclass(frozen=True)
class Users:
    """Who uses which of the files asked for. `blind` are processes that could not be looked into."""

    of: dict[File, tuple[int, ...]]
    blind: tuple[int, ...]


def segments(directory: Path = SHM, proc: Path = procfs.PROC) -> list[Segment]:
    """Every engine segment in the directory, in the order of names. What is named otherwise is not looked at."""
    found: dict[Path, os.stat_result] = {}
    try:
        names = sorted(path.name for path in directory.iterdir())
    except FileNotFoundError:
        return []
    for name in names:
        if _NAME.fullmatch(name) and (about := _plain_file(directory / name)):
            found[directory / name] = about
    users = file_users({(about.st_dev, about.st_ino) for about in found.values()}, {path.name for path in found}, proc)
    return [
        Segment(
            path=path,
            bytes=about.st_blocks * 512,
            modified_at=about.st_mtime,
            inode=about.st_ino,
            users=users.of.get((about.st_dev, about.st_ino), ()),
            certain=not users.blind and about.st_nlink == 1,  # with a second name it could be open unseen
            device=about.st_dev,
            uid=about.st_uid,
        )
        for path, about in found.items()
    ]


def leftovers(segments: Sequence[Segment], *, older_than: float = math.inf, uid: int = 0) -> list[Segment]:
    """Those that provably nobody uses and that were last written before `older_than` (seconds since 1970).

    Whoever acts on it sets no time: a clock that was set back would hide a dead engine's memory for as long. Only of
    user `uid`: the engine runs as root in its container, and other people's programs name theirs alike.
    """
    return [
        one for one in segments if one.certain and not one.users and one.uid == uid and one.modified_at < older_than
    ]


def remove(segments: Sequence[Segment], proc: Path = procfs.PROC) -> list[Segment]:
    """Unlinks segments that are still what they were and still unused; returns those that it removed.

    Users and inodes are read again immediately before, so that a segment which an engine has opened or made anew
    since it was listed stays.
    """
    users = file_users({one.file for one in segments}, {one.path.name for one in segments}, proc)
    removed = []
    for one in segments:
        about = _plain_file(one.path)
        same = about is not None and (about.st_dev, about.st_ino) == one.file
        if users.blind or users.of.get(one.file) or not one.certain or not same:
            log.info("%s stays: it is in use, not what it was, or its users cannot be known", one.path)
            continue
        try:
            one.path.unlink()
        except OSError as error:
            log.warning("%s stays: %s", one.path, error.strerror)
            continue
        removed.append(one)
    return removed


def file_users(files: Collection[File], names: Collection[str], proc: Path = procfs.PROC) -> Users:
    """Every process that maps one of `files` or holds it open; `names` are the names under which they can be open.

    A container with a /dev/shm of its own has the same names on another device, one that shares ours may have it
    mounted elsewhere: only device and inode decide. Names merely spare us asking every open file of the machine for
    its inode, which on a dead network mount would hang.
    """
    if not files:
        return Users({}, ())
    using: dict[File, set[int]] = {}
    blind = []
    pids = procfs.pids(proc)
    if 1 not in pids:  # /proc hides other users' processes from us (hidepid)
        blind.append(1)
    hints = _hints(names)
    for pid in pids:
        try:
            used = _mapped(pid, files, hints, proc) | _opened(pid, files, names, proc)
        except OSError as error:
            if not procfs.gone(error):
                blind.append(pid)
            continue
        for file in used:
            using.setdefault(file, set()).add(pid)
    return Users({file: tuple(sorted(pids_)) for file, pids_ in using.items()}, tuple(blind))


def _hints(names: Collection[str]) -> list[bytes]:
    """What stands in a /proc/PID/maps that is worth reading line by line: most processes map nothing from there.

    The maker of a semaphore maps it under the name that it had first: sem_open(3) of glibc makes "sem." and six random
    characters, gives it its own name by link(2) and removes the first one.
    """
    hints = [name.encode() for name in names if not name.startswith(_SEMAPHORE)]
    return hints if len(hints) == len(names) else [*hints, b"/" + _SEMAPHORE.encode()]


def _mapped(pid: int, files: Collection[File], hints: Sequence[bytes], proc: Path) -> set[File]:
    text = procfs.read(f"{proc}/{pid}/maps")
    if not any(hint in text for hint in hints):
        return set()
    used = set()
    for line in text.splitlines():
        fields = line.split(None, 5)  # address, permissions, offset, device, inode, path
        major, _, minor = fields[3].partition(b":")
        file = (os.makedev(int(major, 16), int(minor, 16)), int(fields[4]))
        if file in files:
            used.add(file)
    return used


def _opened(pid: int, files: Collection[File], names: Collection[str], proc: Path) -> set[File]:
    used = set()
    for path, target in procfs.descriptors(pid, proc):
        if target.removesuffix(DELETED).rpartition("/")[2] not in names:
            continue
        try:
            about = Path(path).stat()
        except OSError as error:
            if procfs.gone(error):
                continue
            raise
        if (about.st_dev, about.st_ino) in files:
            used.add((about.st_dev, about.st_ino))
    return used


def _plain_file(path: Path) -> os.stat_result | None:
    try:
        about = path.lstat()
    except OSError:
        return None
    return about if stat.S_ISREG(about.st_mode) else None
