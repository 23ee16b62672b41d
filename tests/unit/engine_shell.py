"""The container of these tests: a root file system with bash and little else, which runs anywhere Docker does."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparkd.engine.container import Docker
from sparkd.model.plan import ContainerSpec

IMAGE = "sparkd-test/shell:1"
PROGRAMS = ("bash", "sleep", "cat", "ls", "mkdir", "true")


@dataclass
class Engine:
    """A running dockerd: where it listens, and the process to stop or freeze."""

    url: str
    process: subprocess.Popen[bytes]

    def docker(self, timeout_s: float = 20) -> Docker:
        return Docker(self.url, timeout_s=timeout_s)


def shell_spec(name: str, **changes: object) -> ContainerSpec:
    """A container that these tests can run anywhere: no GPU, not privileged."""
    fields: dict[str, object] = {
        "name": name,
        "image": IMAGE,
        "runtime": "nvidia",  # unknown to this daemon, so left out
        "gpus": None,
        "network": "host",
        "ipc": "host",
        "privileged": False,
        "volumes": (),
        "command": ("sleep", "infinity"),
        "init": shutil.which("docker-init") is not None,
    }
    return ContainerSpec.model_validate(fields | changes)


def shell_image() -> bytes:
    """A root file system with bash and a few programs of this machine, as a tar."""
    stream, added = io.BytesIO(), set()
    with tarfile.open(fileobj=stream, mode="w") as tar:

        def add(source: Path, target: str) -> None:
            if target not in added:
                added.add(target)
                tar.add(source, arcname=target, recursive=False)

        for program in PROGRAMS:
            path = Path(shutil.which(program) or pytest.skip(f"{program} is not installed")).resolve()
            add(path, f"usr/bin/{program}")
            libraries = subprocess.run(["ldd", path], capture_output=True, text=True, timeout=10, check=False).stdout
            for library in re.findall(r"(/[^ )]+)", libraries):
                add(Path(library).resolve(), library.lstrip("/"))
        for directory in ("tmp", "proc", "sys", "dev", "etc", "workspace", "bin"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            tar.addfile(entry)
        entry = tarfile.TarInfo("bin/sh")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/usr/bin/bash"
        tar.addfile(entry)
    return stream.getvalue()
