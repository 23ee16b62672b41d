"""This node's part of the engine, seen from outside while there is doubt whether it works: vitals.

One look costs a pass over /proc and a few small files; rates come from two looks. The GPU is not asked here: what the sampler
last heard of it counts, as long as it heard it after the doubt began.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sparkd.agent import launching
from sparkd.host import gpu, processes, procfs, samples, traffic
from sparkd.host.clock import monotonic
from sparkd.host.processes import EngineProcess
from sparkd.model.report import Vitals

GpuReading = tuple[samples.Gpu, float]  # and when it was taken, on our monotonic clock

DRIVER = Path("/proc/driver/nvidia")
# Programs that the engine's JIT compilers run (FlashInfer, Triton, TileLang, DeepGEMM, torch.compile), by their comm.
COMPILERS = frozenset(
    {"nvcc", "cicc", "ptxas", "fatbinary", "cudafe++", "nvlink", "ninja", "make", "cmake"}
    | {"cc1", "cc1plus", "gcc", "g++", "cc", "c++", "clang", "clang++", "as", "ld", "lld", "collect2", "lto1", "tcc"}
)
CROSS_NAMED = ("aarch64-linux-g", "x86_64-linux-gn")  # gcc under its full name, cut at 15 bytes
COMPILE_WORKER = "compile_worker"  # torch/_inductor/compile_worker: a pool that mostly waits

Ticks = dict[tuple[int, int], int]  # (pid, start ticks) -> CPU time in clock ticks


@dataclass(frozen=True)
class Look:
    """One look at this node. CPU times are of processes that lived at that moment."""

    at: float
    titled: Ticks = field(default_factory=dict)
    compilers: Ticks = field(default_factory=dict)
    names: dict[tuple[int, int], str] = field(default_factory=dict)  # of the compilers
    stopped: str = ""
    link_bytes: int | None = None


def look(found: Iterable[EngineProcess], interface: str, now: float) -> Look:
    """The processes of one launch, as they are, and the link's counters."""
    titled: Ticks = {}
    compilers: Ticks = {}
    names: dict[tuple[int, int], str] = {}
    stopped = ""
    for process in found:
        about = procfs.stat(process.pid)
        if about is None or about.dead or about.start_ticks != process.start_ticks:
            continue
        key = (process.pid, process.start_ticks)
        if processes.is_titled(process):
            titled[key] = about.cpu_ticks
            stopped = stopped or (process.name if about.state in "Tt" else "")
        elif is_compiler(process):
            compilers[key] = about.cpu_ticks
            names[key] = process.comm
    return Look(now, titled, compilers, names, stopped, traffic.link_bytes(interface))


def is_compiler(process: EngineProcess) -> bool:
    named = process.comm in COMPILERS or process.comm.startswith(CROSS_NAMED)
    return named or any(COMPILE_WORKER in argument for argument in process.argv)


def vitals(before: Look | None, after: Look, *, has_gpu: bool, heard: samples.Gpu | None, ticks_per_s: int) -> Vitals:
    """Pure. What two looks tell; rates are unknown with one alone."""
    took_s = after.at - before.at if before is not None else 0.0
    cpu = link = compiling = None
    if before is not None and took_s > 0:
        cpu = round(100 * _spent(before.titled, after.titled) / ticks_per_s / took_s, 1)
        burning = [key for key, ticks in after.compilers.items() if ticks > before.compilers.get(key, 0)]
        compiling = after.names[max(burning, key=lambda key: after.compilers[key])] if burning else ""
        if before.link_bytes is not None and after.link_bytes is not None:
            link = max(0, int((after.link_bytes - before.link_bytes) / took_s))
    return Vitals(
        cpu_percent=cpu,
        processes=len(after.titled),
        stopped=after.stopped,
        compiling=compiling,
        link_bytes_s=link,
        gpu=has_gpu,
        gpu_watts=heard.watts if heard else None,
        gpu_percent=heard.percent if heard else None,
    )


def _spent(before: Ticks, after: Ticks) -> int:
    """CPU time of those that live: one that is new has all of its own, one that is gone took its with it."""
    return sum(max(0, ticks - before.get(key, 0)) for key, ticks in after.items())


def has_gpu(driver: Path = DRIVER) -> bool:
    return driver.exists() or shutil.which(gpu.SMI) is not None


class VitalSigns:
    """Looks again and again while there is doubt. `heard` gives the sampler's last reading of the GPU."""

    def __init__(self, launch_id: str, interface: str, heard: Callable[[], GpuReading | None]) -> None:
        self._id, self._interface, self._heard = launch_id, interface, heard
        self._before: Look | None = None
        self._began = 0.0

    def forget(self) -> None:
        """The doubt is over: what was seen before it tells nothing of the next."""
        self._before = None

    def take(self) -> Vitals:
        """Blocking, for a thread; some 10 ms."""
        now = monotonic()
        if self._before is None:
            self._began = now
        before, self._before = self._before, look(launching.living(self._id), self._interface, now)
        heard = self._heard()
        fresh = heard[0] if heard is not None and heard[1] >= self._began else None
        return vitals(before, self._before, has_gpu=has_gpu(), heard=fresh, ticks_per_s=os.sysconf("SC_CLK_TCK"))
