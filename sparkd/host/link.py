"""The network interface that joins the nodes, and whether full-size packets pass it end to end."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from sparkd.host.files import number
from sparkd.host.run import run
from sparkd.model.errors import SparkdError

SYSFS_NET = Path("/sys/class/net")

# linux/sockios.h, linux/if.h, linux/in.h: what Python's socket module leaves out
SIOCGIFFLAGS = 0x8913
SIOCGIFMTU = 0x8921
IFF_UP = 0x1
IFF_RUNNING = 0x40
IP_MTU_DISCOVER = 10
IP_PMTUDISC_PROBE = 3  # sets "don't fragment", and does not believe what the kernel remembers of the path

HEADERS_BYTES = 28  # IPv4 20 and ICMP 8
SMALL_BYTES = 56  # ping's own default payload: passes wherever anything does
ROUNDS = 3  # one lost packet must not look like an MTU
ECHO_REQUEST, ECHO_REPLY = 8, 0


@dataclass(frozen=True)
class LinkState:
    """An interface as this network namespace has it. None means that the kernel does not say."""

    interface: str
    exists: bool
    up: bool = False  # administratively
    carrier: bool | None = None
    mtu: int | None = None
    addresses: tuple[str, ...] = ()  # IPv4 first, without prefix length or scope
    carrier_changes: int | None = None  # since the interface was made: twice each flap
    speed_mbps: int | None = None


@dataclass(frozen=True)
class MtuProbe:
    """`reached`: a small echo came back. `mtu_ok`: one of the full size did. None: could not ask, or moot."""

    reached: bool | None
    mtu_ok: bool | None
    says: str


def read_link(interface: str) -> LinkState:
    """State of an interface; `exists=False` where there is none. Needs no privilege."""
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        return LinkState(interface=interface, exists=False)
    flags = _ioctl(interface, SIOCGIFFLAGS, "H")
    up = bool((flags or 0) & IFF_UP)
    # /sys may be of another network namespace (a container, a lab node), with an interface of the same name in it
    sysfs = SYSFS_NET / interface
    known = number(sysfs / "ifindex") == index
    carrier = number(sysfs / "carrier") if known else None
    if carrier is None and up and flags is not None:
        carrier = int(bool(flags & IFF_RUNNING))
    speed = number(sysfs / "speed") if known else None
    return LinkState(
        interface=interface,
        exists=True,
        up=up,
        carrier=None if carrier is None else bool(carrier),
        mtu=_ioctl(interface, SIOCGIFMTU, "i"),
        addresses=_addresses(interface),
        carrier_changes=number(sysfs / "carrier_changes") if known else None,
        speed_mbps=speed if speed is not None and speed > 0 else None,  # -1: unknown
    )


@dataclass(frozen=True)
class Nic:
    """A network card's interface. `vendor` is the PCI vendor ("0x15b3"), empty where it is no PCI device."""

    name: str
    vendor: str
    speed_mbps: int | None


def nics(interface: str, sys: Path = SYSFS_NET) -> tuple[Nic, ...]:
    """The hardware that an interface stands on: itself, or what a bond or VLAN is made of. Empty for a virtual one."""
    directory = sys / interface
    if (directory / "device").exists():
        return (_nic(directory),)
    try:
        lower = sorted(
            path.name.removeprefix("lower_") for path in directory.iterdir() if path.name.startswith("lower_")
        )
    except OSError:
        return ()
    return tuple(_nic(sys / name) for name in lower if (sys / name / "device").exists())


def _nic(directory: Path) -> Nic:
    speed = number(directory / "speed")
    try:
        vendor = (directory / "device/vendor").read_text(encoding="ascii").strip()
    except OSError:
        vendor = ""
    return Nic(directory.name, vendor, speed if speed is not None and speed > 0 else None)


def interface_names() -> tuple[str, ...]:
    """Every interface of this network namespace."""
    return tuple(name for _, name in socket.if_nameindex())


