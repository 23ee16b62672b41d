"""The GPU: its kernel driver as the kernel names it, what is installed of it, and what nvidia-smi says.

`driver_version` and `installed` read files; `ask_gpus` runs nvidia-smi, which hangs where the driver does.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparkd.host.files import text
from sparkd.host.run import run
from sparkd.model.errors import SparkdError, UnreachableError

MODULE_VERSION = Path("/sys/module/nvidia/version")
DRIVER_VERSION = Path("/proc/driver/nvidia/version")
ROOT = Path("/")
LIBRARIES = ("usr/lib/aarch64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib")
NVIDIA_VENDOR = "0x10de"
DISPLAY_CLASS = "0x03"  # PCI classes of display controllers begin so; a network card of NVIDIA's has another
SMI = "nvidia-smi"
MODULES_MAX_BYTES = 16 << 20  # modules.dep of a distribution's kernel: about 1 MiB
MARGIN_S = 0.2  # over its own limit, until nvidia-smi counts as hung: a program in the driver cannot even be killed

# "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release Build  (dvs-builder@...)"
_NVRM = re.compile(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", re.MULTILINE)
_MODULE_FILE = re.compile(r"^(?:\S*/)?nvidia\.ko(?:\.\w+)?:", re.MULTILINE)  # in modules.dep
_LIBRARY = re.compile(r"libnvidia-ml\.so\.(\d+(?:\.\d+)+)")

FIELDS = (
    *("name", "driver_version", "temperature.gpu", "power.draw", "utilization.gpu", "clocks.gr", "clocks.sm"),
    *("pstate", "persistence_mode", "clocks_event_reasons.active"),
)


# --- the driver as installed ----------------------------------------------------------------------


def driver_version(module: Path = MODULE_VERSION, driver: Path = DRIVER_VERSION) -> str | None:
    """Version of the loaded NVIDIA driver ("580.95.05"), None where none is loaded."""
    if loaded := text(module):
        return loaded
    found = _NVRM.search(text(driver) + "\n")
    return found.group(1) if found else None


@dataclass(frozen=True)
class Installed:
    """What this host has of a GPU and its driver, loaded or not. Kernels by release, as `uname -r` names them."""

    devices: tuple[str, ...]  # PCI addresses of NVIDIA's display controllers
    kernels: dict[str, bool] = field(default_factory=dict)  # whether each has the module
    library_version: str | None = None  # that libnvidia-ml.so.1 leads to
    next_kernel: str | None = None  # that /boot/vmlinuz leads to: the one that the next boot takes

    @property
    def anything(self) -> bool:
        """Whether this looks like a machine with an NVIDIA GPU at all. (nvidia-smi alone may be anybody's script.)"""
        return bool(self.devices or self.library_version or any(self.kernels.values()))


def installed(root: Path = ROOT) -> Installed:
    """Needs no privilege. What cannot be read is as if it were not there."""
    return Installed(
        devices=tuple(_devices(root / "sys/bus/pci/devices")),
        kernels={path.name: _has_module(path) for path in sorted((root / "lib/modules").glob("*/")) if path.is_dir()},
        library_version=_library_version(root),
        next_kernel=_next_kernel(root / "boot"),
    )


def _devices(directory: Path) -> list[str]:
    paths = sorted(directory.glob("*")) if directory.is_dir() else []
    return [
        path.name
        for path in paths
        if text(path / "vendor") == NVIDIA_VENDOR and text(path / "class").startswith(DISPLAY_CLASS)
    ]


def _has_module(kernel: Path) -> bool:
    """By the kernel's own list: looking for the file among thousands takes a hundred times as long."""
    return bool(_MODULE_FILE.search(text(kernel / "modules.dep", MODULES_MAX_BYTES)))


def _library_version(root: Path) -> str | None:
    for directory in LIBRARIES:
        link = root / directory / "libnvidia-ml.so.1"
        try:
            found = _LIBRARY.fullmatch(link.resolve(strict=True).name)
        except OSError:
            continue
        if found:
            return found.group(1)
    return None


def _next_kernel(boot: Path) -> str | None:
    try:
        name = (boot / "vmlinuz").readlink().name
    except OSError:
        return None
    return name.removeprefix("vmlinuz-") if name.startswith("vmlinuz-") else None


# --- what nvidia-smi says -------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpu:
    """One GPU now. None is what nvidia-smi does not tell ("[N/A]"): absent, not zero."""

    name: str
    driver: str | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    utilisation: float | None = None  # per cent
    clock_mhz: float | None = None  # of the SMs, else of the graphics clock
    pstate: str | None = None
    persistent: bool | None = None
    reasons: int | None = None  # why the clock is not higher: bits of NVML's clocksEventReasons


@dataclass(frozen=True)
class GpuProcess:
    pid: int
    name: str
    used_bytes: int | None


class SmiHungError(UnreachableError):
    """nvidia-smi did not answer: the driver, or the GPU's firmware, hangs."""


class SmiFailedError(SparkdError):
    """nvidia-smi answered that it cannot: its own words."""


def ask_gpus(*, timeout_s: float) -> list[Gpu]:
    """One call for everything. Raises SmiHungError, SmiFailedError, or SparkdError where there is no nvidia-smi."""
    return parse_gpus(_ask((f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"), timeout_s))


def ask_processes(*, timeout_s: float) -> list[GpuProcess]:
    """Which processes hold memory of the GPU, as it sees them: host pids. Raises as `ask_gpus`."""
    options = ("--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader,nounits")
    return parse_processes(_ask(options, timeout_s))


def parse_gpus(text: str) -> list[Gpu]:
    """Pure. One GPU a line, the values of FIELDS."""
    found = []
    for line in text.splitlines():
        values = dict(zip(FIELDS, (value.strip() for value in line.split(",")), strict=False))
        if len(values) < len(FIELDS):
            continue
        clock = _number(values["clocks.sm"])
        persistence, reasons = _told(values["persistence_mode"]), _told(values["clocks_event_reasons.active"])
        found.append(
            Gpu(
                name=values["name"],
                driver=_told(values["driver_version"]),
                temperature_c=_number(values["temperature.gpu"]),
                power_w=_number(values["power.draw"]),
                utilisation=_number(values["utilization.gpu"]),
                clock_mhz=clock if clock is not None else _number(values["clocks.gr"]),
                pstate=_told(values["pstate"]),
                persistent=None if persistence is None else persistence.lower() in ("enabled", "on"),
                reasons=int(reasons, 16) if reasons and reasons.startswith("0x") else None,
            )
        )
    return found


def parse_processes(text: str) -> list[GpuProcess]:
    """Pure. `pid, process_name, used_memory [MiB]`; a name may hold commas."""
    found = []
    for line in text.splitlines():
        pid, _, rest = line.partition(",")
        name, _, used = rest.rpartition(",")
        if pid.strip().isdigit():
            mib = _number(used.strip())
            found.append(GpuProcess(int(pid), name.strip(), None if mib is None else int(mib) << 20))
    return found


def _ask(options: Sequence[str], timeout_s: float) -> str:
    """Its output. In a thread that is left behind if need be: a process that hangs in the driver survives SIGKILL."""
    if shutil.which(SMI) is None:
        raise SparkdError(f"there is no {SMI} on this host", hint="apt install nvidia-utils-580")
    answers: list[str | SparkdError] = []

    def call() -> None:
        try:
            ran = run([SMI, *options], timeout_s=timeout_s)
        except SparkdError as error:
            answers.append(SmiHungError(f"{SMI} {error.message}"))
            return
        said = (ran.stdout.strip() or ran.stderr.strip()).splitlines()
        answers.append(ran.stdout if ran.ok else SmiFailedError(said[0] if said else f"{SMI} {ran.ending}"))

    thread = threading.Thread(target=call, name=SMI, daemon=True)
    thread.start()
    thread.join(timeout_s + MARGIN_S)
    if not answers:
        raise SmiHungError(f"{SMI} did not answer within {timeout_s:g} s, and cannot be killed")
    if isinstance(answers[0], SparkdError):
        raise answers[0]
    return answers[0]


def _told(value: str) -> str | None:
    return None if not value or value.startswith("[") or value in ("N/A", "Not Supported") else value


def _number(value: str) -> float | None:
    told = _told(value)
    try:
        return float(told.split()[0]) if told else None
    except ValueError:
        return None
