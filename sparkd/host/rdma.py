"""RDMA devices (HCAs) as the kernel shows them: ports, GIDs, counters, the PCIe link behind them.

On a Spark each QSFP port has two halves, each behind a PCIe link of its own: rocep1s0f0 (0000:01:00.0) and
roceP2p1s0f0 (0002:01:00.0) are the same port. Device names may also be mlx5_N, so halves are told by their PCI address.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparkd.host.files import text

INFINIBAND = Path("/sys/class/infiniband")
PCI_DEVICES = Path("/sys/bus/pci/devices")
MELLANOX = "0x15b3"
GIDS_MAX = 64  # a port has 256 slots, all but the first few empty

# mlx5's names. What moves here while nothing is wrong: nothing.
ERROR_COUNTERS = (
    "out_of_sequence", "packet_seq_err", "implied_nak_seq_err", "local_ack_timeout_err", "rnr_nak_retry_err",
    "rx_icrc_encapsulated", "req_cqe_error", "resp_cqe_error", "symbol_error", "port_rcv_errors", "port_xmit_discards",
    "link_downed",
)  # fmt: skip
CONGESTION_COUNTERS = ("np_cnp_sent", "np_ecn_marked_roce_packets", "rp_cnp_handled", "out_of_buffer")


@dataclass(frozen=True)
class Gid:
    """One entry of a port's GID table. `kind` is "RoCE v2" or "IB/RoCE v1"."""

    index: int
    gid: str
    kind: str
    netdev: str

    @property
    def is_ipv4(self) -> bool:
        return self.gid.startswith("0000:0000:0000:0000:0000:ffff:")

    @property
    def is_link_local(self) -> bool:
        return self.gid.startswith("fe80:")


@dataclass(frozen=True)
class RdmaPort:
    """`state` and `physical` as the kernel words them, without the number: "ACTIVE", "LinkUp"."""

    number: int
    state: str
    physical: str
    rate: str  # "100 Gb/sec (2X NDR)"
    layer: str  # "Ethernet"
    gids: tuple[Gid, ...] = ()

    @property
    def is_active(self) -> bool:
        return self.state == "ACTIVE" and self.physical in ("LinkUp", "")


@dataclass(frozen=True)
class PcieLink:
    """Speeds in GT/s. None: the kernel does not say."""

    speed: float | None
    width: int | None
    speed_max: float | None
    width_max: int | None
    fatal_errors: int | None = None  # since boot, as AER counts them


@dataclass(frozen=True)
class Hca:
    """An RDMA device. `pci` is its address ("0002:01:00.0"), empty where it is no PCI device."""

    name: str
    pci: str
    netdevs: tuple[str, ...]
    ports: tuple[RdmaPort, ...]
    pcie: PcieLink

    @property
    def is_active(self) -> bool:
        return any(port.is_active for port in self.ports)

    @property
    def domain(self) -> str:
        return self.pci.partition(":")[0]

    @property
    def slot(self) -> str:
        """The PCI address without its domain: equal for the two halves of one port."""
        return self.pci.partition(":")[2]


# --- seeing them ----------------------------------------------------------------------------------


def devices(root: Path = INFINIBAND) -> tuple[Hca, ...] | None:
    """All RDMA devices by name; None where the kernel has no RDMA subsystem at all."""
    try:
        names = sorted(path.name for path in root.iterdir())
    except FileNotFoundError:
        return None
    return tuple(_device(root / name) for name in names)


def hardware_present(root: Path = PCI_DEVICES) -> bool | None:
    """Is there a ConnectX card on the PCI bus, whatever its driver makes of it? None: the bus cannot be seen."""
    try:
        return any(text(device / "vendor") == MELLANOX for device in root.iterdir())
    except OSError:
        return None


def _device(path: Path) -> Hca:
    device = path / "device"
    ports = sorted(_names(path / "ports"), key=int)
    try:
        pci = device.resolve().name if device.exists() else ""
    except OSError:
        pci = ""
    return Hca(
        name=path.name,
        pci=pci if re.fullmatch(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]", pci) else "",
        netdevs=tuple(sorted(_names(device / "net"))),
        ports=tuple(_port(path / "ports" / number) for number in ports),
        pcie=_pcie(device),
    )


def _port(path: Path) -> RdmaPort:
    return RdmaPort(
        number=int(path.name),
        state=_worded(text(path / "state")),
        physical=_worded(text(path / "phys_state")),
        rate=text(path / "rate"),
        layer=text(path / "link_layer"),
        gids=tuple(_gids(path)),
    )


