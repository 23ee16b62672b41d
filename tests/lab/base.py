"""The cached layers that every node is stacked from, each named after a hash of what goes into it.

    debian-KEY/   a Debian tree from debootstrap                          about a minute, once
    wheels-KEY/   sparkd's Python dependencies as wheels for that tree    about a minute, once per dependency list
    python-KEY/   /opt/sparkd with those installed, laid over debian-KEY  some seconds

All are used read-only. A layer is made under another name and renamed when it is whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .host import (
    BUILD_PACKAGES,
    PACKAGES,
    SUITE,
    LabError,
    architecture,
    load_modules,
    locked,
    mirror,
    require_packages,
    run,
    say,
)
from .places import CHECKOUT, Places

NODE_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "kmod", "procps", "psmisc", "util-linux", "less"),
    *("iproute2", "iptables", "iputils-ping", "curl", "ca-certificates"),
    *("docker.io", "tini", "python3", "python3-venv"),
)
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# Published as source only; compiled against the node's own libsystemd, in a throw-away copy of the tree.
SOURCE_ONLY = ("pystemd", "sdnotify")
COMPILER_PACKAGES = ("gcc", "libc6-dev", "libsystemd-dev", "pkg-config", "python3-dev")
BUILD_BACKENDS = ("setuptools", "wheel", "cython")
PYTHON_VERSION = "3.11"  # of SUITE
WHEEL_PLATFORMS = {
    "amd64": ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64"),
    "arm64": ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_28_aarch64"),
}

# Before a long command: all that it starts and all that it mounts ends with it, and it ends with us, even killed.
CONTAINED = (
    *("setpriv", "--pdeathsig=KILL"),
    *("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child=KILL"),
)


@dataclass(frozen=True)
class Base:
    """What a node's root is stacked from, lowest first, and the wheels that `scripts/install` needs."""

    debian: Path
    python: Path
    wheels: Path

    @property
    def layers(self) -> tuple[Path, ...]:
        return (self.debian, self.python)


def build(places: Places) -> Base:
    """Every cached layer, made where it is missing. Raises LabError."""
    require_packages(PACKAGES)
    load_modules()
    dependencies = project_dependencies()
    machine = architecture()
    if machine not in WHEEL_PLATFORMS:
        raise LabError(f"{machine}: the lab knows {' and '.join(WHEEL_PLATFORMS)} only")
    with locked(places.cache / "build.lock"):
        debian = layer(places, "debian", [SUITE, machine, *NODE_PACKAGES], _make_debian)
        wheels = layer(
            places,
            "wheels",
            [debian.name, PYTHON_VERSION, *dependencies, *SOURCE_ONLY, *BUILD_BACKENDS],
            lambda target: _make_wheels(target, debian, dependencies, machine),
        )
        python = layer(
            places, "python", [debian.name, wheels.name], lambda target: _make_python(target, debian, wheels)
        )
    return Base(debian, python, wheels)


def project_dependencies(pyproject: Path = CHECKOUT / "pyproject.toml") -> list[str]:
    return sorted(tomllib.loads(pyproject.read_text())["project"]["dependencies"])


def layer(places: Places, kind: str, inputs: Sequence[str], make: Callable[[Path], None]) -> Path:
    """The cached directory `kind`-KEY, made where it is missing. The caller holds a lock."""
    key = hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:12]
    made = places.cache / f"{kind}-{key}"
    if not made.exists():
        partial = places.cache / f"{kind}-{key}.partial"
        if partial.exists():  # a build that was killed
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        make(partial)
        partial.rename(made)
    return made


def _make_debian(target: Path) -> None:
    source = mirror()
    say(f"building the nodes' Debian tree from {source} (about a minute, once)")
    options = ["--variant=minbase", f"--keyring={KEYRING}", f"--include={','.join(NODE_PACKAGES)}"]
    run([*CONTAINED, "debootstrap", *options, SUITE, target, source], timeout_s=1800)
    for waste in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(target / waste)
        (target / waste).mkdir()
    for identity in ("etc/hostname", "etc/resolv.conf", "etc/machine-id"):  # each node gets its own, at boot
        (target / identity).unlink(missing_ok=True)


