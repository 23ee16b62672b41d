"""What can be made to break, and mended again.

Faults of the host and the network are made here. Faults of the engine are files that the simulated vLLM watches:
/var/lib/sparkd-lab/faults/NAME in the node is /lab/faults/NAME in the container.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import network, shifted_clock
from .container_image import SIMULATION
from .host import LabError, Unusable, run
from .machine import Node
from .places import LINK_MTU

ENGINE_FAULTS = SIMULATION / "opt/vllm-sim/faults.txt"  # `name: description`, one per line
ENGINE_DIRECTORY = "/var/lib/sparkd-lab/faults"
STATE_DIRECTORY = "/var/lib/sparkd"
LOG_DIRECTORY = "/var/log/sparkd"
FULL_DISK = "/run/lab-disk-full"
FULL_LOGS = "/run/lab-logs-full"
MEMINFO = "/var/lib/sparkd-lab/meminfo"
MEMORY_DROP_IN = "/etc/systemd/system/sparkd.service.d/lab-memory-short.conf"
SEGMENTS = "/dev/shm/psm_1abde4d0 /dev/shm/psm_1abde4d1 /dev/shm/sem.mp-1abde4d0"  # names as Python's shm makes them
RENDEZVOUS_PORT = 29501


@dataclass(frozen=True)
class Fault:
    description: str
    on: Callable[[Node], None]
    off: Callable[[Node], None]
    until_boot: bool = False  # a boot mends it


def inside(script: str) -> Callable[[Node], None]:
    """A fault made by a bash script in the node."""

    def change(node: Node) -> None:
        node.run(f"set -eu\n{script}")

    return change


def unmounted(directory: str, source: str) -> Callable[[Node], None]:
    """A disk that was mounted over another goes. A daemon that was started meanwhile has it in a mount namespace of its own,
    where nothing can take it away: it is started anew."""
    return inside(
        f"umount --lazy {directory}\n"
        "pid=$(systemctl show --property MainPID --value sparkd)\n"
        f"! grep -qs ' {source} ' /proc/$pid/mountinfo || systemctl restart sparkd"
    )


def in_network(namespace: str, command: str) -> Callable[[Node], None]:
    """A fault made by an `ip` command at the far side of the node's cables, where they are `{port}` and `{name}`."""

    def change(node: Node) -> None:
        network.ip(node.places, namespace, command.format(port=network.port(node.name), name=node.name))

    return change


def filter_wire(action: str, rule: str) -> Callable[[Node], None]:
    """A fault made by a firewall rule on what comes out of the node's cable."""

    def change(node: Node) -> None:
        match = f"-m physdev --physdev-in {network.port(node.name)} {rule} -j DROP"
        command = ["iptables", "--wait", f"--{action}", "FORWARD", *match.split()]
        run(network.entered(node.places, network.WIRE, command))

    return change


def _memory_short(node: Node) -> None:
    """The machine's memory belongs to others as well: only what sparkd reads of it is changed. The file stays the same,
    for its unit has it mounted: it reads of memory that came back there too."""
    node.run(f"sed -E 's/^(MemFree|MemAvailable|Cached): .*/\\1: 65536 kB/' /proc/meminfo >{MEMINFO}")
    node.write(MEMORY_DROP_IN, f"[Service]\nBindReadOnlyPaths={MEMINFO}:/proc/meminfo\n")
    node.run("systemctl daemon-reload; ! systemctl is-active -q sparkd || systemctl restart sparkd")


