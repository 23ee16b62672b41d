"""A bond as the kernel's bonding driver prints it."""

from __future__ import annotations

from pathlib import Path

from sparkd.host.bond import NO_PARTNER, Slave, parse, read_bond

# From the kernel's own format; the second slave has lost its link.
BACKUP = """\
Ethernet Channel Bonding Driver: v3.7.1 (April 27, 2011)

Bonding Mode: fault-tolerance (active-backup)
Primary Slave: enp1s0f0np0 (primary_reselect always)
Currently Active Slave: enp1s0f0np0
MII Status: up
MII Polling Interval (ms): 100
Up Delay (ms): 0
Down Delay (ms): 0
Peer Notification Delay (ms): 0

Slave Interface: enp1s0f0np0
MII Status: up
Speed: 200000 Mbps
Duplex: full
Link Failure Count: 0
Permanent HW addr: aa:bb:cc:dd:ee:01
Slave queue ID: 0

Slave Interface: enP2p1s0f0np0
MII Status: down
Speed: Unknown
Duplex: Unknown
Link Failure Count: 3
Permanent HW addr: aa:bb:cc:dd:ee:02
Slave queue ID: 0
"""

LACP = """\
Ethernet Channel Bonding Driver: v6.17.0

Bonding Mode: IEEE 802.3ad Dynamic link aggregation
Transmit Hash Policy: layer3+4 (1)
MII Status: up
MII Polling Interval (ms): 100

802.3ad info
LACP active: on
LACP rate: fast
Min links: 0
Aggregator selection policy (ad_select): stable
System priority: 65535
System MAC address: aa:bb:cc:dd:ee:01
Active Aggregator Info:
\tAggregator ID: 1
\tNumber of ports: 1
\tActor Key: 29
\tPartner Key: 1
\tPartner Mac Address: 00:00:00:00:00:00

Slave Interface: enp1s0f0np0
MII Status: up
Speed: 200000 Mbps
Duplex: full
Link Failure Count: 0
Aggregator ID: 1
details actor lacp pdu:
    system priority: 65535
details partner lacp pdu:
    system mac address: 00:00:00:00:00:00

Slave Interface: enP2p1s0f0np0
MII Status: up
Speed: 200000 Mbps
Duplex: full
Link Failure Count: 0
Aggregator ID: 2
"""


def test_slaves_with_their_state_and_failures() -> None:
    bond = parse("bond0", BACKUP)
    assert (bond.mode, bond.up, bond.active, bond.partner) == ("active-backup", True, "enp1s0f0np0", "")
    assert bond.slaves == (
        Slave("enp1s0f0np0", up=True, failures=0, speed_mbps=200_000),
        Slave("enP2p1s0f0np0", up=False, failures=3, speed_mbps=None),
    )


def test_lacp_says_who_answers_and_who_shares_the_load() -> None:
    bond = parse("bond0", LACP)
    assert bond.mode == "802.3ad" and bond.partner == NO_PARTNER
    assert [slave.aggregator for slave in bond.slaves] == [1, 2]


def test_modes_are_named_as_people_set_them() -> None:
    for said, name in (("load balancing (xor)", "balance-xor"), ("load balancing (round-robin)", "balance-rr")):
        assert parse("bond0", f"Bonding Mode: {said}\nMII Status: up\n").mode == name


def test_where_only_sys_can_be_read(tmp_path: Path) -> None:
    net = tmp_path / "net"
    for path, text in {
        "bond0/bonding/mode": "balance-xor 2",
        "bond0/bonding/mii_status": "up",
        "bond0/bonding/slaves": "a b",
        "a/bonding_slave/mii_status": "up",
        "b/bonding_slave/mii_status": "down",
    }.items():
        (net / path).parent.mkdir(parents=True, exist_ok=True)
        (net / path).write_text(text + "\n")
    bond = read_bond("bond0", tmp_path / "none", net)
    assert bond is not None and bond.mode == "balance-xor"
    assert [(slave.name, slave.up) for slave in bond.slaves] == [("a", True), ("b", False)]
    assert read_bond("eth0", tmp_path / "none", net) is None, "no bond"


def test_the_file_itself(tmp_path: Path) -> None:
    (tmp_path / "bond0").write_text(BACKUP)
    found = read_bond("bond0", tmp_path)
    assert found is not None and len(found.slaves) == 2
