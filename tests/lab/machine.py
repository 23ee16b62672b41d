"""One node: a Debian with systemd as PID 1 in systemd-nspawn, its power, and commands run in it.

A node's supervisor (`scripts/lab _supervise NODE`) holds it up: it lives outside the node's cgroup, in a mount namespace
of its own where the node's root is stacked, and boots the node again when it reboots, as hardware would.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import network, weights
from .base import Base
from .cgroups import Group
from .host import LabError, failure, run
from .places import CHECKOUT, NODES, Places, lan_address, link_address

LAID_IN = CHECKOUT / "tests/lab/node"  # files that every node has
WHEELS = "/srv/wheels"  # inside a node

NSPAWN_RUNTIME = Path("/run/systemd/nspawn")
EXIT_REBOOT = 133  # systemd-nspawn's status when the node asked for a reboot; 0: it powered off
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": os.environ.get("TERM", "dumb"),
}
BOOT_MAX_S = 60
SHUTDOWN_MAX_S = 120

MASKED = (  # of no use here, or the host's business
    *(
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "e2scrub_reap.service",
    ),
    *("fstrim.timer", "systemd-pstore.service", "systemd-modules-load.service", "systemd-networkd.service"),
    *("systemd-resolved.service", "systemd-timesyncd.service", "console-getty.service", "getty@tty1.service"),
)


@dataclass(frozen=True)
class Node:
    places: Places
    name: str

    @property
    def home(self) -> Path:
        """Where the host keeps this node: what it wrote over the base, Docker's data, its console."""
        return self.places.node(self.name)

    @property
    def machine(self) -> str:
        return f"{self.places.prefix}-{self.name}"

    @property
    def group(self) -> Group:
        return Group(f"{self.places.prefix}/{self.name}")

    @property
    def supervisor(self) -> Group:
        return Group(f"{self.places.prefix}/supervisor-{self.name}")

    # -- making --------------------------------------------------------------------------------------------------

    def create(self, base: Base) -> None:
        """A node as from the factory: its disk, not yet powered on."""
        for directory in ("upper/etc", "work", "root", "docker", "containerd"):
            (self.home / directory).mkdir(parents=True)
        disk = self.home / "upper"
        shutil.copytree(LAID_IN, disk, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        for path in disk.rglob("*"):  # the checkout's owner has no business in here
            os.chown(path, 0, 0, follow_symlinks=False)
        units = disk / "etc/systemd/system"
        for unit in MASKED:
            (units / unit).symlink_to("/dev/null")
        (units / "sysinit.target.wants").mkdir()
        (units / "sysinit.target.wants/lab-early.service").symlink_to("../lab-early.service")
        (disk / "etc/machine-id").write_text(secrets.token_hex(16) + "\n")
        (disk / "etc/hostname").write_text(self.name + "\n")
        names = "".join(f"{lan_address(node)} {node}\n{link_address(node)} {node}-link\n" for node in NODES)
        (disk / "etc/hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (disk / "etc/resolv.conf").write_text("# no name server in the lab\n")
        (disk / "var/log/journal").mkdir(parents=True)
        (disk / "var/lib/sparkd-lab/faults").mkdir(parents=True)
        # Two nodes share one machine's memory: the share that the lab's recipe asks for says nothing about the KV cache.
        (disk / "var/lib/sparkd-lab/kv_tokens").write_text("612341\n")
        for cache in ("root/.cache/vllm", "root/.cache/flashinfer"):
            (disk / cache).mkdir(parents=True)
        weights.write(disk / "home/milo/models/DeepSeek-V4-Flash")
        (self.home / "layers").write_text(":".join(str(layer) for layer in reversed(base.layers)))
        (self.home / "wheels").write_text(str(base.wheels))

    # -- power ---------------------------------------------------------------------------------------------------

    def leader(self) -> int | None:
        """The host's pid of the node's PID 1: the process of its cgroup that is 1 in the namespace below ours."""
        for pid in sorted(self.group.pids()):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("NSpid:") and line.split()[2:] == ["1"]:
                        return pid
        return None

    def is_on(self) -> bool:
        return bool(self.supervisor.pids())

    def power_on(self, *, limit_s: float = BOOT_MAX_S) -> None:
        """Switch the node on and wait until it has booted. Nothing happens where it is on."""
        self.start()
        self.wait_booted(limit_s=limit_s)

    def start(self) -> None:
        """Switch the node on without waiting. Raises LabError where processes of an earlier life are left."""
        if self.is_on():
            return
        if left := self.group.pids():
            raise LabError(f"{self.name}: processes are left from before: {sorted(left)}")
        self.group.make()
        self.supervisor.make()
        supervise = ["/usr/bin/python3", "-IS", str(CHECKOUT / "scripts/lab"), "_supervise", self.name]
        detached = ["setsid", "--fork", "unshare", "--mount", "--propagation=slave", *supervise]
        with (self.home / "console.log").open("ab") as console:
            subprocess.run(
                self.supervisor.entered(detached),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=ENVIRONMENT | self.places.environment(),
                check=True,
            )

    def power_off(self, *, limit_s: float = SHUTDOWN_MAX_S) -> None:
        """Shut down in good order."""
        self.run(["systemctl", "--no-block", "poweroff"])
        self.wait_off(limit_s=limit_s)

    def power_cut(self, *, limit_s: float = 30) -> None:
        """Pull the plug: PID 1 is killed, and all with it."""
        self.group.freeze(False)
        leader = self.leader()
        if leader is None:
            raise LabError(f"{self.name} is off")
        os.kill(leader, signal.SIGKILL)
        self.wait_off(limit_s=limit_s)

    def reboot(self, *, limit_s: float = SHUTDOWN_MAX_S + BOOT_MAX_S, hard: bool = False) -> None:
        """Reboot and wait until the node has booted. `hard` takes no leave of anybody (`systemctl reboot -ff`)."""
        before = self.boot_id()
        # The command may die with the node that it reboots.
        self.run(["systemctl", *(["reboot", "-ff"] if hard else ["--no-block", "reboot"])], check=not hard)
        deadline = time.monotonic() + limit_s
        while self.boot_id() in ("", before):
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: no reboot within {limit_s:g} s; see {self.home}/console.log")
            time.sleep(0.1)
        self.wait_booted(limit_s=max(1.0, deadline - time.monotonic()))

    def boot_id(self) -> str:
        """Of the running node; empty while it is off or between two boots."""
        if self.leader() is None:
            return ""
        with contextlib.suppress(LabError):  # it went off since we looked
            return self.run(["cat", "/proc/sys/kernel/random/boot_id"], check=False).stdout.strip()
        return ""

    def forget(self, *directories: str) -> None:
        """Empty parts of the disk of a node that is off."""
        if self.is_on():
            raise LabError(f"{self.name} is on: its disk is in use")
        for directory in directories:
            shutil.rmtree(self.home / "upper" / directory, ignore_errors=True)

    def destroy(self) -> None:
        """End every process of the node, in whatever state it is. Raises LabError where one does not die."""
        self.group.kill()
        with contextlib.suppress(LabError):  # left alone, the supervisor sees the end and reaps
            self.wait_off(limit_s=3)
        self.supervisor.kill()
        self.group.kill()  # it may have been about to boot again

    def wait_off(self, *, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while self.group.pids() or self.supervisor.pids():
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: not off within {limit_s:g} s; see {self.home}/console.log")
            time.sleep(0.05)

    def wait_booted(self, *, limit_s: float = BOOT_MAX_S) -> None:
        """Until systemd has reached basic.target and Docker has been started, whatever came of it.

        Not until the whole boot is over: a unit that waits for the engine may keep that open for minutes.
        """
        deadline = time.monotonic() + limit_s
        while not self._has_booted(state := self.state()):
            if state == "off" or time.monotonic() > deadline:
                raise LabError(f"{self.name}: not booted within {limit_s:g} s ({state}); see {self.home}/console.log")
            time.sleep(0.1)

    def _has_booted(self, state: str) -> bool:
        if state == "starting":
            return self.unit_state("basic.target") == "active" and self.unit_state("docker.service") in (
                "active",
                "failed",
            )
        return state in ("running", "degraded")

    def state(self) -> str:
        """What systemd says of itself (`running`, `degraded`, `starting` ...), or `off`, or `booting` before it answers."""
        if not self.is_on():
            return "off"
        if self.leader() is None:
            return "booting"
        return self.run(["systemctl", "is-system-running"], check=False).stdout.strip() or "booting"

    def unit_state(self, unit: str) -> str:
        return self.run(["systemctl", "is-active", unit], check=False).stdout.strip()

    # -- commands ------------------------------------------------------------------------------------------------

    def entered(self, argv: Sequence[str]) -> list[str]:
        """`argv`, wrapped so that it runs inside the node, and goes down with it."""
        leader = self.leader()
        if leader is None:
            raise LabError(f"{self.name} is off")
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--time", "--root", "--wd"]
        inside = ["nsenter", f"--target={leader}", *spaces, "--", *argv]
        return self.group.entered(inside, leaf="exec", freezable=False)

    def run(
        self, argv: Sequence[str] | str, *, timeout_s: float = 60, check: bool = True, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command (a string: by bash) in the node. Raises LabError on failure, unless `check` is false."""
        words = ["bash", "-c", argv] if isinstance(argv, str) else list(argv)
        done = run(self.entered(words), timeout_s=timeout_s, check=False, input=input, env=ENVIRONMENT)
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: {failure(words, done)}")
        return done

    def write(self, path: str, text: str, *, mode: int = 0o644) -> None:
        """A file in the running node, its directories made where missing."""
        self.run(["install", "-D", f"--mode={mode:o}", "/dev/stdin", path], input=text)

    def read(self, path: str) -> str:
        return self.run(["cat", path]).stdout

    def spawn(self, argv: Sequence[str] | str, **options: object) -> subprocess.Popen[str]:
        """A command in the node that runs beside the caller, which ends and reaps it."""
        words = ["bash", "-c", argv] if isinstance(argv, str) else list(argv)
        return subprocess.Popen(self.entered(words), env=ENVIRONMENT, text=True, **options)  # type: ignore[call-overload, no-any-return]


def supervise(node: Node) -> int:
    """Boot the node, and again for as long as it reboots. Runs in a mount namespace of its own."""
    root = node.home / "root"
    layers = (node.home / "layers").read_text()
    options = f"lowerdir={layers},upperdir={node.home}/upper,workdir={node.home}/work"
    run(["mount", "-t", "overlay", node.machine, "-o", options, root])
    # systemd-nspawn leaves locks and directories here, one for each boot; these go with the mount namespace.
    NSPAWN_RUNTIME.mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", "tmpfs", node.machine, NSPAWN_RUNTIME])
    status = EXIT_REBOOT
    while status == EXIT_REBOOT:
        for fault in (node.home / "faults").glob("*.until-boot"):
            fault.unlink()
        network.configure_node(node.places, node.name)
        status = subprocess.run(node.group.entered(_nspawn(node)), stdin=subprocess.DEVNULL, check=False).returncode
        node.group.kill()  # nothing should be left; a node that boots over the remains of another would be no node
    return 0


def _nspawn(node: Node) -> list[str]:
    # Uptime and the monotonic clock of a node begin at its boot.
    uptime_s = int(float(Path("/proc/uptime").read_text().split()[0]))
    clocks = ["unshare", "--time", f"--boottime=-{uptime_s}", f"--monotonic=-{uptime_s}"]
    environment = ["SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes", "SYSTEMD_SECCOMP=0"]
    wheels = (node.home / "wheels").read_text()
    return [
        *("env", *environment, *clocks, "systemd-nspawn", "--boot", "--quiet", f"--directory={node.home}/root"),
        *("--register=no", "--keep-unit", "--console=pipe", f"--machine={node.machine}", f"--hostname={node.name}"),
        f"--network-namespace-path=/run/netns/{node.places.namespace(node.name)}",
        *("--capability=all", "--drop-capability=CAP_SYS_TIME"),  # the clock is the whole machine's
        *("--resolv-conf=off", "--timezone=off", "--link-journal=no"),
        *(f"--bind={node.home}/{data}:/var/lib/{data}" for data in ("docker", "containerd")),
        f"--bind-ro={wheels}:{WHEELS}",
    ]
