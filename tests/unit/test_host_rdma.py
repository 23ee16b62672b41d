"""RDMA devices: a directory tree that stands for /sys/class/infiniband, in the shape that a Spark's has."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkd.host import rdma
from sparkd.host.rdma import devices, hardware_present, moved, selected, selector, twin

# As public reports show a Spark with one cable in port 0: name, PCI address, interface, up.
SPARK = (
    ("rocep1s0f0", "0000:01:00.0", "enp1s0f0np0", True),
    ("rocep1s0f1", "0000:01:00.1", "enp1s0f1np1", False),
    ("roceP2p1s0f0", "0002:01:00.0", "enP2p1s0f0np0", True),
    ("roceP2p1s0f1", "0002:01:00.1", "enP2p1s0f1np1", False),
)
IPV4 = "0000:0000:0000:0000:0000:ffff:0a00:0001"
LOCAL = "fe80:0000:0000:0000:4ebb:47ff:fe2a:0001"
EMPTY = "0000:0000:0000:0000:0000:0000:0000:0000"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def spark(tmp_path: Path, width: str = "4") -> Path:
    """/sys with the four devices of a Spark; returns its class/infiniband."""
    root = tmp_path / "class/infiniband"
    for name, pci, netdev, up in SPARK:
        device = tmp_path / "devices" / pci
        (device / "net" / netdev).mkdir(parents=True)
        write(device / "vendor", rdma.MELLANOX)
        write(device / "current_link_speed", "32.0 GT/s PCIe")
        write(device / "current_link_width", width)
        write(device / "max_link_speed", "32.0 GT/s PCIe")
        write(device / "max_link_width", "16")
        write(device / "aer_dev_fatal", "Undefined 0\nDLP 0\nTOTAL_ERR_FATAL 0")
        port = root / name / "ports/1"
        write(port / "state", "4: ACTIVE" if up else "1: DOWN")
        write(port / "phys_state", "5: LinkUp" if up else "3: Disabled")
        write(port / "rate", "100 Gb/sec (2X NDR)" if up else "40 Gb/sec (4X QDR)")
        write(port / "link_layer", "Ethernet")
        for index, (gid, kind) in enumerate(
            [(LOCAL, "IB/RoCE v1"), (LOCAL, "RoCE v2"), (IPV4, "IB/RoCE v1"), (IPV4, "RoCE v2")]
        ):
            write(port / "gids" / str(index), gid)
            write(port / "gid_attrs/types" / str(index), kind)
            write(port / "gid_attrs/ndevs" / str(index), netdev)
        write(port / "gids/4", EMPTY)
        write(port / "hw_counters/out_of_sequence", "7")
        write(port / "hw_counters/np_cnp_sent", "0")
        write(port / "counters/port_rcv_errors", "0")
        (root / name / "device").symlink_to(device)
    return root


def test_a_spark_is_seen_with_ports_gids_and_pcie(tmp_path: Path) -> None:
    found = devices(spark(tmp_path))
    assert found is not None
    first = next(hca for hca in found if hca.name == "rocep1s0f0")
    assert (first.pci, first.netdevs, first.is_active) == ("0000:01:00.0", ("enp1s0f0np0",), True)
    assert [hca.name for hca in found if hca.is_active] == ["roceP2p1s0f0", "rocep1s0f0"]
    assert [gid.index for gid in first.ports[0].gids] == [0, 1, 2, 3], "an unused entry is none"
    assert first.ports[0].gids[1].is_link_local and first.ports[0].gids[3].is_ipv4
    assert (first.pcie.speed, first.pcie.width, first.pcie.width_max, first.pcie.fatal_errors) == (32.0, 4, 16, 0)


def test_halves_are_told_by_their_pci_address(tmp_path: Path) -> None:
    found = devices(spark(tmp_path)) or ()
    by_name = {hca.name: hca for hca in found}
    other = twin(by_name["rocep1s0f0"], found)
    assert other is not None and other.name == "roceP2p1s0f0"
    assert twin(by_name["rocep1s0f0"], [by_name["rocep1s0f0"], by_name["rocep1s0f1"]]) is None


def test_no_rdma_is_not_no_card(tmp_path: Path) -> None:
    root = spark(tmp_path)
    assert devices(tmp_path / "class/none") is None
    assert hardware_present(tmp_path / "devices") is True
    assert hardware_present(tmp_path / "class") is False
    assert hardware_present(tmp_path / "none") is None
    (root / "rocep1s0f0/device").unlink()  # a device without PCI below it: siw, rxe
    first = next(hca for hca in devices(root) or () if hca.name == "rocep1s0f0")
    assert first.pci == "" and twin(first, devices(root) or ()) is None and first.pcie.speed is None


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("rocep1s0f0,rocep1s0f1", ["rocep1s0f0", "rocep1s0f1"]),
        ("roce", ["roceP2p1s0f0", "roceP2p1s0f1", "rocep1s0f0", "rocep1s0f1"]),
        ("=rocep1s0f0", ["rocep1s0f0"]),
        ("=roce", []),
        ("^rocep1", ["roceP2p1s0f0", "roceP2p1s0f1"]),
        ("^=rocep1s0f0", ["roceP2p1s0f0", "roceP2p1s0f1", "rocep1s0f1"]),
        ("rocep1s0f0:1", ["rocep1s0f0"]),
        ("rocep1s0f0:2", []),
        ("", ["roceP2p1s0f0", "roceP2p1s0f1", "rocep1s0f0", "rocep1s0f1"]),
    ],
)
def test_the_selector_is_nccls(tmp_path: Path, text: str, taken: list[str]) -> None:
    assert [hca.name for hca in selected(devices(spark(tmp_path)) or (), text)] == taken


def test_what_a_selector_names_in_vain() -> None:
    names = ["mlx5_0", "mlx5_1"]
    assert selector("mlx5_0, rocep1s0f1").unmatched(names) == ["rocep1s0f1"]
    assert selector("^rocep1s0f1").unmatched(names) == [], "to exclude what is not there is no fault"
    assert selector("mlx5_1:1").unmatched(names) == []


def test_only_counters_that_move_are_news(tmp_path: Path) -> None:
    root = spark(tmp_path)
    before = rdma.counters(root, ["rocep1s0f0"])
    assert before == {
        "rocep1s0f0:1 out_of_sequence": 7,
        "rocep1s0f0:1 np_cnp_sent": 0,
        "rocep1s0f0:1 port_rcv_errors": 0,
    }
    write(root / "rocep1s0f0/ports/1/hw_counters/out_of_sequence", "9")
    write(root / "rocep1s0f0/ports/1/hw_counters/np_cnp_sent", "100")
    after = rdma.counters(root, ["rocep1s0f0"])
    assert moved(before, after, rdma.ERROR_COUNTERS) == {"rocep1s0f0:1 out_of_sequence": 2}
    assert moved(before, after, rdma.CONGESTION_COUNTERS) == {"rocep1s0f0:1 np_cnp_sent": 100}
    assert moved(after, before, rdma.ERROR_COUNTERS) == {}, "a driver that was loaded again counts from 0"