HOST_FAULTS = {
    "docker-down": Fault(
        "Docker is stopped, its socket too",
        inside("systemctl stop docker.socket docker.service"),
        inside("systemctl start docker.socket docker.service"),
        until_boot=True,
    ),
    "docker-hung": Fault(
        "Docker does not answer",
        inside("kill -STOP $(systemctl show --property MainPID --value docker.service)"),
        inside("kill -CONT $(systemctl show --property MainPID --value docker.service)"),
        until_boot=True,
    ),
    "disk-full": Fault(
        f"no room is left in {STATE_DIRECTORY}; what is written there meanwhile is lost",
        inside(
            f"mkdir -p {FULL_DISK} {STATE_DIRECTORY}\n"
            f"mount -t tmpfs -o size=1m,mode=0700 lab-disk-full {FULL_DISK}\n"
            f"cp -a {STATE_DIRECTORY}/. {FULL_DISK}/\n"
            f"cat /dev/zero >{FULL_DISK}/.filler 2>/dev/null || :\n"
            f"mount --bind {FULL_DISK} {STATE_DIRECTORY}\n"
            f"umount {FULL_DISK}"
        ),
        unmounted(STATE_DIRECTORY, "lab-disk-full"),
        until_boot=True,
    ),
    "log-disk-full": Fault(
        f"no room is left in {LOG_DIRECTORY}, not for the engine that lives either; what is written there meanwhile is lost",
        inside(
            f"mkdir -p {FULL_LOGS} {LOG_DIRECTORY}/engine\n"
            f"mount -t tmpfs -o size=1m,mode=0750 lab-logs-full {FULL_LOGS}\n"
            f"mkdir {FULL_LOGS}/engine; cat /dev/zero >{FULL_LOGS}/.filler 2>/dev/null || :\n"
            f"mount --bind {FULL_LOGS} {LOG_DIRECTORY}\n"
            f"umount {FULL_LOGS}\n"
            # Whoever keeps a log open writes on to the disk of before: it has to open it anew.
            "for pid in $(pgrep -x cat); do grep -q sparkd-engine.service /proc/$pid/cgroup && kill $pid; done || :"
        ),
        unmounted(LOG_DIRECTORY, "lab-logs-full"),
        until_boot=True,
    ),
    "memory-short": Fault(
        "for sparkd, hardly any memory is free",
        _memory_short,
        inside(f"rm -f {MEMORY_DROP_IN}; systemctl daemon-reload; cat /proc/meminfo >{MEMINFO}"),
    ),
    "clock-ahead": Fault(
        "for sparkd, the time of day is an hour ahead",
        lambda node: shifted_clock.shift(node, 3600),
        shifted_clock.put_right,
    ),
    "clock-behind": Fault(
        "for sparkd, the time of day is an hour behind",
        lambda node: shifted_clock.shift(node, -3600),
        shifted_clock.put_right,
    ),
    "stale-worker": Fault(
        f"a leftover VLLM::Worker_TP0 outside any container holds port {RENDEZVOUS_PORT}",
        inside(
            "systemd-run --collect --quiet --unit=lab-stale-worker bash -c "
            f"'exec -a VLLM::Worker_TP0 /usr/bin/python3 /usr/local/lib/sparkd-lab/stale_worker.py {RENDEZVOUS_PORT}'\n"
            f"for _ in $(seq 100); do ss -Hltn sport = {RENDEZVOUS_PORT} | grep -q . && exit 0; sleep 0.1; done\n"
            f"echo nothing listens on {RENDEZVOUS_PORT} >&2; exit 1"
        ),
        inside("systemctl stop lab-stale-worker.service 2>/dev/null || :"),
        until_boot=True,
    ),
    "shm-leftovers": Fault(
        "segments and a semaphore of a dead engine lie in /dev/shm",
        inside(
            f"for f in {SEGMENTS}; do head -c 1048576 /dev/zero >$f; touch --date='1 hour ago' $f; done\n"
            "truncate -s 32 /dev/shm/sem.mp-1abde4d0; touch --date='1 hour ago' /dev/shm/sem.mp-1abde4d0"
        ),
        inside(f"rm -f {SEGMENTS}"),
        until_boot=True,
    ),
    "frozen": Fault(
        "every process of the node stands still; its kernel still answers a ping",
        lambda node: node.group.freeze(True),
        lambda node: node.group.freeze(False),
        until_boot=True,
    ),
    "mtu-mismatch": Fault(
        "this node's bond0 has an MTU of 1500",
        inside("ip link set bond0 mtu 1500"),
        inside(f"ip link set bond0 mtu {LINK_MTU}"),
    ),
    "no-jumbo-path": Fault(
        "both ends say 9000, the path carries 1500",
        in_network(network.WIRE, "link set {port} mtu 1500"),
        in_network(network.WIRE, f"link set {{port}} mtu {LINK_MTU}"),
    ),
    "black-hole": Fault(
        "the link carries nothing, and still shows a carrier",
        in_network(network.WIRE, "link set {port} nomaster"),
        in_network(network.WIRE, "link set {port} master wire"),
    ),
    "one-way": Fault(
        "what this node sends over the link is lost; it still receives",
        filter_wire("append", ""),
        filter_wire("delete", ""),
    ),
    "loss": Fault(
        "three in ten of the frames that this node sends over the link are lost",
        filter_wire("append", "-m statistic --mode random --probability 0.3"),
        filter_wire("delete", "-m statistic --mode random --probability 0.3"),
    ),
    "lan-down": Fault(
        "this node's LAN cable is out: clients cannot reach it",
        in_network(network.LAN, "link set {name} down"),
        in_network(network.LAN, "link set {name} up"),
    ),
}


