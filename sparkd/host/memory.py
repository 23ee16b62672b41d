"""The host's memory, which on a GB10 is the GPU's too, and giving the page cache back.

CUDA's idea of free memory on unified memory is the kernel's MemFree in many builds, so page cache counts as used there:
4.75 of 119.67 GiB free with 110 GiB of cache, 116 after dropping it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from sparkd.model.errors import SparkdError

MIB, GIB = 2**20, 2**30
MEMINFO = Path("/proc/meminfo")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
PAGES_DENTRIES_INODES = "3\n"  # an inode that stays cached keeps its pages' bookkeeping: free those too


@dataclass(frozen=True)
class Memory:
    """/proc/meminfo, in bytes. CMA figures are None where the kernel has no contiguous memory area."""

    total: int
    free: int
    available: int
    cached: int
    buffers: int
    shmem: int
    swap_total: int
    swap_free: int
    cma_total: int | None = None
    cma_free: int | None = None


@dataclass
class CacheDrop:
    """The page cache was dropped; `seconds` includes writing dirty pages out."""

    before: Memory
    after: Memory
    seconds: float

    @property
    def gained_bytes(self) -> int:
        """How much MemFree grew. Negative when something else took more meanwhile."""
        return self.after.free - self.before.free


def read_memory(path: Path = MEMINFO) -> Memory:
    """Raises SparkdError when the file cannot be read or lacks a field that every kernel of ours has."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise SparkdError(f"cannot read it: {error.strerror}", where=str(path)) from None
    fields: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            fields[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    try:
        return Memory(
            total=fields["MemTotal"],
            free=fields["MemFree"],
            available=fields["MemAvailable"],
            cached=fields["Cached"],
            buffers=fields["Buffers"],
            shmem=fields["Shmem"],
            swap_total=fields["SwapTotal"],
            swap_free=fields["SwapFree"],
            cma_total=fields.get("CmaTotal"),
            cma_free=fields.get("CmaFree"),
        )
    except KeyError as missing:
        raise SparkdError(f"has no {missing.args[0]}", where=str(path)) from None


def drop_page_cache(path: Path = DROP_CACHES, meminfo: Path = MEMINFO) -> CacheDrop:
    """Writes dirty pages out, drops clean ones, and measures what came back.

    Acts on the whole machine, loses nothing but warmth. Takes seconds when much is dirty: call it in a thread.
    Raises SparkdError with a hint when this process may not do it.
    """
    before = read_memory(meminfo)
    began = time.monotonic()
    os.sync()  # dirty pages cannot be dropped
    try:
        with path.open("w", encoding="ascii") as file:
            file.write(PAGES_DENTRIES_INODES)
    except OSError as error:
        raise SparkdError(
            f"cannot drop the page cache: {error.strerror}",
            where=str(path),
            hint="run as root; in a unit with ProtectKernelTunables=yes add ReadWritePaths=-/proc/sys/vm/drop_caches",
        ) from None
    return CacheDrop(before=before, after=read_memory(meminfo), seconds=time.monotonic() - began)
