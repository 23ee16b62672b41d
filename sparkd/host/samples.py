"""A small ring of samples on disk: how this node was in its last seconds, whatever ended it.

The file has a fixed size and fixed slots of 512 bytes, one sample each: a checksum, JSON, spaces, a newline. One slot is
written and synced at a time, in place: after a power cut at most the newest is torn, and a torn one is skipped.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from sparkd.host import clock
from sparkd.host.files import number, opened, text
from sparkd.host.link import SYSFS_NET
from sparkd.host.procfs import PROC
from sparkd.model.errors import SparkdError
from sparkd.model.outside import parsed

FILE = "samples.ring"  # in the state directory
SLOT_BYTES = 512
SLOTS = 128  # 64 KiB: 21 minutes at one sample every 10 s
LAYOUT = 1


@dataclass(frozen=True)
class Gpu:
    """None: `[N/A]`, which is not zero."""

    celsius: float | None = None
    watts: float | None = None
    percent: float | None = None  # utilisation
    mhz: float | None = None


@dataclass(frozen=True)
class Sample:
    """One moment. None: not known. Sizes are MiB, `at` is Unix time in seconds and only as true as the clock was."""

    at: float
    uptime_s: float
    boot_id: str
    phase: str
    epoch: int
    mark: str = ""  # "started", "stopped": the daemon's own life; "ended": the engine is gone and samples cease
    available_mib: int | None = None
    free_mib: int | None = None
    swap_free_mib: int | None = None
    swap_mib: int | None = None
    memory_stall: float | None = None  # PSI memory full avg10, per cent
    io_stall: float | None = None
    load: float | None = None
    carrier: bool | None = None
    carrier_changes: int | None = None
    running: int | None = None  # requests
    waiting: int | None = None
    tokens: int | None = None  # generated since the engine began
    gpu: Gpu | None = None


# --- taking one ----------------------------------------------------------------------------------


def take(
    boot_id: str, phase: str, epoch: int, *, interface: str = "", gpu: Gpu | None = None, mark: str = "",
    requests: tuple[int, int, int] | None = None, proc: Path = PROC, net: Path = SYSFS_NET,
) -> Sample:  # fmt: skip
    """The node now: some small files of /proc and /sys, about 0.1 ms. `requests`: running, waiting, generated tokens."""
    memory = _meminfo(proc / "meminfo")
    running, waiting, tokens = requests or (None, None, None)
    return Sample(
        at=round(time.time(), 1),
        uptime_s=round(clock.uptime_s(), 1),
        boot_id=boot_id,
        phase=phase,
        epoch=epoch,
        mark=mark,
        available_mib=memory.get("MemAvailable"),
        free_mib=memory.get("MemFree"),
        swap_free_mib=memory.get("SwapFree"),
        swap_mib=memory.get("SwapTotal"),
        memory_stall=_stall(proc / "pressure/memory"),
        io_stall=_stall(proc / "pressure/io"),
        load=_first_number(proc / "loadavg"),
        carrier=_flag(net / interface / "carrier") if interface else None,
        carrier_changes=number(net / interface / "carrier_changes") if interface else None,
        running=running,
        waiting=waiting,
        tokens=tokens,
        gpu=gpu,
    )


def _meminfo(path: Path) -> dict[str, int]:
    found = {}
    for line in text(path).splitlines():
        name, _, rest = line.partition(":")
        if name in ("MemFree", "MemAvailable", "SwapTotal", "SwapFree"):
            found[name] = int(rest.split()[0]) // 1024
    return found


def _stall(path: Path) -> float | None:
    """`full avg10` of one of /proc/pressure: the share of time in which everything waited."""
    for line in text(path).splitlines():
        if line.startswith("full avg10="):
            return _number(line.split()[1].removeprefix("avg10="))
    return None


def _first_number(path: Path) -> float | None:
    return _number((text(path).split() or [""])[0])


def _flag(path: Path) -> bool | None:
    """An interface that is down refuses to say."""
    value = number(path)
    return None if value is None else bool(value)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# --- the ring ------------------------------------------------------------------------------------


class Ring:
    """The file. One writer; anybody who may read it can."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = _newest(path) + 1

    def append(self, sample: Sample) -> None:
        """Write and sync one slot: call it in a thread, a busy disk may take seconds. Raises OSError."""
        known = {name: value for name, value in asdict(sample).items() if value not in (None, "")}
        record = json.dumps({"v": LAYOUT, "n": self._next, **known}, separators=(",", ":")).encode()
        line = b"%08x %s" % (zlib.crc32(record), record)
        if len(line) >= SLOT_BYTES:  # cannot happen with the fields of today
            raise OSError(f"a sample of {len(line)} bytes does not fit into {SLOT_BYTES}")
        descriptor = self._open()
        try:
            if os.fstat(descriptor).st_size != SLOTS * SLOT_BYTES:
                # Written once in full: afterwards a sync has no new blocks to enter into the file system's journal.
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, (b" " * (SLOT_BYTES - 1) + b"\n") * SLOTS, 0)
            os.pwrite(descriptor, line.ljust(SLOT_BYTES - 1) + b"\n", self._next % SLOTS * SLOT_BYTES)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        self._next += 1

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(self._path, flags, 0o600)
        except PermissionError:  # somebody else's file: root without CAP_DAC_OVERRIDE may only replace it
            self._path.unlink()
            return os.open(self._path, flags, 0o600)


def read(path: Path) -> list[Sample]:
    """Every whole sample, oldest first; none where there is no file yet. Raises SparkdError where it may not be read."""
    return [_sample(record) for _, record in _records(path)]


def of_boot(samples: Collection[Sample], boot_id: str) -> list[Sample]:
    """Ids are compared as the kernel and as the journal write them, with and without dashes."""
    wanted = boot_id.replace("-", "")
    return [one for one in samples if one.boot_id.replace("-", "") == wanted]


def _newest(path: Path) -> int:
    try:
        return max((number for number, _ in _records(path)), default=-1)
    except SparkdError:
        return -1


def _records(path: Path) -> list[tuple[int, dict[str, object]]]:
    try:
        with opened(path) as file:
            data = file.read(SLOTS * SLOT_BYTES)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SparkdError(f"cannot be read: {error.strerror}", where=str(path), hint="run it as root") from None
    found = []
    for start in range(0, len(data), SLOT_BYTES):
        try:
            checksum, line = data[start : start + SLOT_BYTES].rstrip().split(b" ", 1)
            record = parsed(line)
            if int(checksum, 16) == zlib.crc32(line) and record["v"] == LAYOUT:
                _sample(record)
                found.append((int(record["n"]), record))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue  # never written, or torn
    return sorted(found, key=lambda entry: entry[0])


def _sample(record: dict[str, object]) -> Sample:
    """Raises TypeError where a field is missing. What a newer version added is left out."""
    known = {name: value for name, value in record.items() if name in Sample.__dataclass_fields__}
    gpu = known.pop("gpu", None)
    parts = (
        {name: value for name, value in gpu.items() if name in Gpu.__dataclass_fields__}
        if isinstance(gpu, dict)
        else None
    )
    return Sample(**known, gpu=Gpu(**parts) if parts is not None else None)  # type: ignore[arg-type]
