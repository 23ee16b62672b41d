"""A cgroup per node, in every hierarchy of the host (v1, hybrid or v2): it finds each process of a node, even
when all records are gone, and freezes it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .host import LabError


@dataclass(frozen=True)
class Hierarchy:
    root: Path
    v2: bool
    controllers: frozenset[str]  # v1 only: which ones are mounted here


def hierarchies() -> list[Hierarchy]:
    """Every cgroup hierarchy mounted below /sys/fs/cgroup."""
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options = line.split()[:4]
        if kind in ("cgroup", "cgroup2") and where.startswith("/sys/fs/cgroup"):
            found.append(Hierarchy(Path(where), kind == "cgroup2", frozenset(options.split(","))))
    if not found:
        raise LabError("no cgroup file system is mounted below /sys/fs/cgroup")
    return found


@dataclass(frozen=True)
class Group:
    """The same path in every hierarchy. `path` is relative to their roots: `sparkd-lab/spark1`."""

    path: str

    def make(self) -> None:
        for hierarchy in hierarchies():
            directory = hierarchy.root
            for part in Path(self.path).parts:
                above, directory = directory, directory / part
                directory.mkdir(exist_ok=True)
                if hierarchy.v2:
                    _delegate_controllers(above, directory)
                elif "cpuset" in hierarchy.controllers:  # empty files here would refuse every process
                    for name in ("cpuset.cpus", "cpuset.mems"):
                        (directory / name).write_text((above / name).read_text())

    def entered(self, argv: Sequence[str], *, leaf: str = "", freezable: bool = True) -> list[str]:
        """`argv`, wrapped so that it runs in this group: the shell moves itself, then becomes the command.

        `leaf` names a child group for v2 hierarchies, whose inner groups may hold no processes.
        """
        doors = []
        for hierarchy in hierarchies():
            if "freezer" in hierarchy.controllers and not freezable:
                continue
            directory = hierarchy.root / self.path
            if hierarchy.v2 and leaf:
                directory /= leaf
                directory.mkdir(exist_ok=True)
            doors.append(str(directory / "cgroup.procs"))
        enter = 'while [ "$1" != -- ]; do echo 0 >"$1" || exit 125; shift; done; shift; exec "$@"'
        return ["/bin/sh", "-c", enter, "enter", *doors, "--", *argv]

    def pids(self) -> set[int]:
        """Every process in the group or below it."""
        found: set[int] = set()
        for hierarchy in hierarchies():
            for directory, _, _ in os.walk(hierarchy.root / self.path):
                with contextlib.suppress(OSError):
                    found.update(int(pid) for pid in (Path(directory) / "cgroup.procs").read_text().split())
        return found - {0}

    def freeze(self, frozen: bool) -> None:
        """Stop, or let run again, every process at once. The node's kernel side still answers a ping."""
        mounted = hierarchies()
        v1 = [hierarchy for hierarchy in mounted if "freezer" in hierarchy.controllers]
        for hierarchy in v1 or mounted:
            directory = hierarchy.root / self.path
            if not directory.exists():
                continue
            if v1:
                (directory / "freezer.state").write_text("FROZEN" if frozen else "THAWED")
            elif hierarchy.v2:
                (directory / "cgroup.freeze").write_text("1" if frozen else "0")

    def kill(self, limit_s: float = 20) -> None:
        """SIGKILL until nothing is left. Raises LabError where something will not die within `limit_s`."""
        self.freeze(False)  # a process frozen by v1 would not notice
        deadline = time.monotonic() + limit_s
        while pids := self.pids():
            if time.monotonic() > deadline:
                raise LabError(f"processes of {self.path} do not die: {sorted(pids)}")
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def remove(self) -> None:
        for hierarchy in hierarchies():
            for directory, _, _ in os.walk(hierarchy.root / self.path, topdown=False):
                _rmdir(Path(directory))


def _delegate_controllers(above: Path, directory: Path) -> None:
    """v2: pass on to `directory` what `above` may have; the root of the hierarchy is the host's own business."""
    if above in [hierarchy.root for hierarchy in hierarchies()]:
        return
    for controller in (above / "cgroup.controllers").read_text().split():
        with contextlib.suppress(OSError):
            (above / "cgroup.subtree_control").write_text(f"+{controller}")


def _rmdir(directory: Path, limit_s: float = 5) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return directory.rmdir()
        except FileNotFoundError:
            return None
        except OSError as error:  # the kernel empties a group a moment after its last process
            if time.monotonic() > deadline:
                raise LabError(f"{directory}: {error.strerror}") from error
            time.sleep(0.05)
