"""A bonded interface and its slaves, as the bonding driver tells it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sparkd.host.files import text
from sparkd.host.link import SYSFS_NET

PROC_BONDING = Path("/proc/net/bonding")
NO_PARTNER = "00:00:00:00:00:00"


@dataclass(frozen=True)
class Slave:
    name: str
    up: bool
    failures: int = 0  # how often its link was lost since it was enslaved
    speed_mbps: int | None = None
    aggregator: int | None = None  # 802.3ad: slaves of different aggregators do not share the load


@dataclass(frozen=True)
class Bond:
    """`mode` as the driver names it ("balance-xor", "802.3ad"); `active` is the only slave in use, where the mode has one."""

    interface: str
    mode: str
    up: bool
    slaves: tuple[Slave, ...]
    active: str = ""
    partner: str = ""  # 802.3ad: the other end's address, zeroes where nobody answers; empty in other modes


def read_bond(interface: str, proc: Path = PROC_BONDING, sys: Path = SYSFS_NET) -> Bond | None:
    """None where the interface is no bond. Falls back to /sys where /proc/net/bonding is of another network namespace."""
    try:
        return parse(interface, (proc / interface).read_text(encoding="ascii", errors="replace"))
    except OSError:
        return _from_sysfs(interface, sys)


def parse(interface: str, told: str) -> Bond:
    """Pure. /proc/net/bonding/INTERFACE: a part about the bond, then one for each slave."""
    head, *rest = told.split("Slave Interface:")
    fields = _fields(head)
    slaves = []
    for part in rest:
        name, _, body = part.partition("\n")
        slaves.append(_slave(name.strip(), _fields(body)))
    return Bond(
        interface=interface,
        mode=_mode(fields.get("bonding mode", "")),
        up=fields.get("mii status") == "up",
        slaves=tuple(slaves),
        active=fields.get("currently active slave", "").replace("None", ""),
        partner=fields.get("partner mac address", ""),
    )


def _slave(name: str, fields: dict[str, str]) -> Slave:
    aggregator = fields.get("aggregator id", "")
    failures = fields.get("link failure count", "")
    speed = fields.get("speed", "").split(" ")[0]
    return Slave(
        name=name,
        up=fields.get("mii status") == "up",
        failures=int(failures) if failures.isdigit() else 0,
        speed_mbps=int(speed) if speed.isdigit() else None,
        aggregator=int(aggregator) if aggregator.isdigit() else None,
    )


def _fields(text: str) -> dict[str, str]:
    """ "Key: value" lines; of a key that comes twice the first: the second is of the details below."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), value.strip())
    return fields


def _mode(text: str) -> str:
    """ "IEEE 802.3ad Dynamic link aggregation" -> "802.3ad"; "fault-tolerance (active-backup)" -> "active-backup"."""
    if "802.3ad" in text:
        return "802.3ad"
    inner = text.partition("(")[2].partition(")")[0]
    return {"round-robin": "balance-rr", "xor": "balance-xor"}.get(inner, inner or text)


def _from_sysfs(interface: str, sys: Path) -> Bond | None:
    directory = sys / interface / "bonding"
    if not directory.is_dir():
        return None
    names = text(directory / "slaves").split()
    bond = Bond(
        interface=interface,
        mode=text(directory / "mode").partition(" ")[0],
        up=text(directory / "mii_status") == "up",
        slaves=tuple(Slave(name, up=text(sys / name / "bonding_slave/mii_status") == "up") for name in names),
        active=text(directory / "active_slave"),
    )
    if bond.mode == "802.3ad":
        bond = replace(bond, partner=text(directory / "ad_partner_mac"))
    return bond
