"""The GPU's kernel driver, as the kernel names it: no nvidia-smi, no CUDA."""

from __future__ import annotations

import re
from pathlib import Path

MODULE_VERSION = Path("/sys/module/nvidia/version")
DRIVER_VERSION = Path("/proc/driver/nvidia/version")

# "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release Build  (dvs-builder@...)"
_NVRM = re.compile(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", re.MULTILINE)


def driver_version(module: Path = MODULE_VERSION, driver: Path = DRIVER_VERSION) -> str | None:
    """Version of the loaded NVIDIA driver ("580.95.05"), None where none is loaded."""
    text = _text(module)
    if text:
        return text
    found = _NVRM.search(_text(driver) + "\n")
    return found.group(1) if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
