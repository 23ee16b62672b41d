"""CDI specs: the files by which a container gets its GPU where Docker or the NVIDIA runtime works in that way.

They name the driver's libraries with their version, so one that was written before a driver update leads nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

DIRECTORIES = (Path("/etc/cdi"), Path("/var/run/cdi"))
RUNTIME_CONFIG = Path("/etc/nvidia-container-runtime/config.toml")
_SPEC_MAX_BYTES = 4 << 20

# Read by lines, JSON and YAML alike: a YAML parser would take longer for these thousands of lines than all other checks.
_KIND = re.compile(r'(?:^|[{,])\s*"?kind"?\s*:\s*"?([\w./-]+)', re.MULTILINE)
_HOST_PATH = re.compile(r'"?hostPath"?\s*:\s*"?(/[^"\s,]+)')
_MODE = re.compile(r'^\s*mode\s*=\s*"(\w+)"', re.MULTILINE)


@dataclass(frozen=True)
class CdiSpec:
    """`missing` are host paths that it names and that are not there. An empty `kind` means: this is no spec."""

    path: Path
    kind: str
    paths: int
    missing: tuple[str, ...]


def specs(directories: Iterable[Path] = DIRECTORIES, root: Path = Path("/")) -> tuple[CdiSpec, ...]:
    """Every spec file. `root` is put before the paths that they name. Raises PermissionError."""
    return tuple(_spec(path, root) for directory in directories for path in _files(directory))


def runtime_mode(path: Path = RUNTIME_CONFIG) -> str:
    """How the NVIDIA runtime injects the GPU: "auto", "legacy", "cdi", "jit-cdi"; empty where it does not say."""
    try:
        found = _MODE.search(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return found.group(1) if found else ""


def _files(directory: Path) -> Iterator[Path]:
    try:
        names = sorted(directory.iterdir())
    except FileNotFoundError:
        return
    yield from (path for path in names if path.suffix in (".yaml", ".yml", ".json"))


def _spec(path: Path, root: Path) -> CdiSpec:
    with path.open("rb") as file:
        text = file.read(_SPEC_MAX_BYTES).decode("utf-8", "replace")
    kind = _KIND.search(text)
    paths = sorted(set(_HOST_PATH.findall(text)))
    missing = tuple(each for each in paths if not (root / each.lstrip("/")).exists())
    return CdiSpec(path, kind.group(1) if kind else "", len(paths), missing)