def _ioctl(interface: str, request: int, format: str) -> int | None:
    """One field of the kernel's `struct ifreq`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, request, struct.pack("16s24x", interface.encode()))
        except OSError:
            return None
    value: int = struct.unpack_from(format, answer, 16)[0]
    return value


def _addresses(interface: str) -> tuple[str, ...]:
    import psutil

    found = psutil.net_if_addrs().get(interface, [])
    families = (socket.AF_INET, socket.AF_INET6)
    return tuple(one.address.partition("%")[0] for family in families for one in found if one.family is family)


# --- full-size packets ----------------------------------------------------------------------------


def probe_mtu(address: str, mtu: int, *, timeout_s: float = 1.0, source: str | None = None) -> MtuProbe:
    """Sends echo requests of exactly `mtu` bytes that may not be fragmented, beside small ones, to an IPv4 address.

    The small ones tell "does not answer" from "the MTU does not pass". Asks through an ICMP socket (CAP_NET_RAW, or a
    group in net.ipv4.ping_group_range), else through ping(8). Takes at most `timeout_s`, `ping` thrice that.
    """
    if not SMALL_BYTES + HEADERS_BYTES < mtu <= 65535:
        raise ValueError(f"mtu {mtu} is out of range")
    try:
        echo = _open_echo()
    except PermissionError:
        return _probe_by_ping(address, mtu, timeout_s, source)
    with echo:
        try:
            if source:
                echo.bind((source, 0))
            return _probe(echo, address, mtu, timeout_s)
        except OSError as error:
            if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETDOWN):
                return MtuProbe(False, None, f"{address} cannot be reached: {os.strerror(error.errno)}")
            return MtuProbe(None, None, f"could not ask {address}: {error.strerror or error}")


def count_lost(address: str, *, count: int = 20, timeout_s: float = 0.3) -> int:
    """How many of `count` small echo requests, sent at once, no answer comes to. Raises PermissionError, OSError."""
    token = os.urandom(7)
    wanted = {token + bytes([sequence]) for sequence in range(count)}
    seen: set[bytes] = set()
    with _open_echo() as echo:
        for sequence in range(count):
            _send(echo, address, sequence, (token + bytes([sequence])).ljust(SMALL_BYTES, b"."))
        _listen(echo, time.monotonic() + timeout_s, wanted, seen)
    return count - len(seen)


def _open_echo() -> socket.socket:
    """Raises PermissionError when neither kind of ICMP socket is allowed."""
    try:
        echo = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    except PermissionError:
        echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    echo.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
    return echo


def _probe(echo: socket.socket, address: str, mtu: int, timeout_s: float) -> MtuProbe:
    token = os.urandom(8)  # ours among all the echoes that a raw socket hears
    small, full = token + b"s", token + b"f"
    seen: set[bytes] = set()
    too_long = False
    for round in range(ROUNDS):
        _send(echo, address, round, small.ljust(SMALL_BYTES, b"."))
        try:
            _send(echo, address, round, full.ljust(mtu - HEADERS_BYTES, b"."))
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            too_long = True  # our own interface refuses it
        _listen(echo, time.monotonic() + timeout_s / ROUNDS, {small, full} - ({full} if too_long else set()), seen)
        if full in seen or (too_long and small in seen):
            break
    if full in seen:
        return MtuProbe(True, True, f"packets of {mtu} bytes reach {address}")
    if too_long:
        reached = small in seen
        return MtuProbe(reached, False, f"this node's own interface towards {address} takes less than {mtu} bytes")
    if small in seen:
        return MtuProbe(True, False, f"{address} answers, but packets of {mtu} bytes do not reach it and come back")
    return MtuProbe(False, None, f"{address} does not answer an echo within {timeout_s:g} s")


def _send(echo: socket.socket, address: str, sequence: int, payload: bytes) -> None:
    identifier = os.getpid() & 0xFFFF  # a datagram ICMP socket puts its own
    packet = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, identifier, sequence) + payload
    checksum = _checksum(packet)
    echo.sendto(packet[:2] + struct.pack("!H", checksum) + packet[4:], (address, 0))


def _checksum(packet: bytes) -> int:
    """RFC 1071."""
    padded = packet + b"\0" * (len(packet) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _listen(echo: socket.socket, until: float, wanted: set[bytes], seen: set[bytes]) -> None:
    """Adds what came back to `seen`; returns at `until` (monotonic seconds) or when all `wanted` has been seen."""
    while not wanted <= seen and (left_s := until - time.monotonic()) > 0:
        if not select.select([echo], [], [], left_s)[0]:
            return
        packet = echo.recv(65535)
        if echo.type == socket.SOCK_RAW:
            packet = packet[4 * (packet[0] & 0xF) :]  # the IP header comes with it
        if packet[:1] == bytes([ECHO_REPLY]):
            seen.update(want for want in wanted if packet[8:].startswith(want))


def _probe_by_ping(address: str, mtu: int, timeout_s: float, source: str | None) -> MtuProbe:
    def answers(payload_bytes: int) -> bool:
        wait_s = max(1, round(timeout_s))
        options = ["-n", "-q", "-c", "2", "-i", "0.2", "-w", str(wait_s), "-M", "do", "-s", str(payload_bytes)]
        ran = run(["ping", *options, *(["-I", source] if source else []), address], timeout_s=wait_s + 2)
        if ran.status not in (0, 1) or "transmitted" not in ran.stdout:  # 1 with statistics: no answer
            raise SparkdError(f"ping {ran.ending}: {ran.stderr.strip()}")
        return ran.ok

    try:
        if answers(mtu - HEADERS_BYTES):
            return MtuProbe(True, True, f"packets of {mtu} bytes reach {address}")
        if answers(SMALL_BYTES):
            return MtuProbe(True, False, f"{address} answers, but packets of {mtu} bytes do not reach it and come back")
        return MtuProbe(False, None, f"{address} does not answer an echo")
    except SparkdError as error:
        return MtuProbe(None, None, f"could not ask {address}: {error}")