def engine_faults(published: Path = ENGINE_FAULTS) -> dict[str, str] | None:
    """What the simulated vLLM can be made to do: name and description. None where it publishes nothing."""
    if not published.exists():
        return None
    lines = [line.strip() for line in published.read_text().splitlines()]
    pairs = [line.partition(":") for line in lines if line and not line.startswith("#")]
    return {name.strip(): description.strip() for name, _, description in pairs}


def catalogue() -> dict[str, str]:
    """Every fault with its description, the engine's first."""
    return (engine_faults() or {}) | {name: fault.description for name, fault in HOST_FAULTS.items()}


def switch(node: Node, name: str, on: bool) -> None:
    """Make a fault, or mend it. Doing either twice changes nothing. Raises LabError; Unusable for an unknown name."""
    if name not in HOST_FAULTS:
        return _switch_engine(node, name, on)
    fault = HOST_FAULTS[name]
    marker = node.home / "faults" / (f"{name}.until-boot" if fault.until_boot else name)
    if on == marker.exists():
        return None
    if node.leader() is None and fault.until_boot:
        raise LabError(f"{node.name} is off")
    (fault.on if on else fault.off)(node)
    marker.parent.mkdir(exist_ok=True)
    marker.touch() if on else marker.unlink()
    return None


def _switch_engine(node: Node, name: str, on: bool) -> None:
    known = engine_faults()
    if known is None and not re.fullmatch(r"[a-z0-9-]+", name):
        raise Unusable(f"{name}: names of faults are made of a-z, 0-9 and -")
    if known is not None and name not in known:
        raise Unusable(f"{name}: no such fault; `scripts/lab faults` lists them")
    if on:
        node.run(["install", "-D", "--mode=644", "/dev/null", f"{ENGINE_DIRECTORY}/{name}"])
    else:
        node.run(["rm", "-f", f"{ENGINE_DIRECTORY}/{name}"])


def active(node: Node) -> list[str]:
    """Names of the faults that are on, the host's and the engine's."""
    made = [marker.name.removesuffix(".until-boot") for marker in (node.home / "faults").glob("*")]
    watched = node.home / "upper" / ENGINE_DIRECTORY.lstrip("/")
    return sorted([*made, *(file.name for file in watched.glob("*"))])


def mend_all(node: Node) -> None:
    for name in active(node):
        if name in HOST_FAULTS:
            switch(node, name, False)
        else:
            node.run(["rm", "-f", f"{ENGINE_DIRECTORY}/{name}"])
