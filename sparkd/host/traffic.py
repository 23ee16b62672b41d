"""Bytes over the link, by the kernel's counters: what RDMA carries goes past the interface's own."""

from __future__ import annotations

from pathlib import Path

from sparkd.host.files import number
from sparkd.host.link import SYSFS_NET
from sparkd.host.rdma import INFINIBAND

WORD_BYTES = 4  # port_xmit_data and port_rcv_data count in words of four bytes (ABI/stable/sysfs-class-infiniband)


def link_bytes(interface: str, *, infiniband: Path = INFINIBAND, net: Path = SYSFS_NET) -> int | None:
    """Sent and received since boot, by all RDMA ports and by the interface. None where neither is counted."""
    words = [
        number(port / "counters" / name)
        for port in sorted(infiniband.glob("*/ports/*"))
        for name in ("port_xmit_data", "port_rcv_data")
    ]
    plain = [number(net / interface / "statistics" / name) for name in ("tx_bytes", "rx_bytes")] if interface else []
    counted = [WORD_BYTES * value for value in words if value is not None] + [
        value for value in plain if value is not None
    ]
    return sum(counted) if counted else None
