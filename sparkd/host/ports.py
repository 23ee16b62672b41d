"""TCP ports: who listens, and whether an engine could bind one."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparkd.host import procfs
from sparkd.model.errors import SparkdError

LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp


@dataclass(frozen=True)
class Listener:
    """A listening socket. `pids` share it (`names` are theirs, in the same order); empty where we may not look."""

    port: int
    address: str
    inode: int
    pids: tuple[int, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Socket:
    address: str
    port: int
    state: str
    inode: int


def listeners(ports: Collection[int] | None = None, proc: Path = procfs.PROC) -> list[Listener]:
    """Listening TCP sockets of this network namespace, IPv4 and IPv6, on `ports` or on all, by port.

    The kernel lists no socket that is bound but does not listen, which is what vLLM's API port is while the engine
    loads: `can_bind` sees that one.
    """
    found = [one for one in _sockets(proc) if one.state == LISTEN and (ports is None or one.port in ports)]
    holders = _holders({one.inode for one in found}, proc)
    return [
        Listener(
            port=one.port,
            address=one.address,
            inode=one.inode,
            pids=(pids := tuple(holders.get(one.inode, ()))),
            names=tuple(_name(pid, proc) for pid in pids),
        )
        for one in sorted(found, key=lambda one: (one.port, one.address))
    ]


def can_bind(port: int, address: str = "0.0.0.0") -> bool:
    """Whether an engine could take this port now, with nobody else holding it.

    vLLM and torch bind with SO_REUSEADDR, which connections that linger in TIME_WAIT do not hinder; so a plain bind
    alone would call a port taken for a minute after its server left. But SO_REUSEADDR also succeeds beside a socket
    that is bound and not yet listening, as a loading engine's API port is. Hence both: a plain bind that succeeds
    settles it; where only SO_REUSEADDR succeeds, the port is free if the kernel lists connections that explain the
    plain refusal. Never listens, so it disturbs nobody who holds the port.

    Raises SparkdError where the question has no answer: the address is not on this host, or binding is not allowed.
    """
    if _binds(port, address, reuse=False):
        return True
    return _binds(port, address, reuse=True) and any(one.port == port for one in _sockets(procfs.PROC))


def _binds(port: int, address: str, *, reuse: bool) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise SparkdError(f"cannot tell whether it is free: {error.strerror}", where=f"{address}:{port}") from None
    return True


def _sockets(proc: Path) -> Iterator[_Socket]:
    for table in ("tcp", "tcp6"):
        try:
            lines = procfs.read(f"{proc}/net/{table}").decode("ascii").splitlines()
        except FileNotFoundError:
            continue  # no IPv6 in this kernel
        for line in lines[1:]:
            # sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ...
            fields = line.split()
            address, _, port = fields[1].partition(":")
            yield _Socket(_address(address), int(port, 16), fields[3], int(fields[9]))


def _address(text: str) -> str:
    """The kernel prints an address as 32-bit words in the machine's own byte order: 0100007F is 127.0.0.1 here."""
    words = (int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8))
    return str(ipaddress.ip_address(b"".join(words)))


def _holders(inodes: Iterable[int], proc: Path) -> dict[int, list[int]]:
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    holders: dict[int, list[int]] = {}
    if not wanted:
        return holders
    for pid in sorted(procfs.pids(proc)):
        try:
            held = {wanted[target] for _, target in procfs.descriptors(pid, proc) if target in wanted}
        except OSError as error:
            if procfs.ours(error):
                raise
            continue  # gone, or not ours to look into
        for inode in held:
            holders.setdefault(inode, []).append(pid)
    return holders


def _name(pid: int, proc: Path) -> str:
    """What `ps` would call it: the title where the process gave itself one, else its comm."""
    title = os.fsdecode(procfs.read_living(f"{proc}/{pid}/cmdline").partition(b"\0")[0])
    if title and "/" not in title and "::" in title:
        return title
    about = procfs.stat(pid, proc)
    return about.comm if about else "?"
