"""What the lab asks of the machine it stands on: commands with a limit, packages, kernel modules, a package mirror."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

DEFAULT_MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"

# Needed to stand nodes up, on Debian and Ubuntu alike.
PACKAGES = ("debootstrap", "debian-archive-keyring", "systemd-container", "iproute2", "iptables", "util-linux", "curl")
# Needed once, to fetch Python packages: pystemd's source asks pkg-config for libsystemd before it tells its name.
BUILD_PACKAGES = ("python3-pip", "pkg-config", "libsystemd-dev")
# Loaded where they are modules; a kernel that has them built in, or lacks one, says so later and more clearly.
MODULES = ("overlay", "veth", "bridge", "br_netfilter", "xt_physdev", "xt_statistic", "iptable_filter")


class LabError(Exception):
    """Something the person in front of the lab can act on; printed without a traceback."""


class Unusable(LabError):
    """The command line makes no sense (exit status 64)."""


def say(message: str) -> None:
    print(f"lab: {message}", file=sys.stderr, flush=True)


def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float = 60,
    check: bool = True,
    input: str | None = None,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, its output captured as text.

    Raises LabError, with a line that can be pasted into a shell, when it fails (unless `check` is false)
    or takes longer than `timeout_s`.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=env,
        )
    except FileNotFoundError as error:
        raise LabError(f"{words[0]}: no such command") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"no end after {timeout_s:g} s: {shlex.join(words)}") from error
    if check and done.returncode != 0:
        raise LabError(failure(words, done))
    return done


def failure(words: Sequence[str], done: subprocess.CompletedProcess[str]) -> str:
    """One failed command in words: status, the command, and the end of what it said."""
    how = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
    said = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-15:])
    command = shlex.join(words)
    return f"{how}: {command if len(command) < 600 else command[:600] + ' ...'}" + (f"\n{said}" if said else "")


def require_packages(packages: Sequence[str]) -> None:
    """Install what is missing of `packages`, and say so."""
    query = run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *packages], check=False)
    present = {line.split()[0] for line in query.stdout.splitlines() if line.endswith(" installed")}
    missing = [package for package in packages if package not in present]
    if not missing:
        return
    say(f"installing packages on this machine: {' '.join(missing)}")
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
    if run(install, timeout_s=900, check=False, env=env).returncode != 0:
        run(["apt-get", "update", "-q"], timeout_s=300, env=env)  # a fresh machine has no package lists
        run(install, timeout_s=900, env=env)


def load_modules() -> None:
    """Nodes cannot load kernel modules; what they need is loaded here, where it is a module at all."""
    if shutil.which("modprobe"):
        run(["modprobe", "--all", "--quiet", *MODULES], check=False)


def architecture() -> str:
    """Debian's name of this machine's architecture: amd64, arm64."""
    return run(["dpkg", "--print-architecture"]).stdout.strip()


def mirror(sources: Path = Path("/etc/apt")) -> str:
    """The mirror this machine itself gets SUITE from, where it does; Debian's own otherwise."""
    for file in [sources / "sources.list", *sorted((sources / "sources.list.d").glob("*"))]:
        if file.suffix not in (".list", ".sources") or not file.is_file():
            continue
        text = re.sub(r"^\s*#.*\n?", "", file.read_text(errors="replace"), flags=re.MULTILINE)
        for stanza in text.split("\n\n"):
            uri = re.search(r"^URIs:\s*(\S+)", stanza, re.MULTILINE)
            suites = re.search(r"^Suites:\s*(.+)$", stanza, re.MULTILINE)
            if uri and suites and SUITE in suites[1].split():
                return uri[1]
        one_line = re.search(rf"^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+{SUITE}\s", text, re.MULTILINE)
        if one_line:
            return one_line[1]
    return DEFAULT_MIRROR


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """One at a time; the kernel lets go of the lock when its holder dies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run to let go of {file}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def reserved(file: Path, what: str) -> Iterator[None]:
    """`what` by one process at a time. Raises LabError that names the other one, which lets go where it dies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as handle:
        handle.seek(0)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(f"{what} is in use by {handle.read().strip() or 'another run'}") from None
        handle.truncate()
        handle.write(f"{Path(sys.argv[0]).name} (pid {os.getpid()})\n")
        handle.flush()
        yield