def _make_wheels(target: Path, debian: Path, dependencies: Sequence[str], machine: str) -> None:
    say("fetching sparkd's Python dependencies (once)")
    require_packages(BUILD_PACKAGES)
    pip = host_pip()
    ready = [dependency for dependency in dependencies if not dependency.startswith(SOURCE_ONLY)]
    platforms = [f"--platform={platform}" for platform in WHEEL_PLATFORMS[machine]]
    wanted = [*ready, *BUILD_BACKENDS, "lxml"]  # lxml: pystemd's
    binary = [*platforms, "--only-binary=:all:", f"--python-version={PYTHON_VERSION}", "--implementation=cp"]
    run([*pip, "download", "-q", *binary, f"--dest={target}", *wanted], timeout_s=900)
    sources = [dependency for dependency in dependencies if dependency.startswith(SOURCE_ONLY)]
    unready = ["--no-deps", f"--no-binary={','.join(SOURCE_ONLY)}"]
    run([*pip, "download", "-q", *unready, f"--dest={target}/sources", *sources], timeout_s=900)

    say("compiling those that come as source (once)")
    in_copy(
        target / "workshop",
        debian,
        f"""
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -q
        apt-get install -y -q --no-install-recommends {" ".join(COMPILER_PACKAGES)}
        python3 -m venv /tmp/venv
        /tmp/venv/bin/pip install -q --upgrade --no-index --find-links=/mnt/shared {" ".join(BUILD_BACKENDS)}
        /tmp/venv/bin/pip wheel -q --no-index --no-deps --no-build-isolation -w /mnt/shared /mnt/shared/sources/*
        """,
        shared=target,
    )
    shutil.rmtree(target / "workshop")
    shutil.rmtree(target / "sources")


def _make_python(target: Path, debian: Path, wheels: Path) -> None:
    say("making /opt/sparkd with the dependencies")
    dependencies = " ".join(f"'{dependency}'" for dependency in project_dependencies())
    # At its final path and with the node's python: a virtual environment cannot be moved.
    in_copy(
        target / "copy",
        debian,
        f"""
        /usr/bin/python3 -m venv /opt/sparkd
        /opt/sparkd/bin/pip install -q --upgrade --no-index --find-links=/mnt/shared setuptools wheel {dependencies}
        """,
        shared=wheels,
    )
    (target / "copy/upper/opt").rename(target / "opt")
    shutil.rmtree(target / "copy")


def in_copy(scratch: Path, tree: Path, script: str, *, shared: Path) -> None:
    """Run `script` as root of a copy-on-write `tree`; what it changes is left in scratch/upper.

    The host's network, resolver and apt settings are in reach, and its directory `shared` as /mnt/shared.
    """
    for directory in ("upper/etc/apt/apt.conf.d", "work", "root"):
        (scratch / directory).mkdir(parents=True)
    shutil.copy("/etc/resolv.conf", scratch / "upper/etc/resolv.conf")  # follows a symbolic link
    settings = run(["apt-config", "dump", "Acquire"]).stdout
    (scratch / "upper/etc/apt/apt.conf.d/90host").write_text(settings)
    mounts = f"""
        set -eu
        cd {scratch}
        mount -t overlay lab -o lowerdir={tree},upperdir=upper,workdir=work root
        mount -t proc proc root/proc
        mount --rbind /dev root/dev
        mkdir -p root/mnt/shared
        mount --bind {shared} root/mnt/shared
        exec chroot root /bin/sh -eu
    """
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    env = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8"} | {
        name: value for name, value in os.environ.items() if name.lower() in ("http_proxy", "https_proxy", "no_proxy")
    }
    run([*CONTAINED, "/bin/sh", "-c", mounts], input=script, timeout_s=1800, env=env)


def host_pip() -> list[str]:
    """The machine's pip, which knows where packages come from here."""
    for python in (shutil.which("python3"), "/usr/bin/python3", sys.executable):
        if python and run([python, "-m", "pip", "--version"], check=False).returncode == 0:
            return [python, "-m", "pip", "--disable-pip-version-check"]
    raise LabError("python3 -m pip does not work on this machine")