def _gids(port: Path) -> Iterable[Gid]:
    """The used entries. An unused one reads as zeroes, and its type as EINVAL."""
    indices = sorted(int(name) for name in _names(port / "gids") if name.isdigit())
    for index in indices[:GIDS_MAX]:
        gid = text(port / "gids" / str(index))
        if gid.strip("0:"):
            attributes = port / "gid_attrs"
            kind, netdev = text(attributes / "types" / str(index)), text(attributes / "ndevs" / str(index))
            yield Gid(index, gid, kind, netdev)


def _pcie(device: Path) -> PcieLink:
    fatal = re.search(r"TOTAL_ERR_FATAL (\d+)", text(device / "aer_dev_fatal"))
    return PcieLink(
        speed=_gts(text(device / "current_link_speed")),
        width=_int(text(device / "current_link_width")),
        speed_max=_gts(text(device / "max_link_speed")),
        width_max=_int(text(device / "max_link_width")),
        fatal_errors=int(fatal.group(1)) if fatal else None,
    )


def counters(root: Path = INFINIBAND, names: Iterable[str] = ()) -> dict[str, int]:
    """ "rocep1s0f0:1 out_of_sequence" -> its count since the driver was loaded, for the error and congestion counters."""
    found: dict[str, int] = {}
    for name in names:
        for number in _names(root / name / "ports"):
            port = root / name / "ports" / number
            for counter in (*ERROR_COUNTERS, *CONGESTION_COUNTERS):
                value = _int(text(port / "hw_counters" / counter) or text(port / "counters" / counter))
                if value is not None:
                    found[f"{name}:{number} {counter}"] = value
    return found


def moved(before: Mapping[str, int], after: Mapping[str, int], which: Sequence[str]) -> dict[str, int]:
    """Pure. Counters of these names that grew in between, and by how much."""
    grown = {key: after[key] - value for key, value in before.items() if after.get(key, value) > value}
    return {key: by for key, by in grown.items() if key.rpartition(" ")[2] in which}


# --- choosing them --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selector:
    """What NCCL_IB_HCA (or NCCL_SOCKET_IFNAME) selects: "^" excludes, "=" is exact, else prefixes; "name:port"."""

    exclude: bool
    exact: bool
    entries: tuple[tuple[str, int | None], ...]

    def entry_matches(self, entry: tuple[str, int | None], name: str, port: int | None = None) -> bool:
        wanted, number = entry
        named = name == wanted if self.exact else name.startswith(wanted)
        return named and (number is None or port is None or number == port)

    def takes(self, name: str, port: int | None = None) -> bool:
        hit = any(self.entry_matches(entry, name, port) for entry in self.entries)
        return hit is not self.exclude

    def unmatched(self, names: Iterable[str]) -> list[str]:
        """Entries of an including selector that no name answers to: a device or interface that is not there."""
        known = list(names)
        if self.exclude:
            return []
        return [entry[0] for entry in self.entries if not any(self.entry_matches(entry, name) for name in known)]


def selector(text: str) -> Selector:
    """Pure. NCCL's grammar: `^` and `=` stand before the whole list, in this order."""
    rest = text.strip()
    exclude = rest.startswith("^")
    rest = rest[1:] if exclude else rest
    exact = rest.startswith("=")
    rest = rest[1:] if exact else rest
    entries: list[tuple[str, int | None]] = []
    for word in filter(None, (part.strip() for part in rest.split(","))):
        name, colon, port = word.partition(":")
        entries.append((name, int(port)) if colon and port.isdigit() else (name, None))
    return Selector(exclude, exact, tuple(entries))


def selected(hcas: Iterable[Hca], text: str) -> tuple[Hca, ...]:
    """Pure. The devices that NCCL would take; all of them for an empty text."""
    chosen = selector(text)
    if not chosen.entries:
        return tuple(hcas)
    return tuple(
        hca for hca in hcas if any(chosen.takes(hca.name, port.number) for port in hca.ports) or _portless(hca, chosen)
    )


def _portless(hca: Hca, chosen: Selector) -> bool:
    return not hca.ports and chosen.takes(hca.name)


def twin(hca: Hca, hcas: Iterable[Hca]) -> Hca | None:
    """Pure. The other half of the same QSFP port: same slot and function, another PCI domain."""
    if not hca.pci:
        return None
    return next((other for other in hcas if other.slot == hca.slot and other.domain != hca.domain), None)


# --- reading --------------------------------------------------------------------------------------


def _names(directory: Path) -> list[str]:
    try:
        return [path.name for path in directory.iterdir()]
    except OSError:
        return []


def _worded(text: str) -> str:
    """ "4: ACTIVE" -> "ACTIVE"."""
    return text.partition(":")[2].strip() or text


def _int(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _gts(text: str) -> float | None:
    """ "32.0 GT/s PCIe" -> 32.0."""
    found = re.match(r"(\d+(?:\.\d+)?) GT/s", text)
    return float(found.group(1)) if found else None
