"""Which node this machine is."""

from __future__ import annotations

import pytest

from sparkd.config.identity import identify, identify_here, local_addresses
from sparkd.model.cluster import Cluster, Node
from sparkd.model.errors import ConfigError

PAIR = Cluster(
    nodes=(
        Node(name="spark1", link_address="10.0.0.1", lan_address="192.168.1.11"),
        Node(name="spark2", link_address="10.0.0.2", lan_address="192.168.1.12", hostname="gx10-b"),
    )
)


@pytest.mark.parametrize(
    ("asked", "hostname", "addresses", "expected"),
    [
        (None, "unrelated", ["127.0.0.1", "10.0.0.2"], "spark2"),
        (None, "unrelated", ["192.168.1.11"], "spark1"),
        (None, "spark1", ["10.0.0.2"], "spark2"),  # an address is the better witness
        (None, "spark1", [], "spark1"),  # before the network is up
        (None, "Spark1.example.org", ["127.0.0.1"], "spark1"),
        (None, "gx10-b", [], "spark2"),
        ("spark1", "gx10-b", ["10.0.0.2"], "spark1"),
    ],
)
def test_found(asked: str | None, hostname: str, addresses: list[str], expected: str) -> None:
    assert identify(PAIR, asked=asked, hostname=hostname, addresses=addresses).name == expected


def test_not_found_tells_what_was_seen() -> None:
    with pytest.raises(ConfigError) as caught:
        identify(PAIR, asked=None, hostname="forge", addresses=["192.168.1.19"])
    assert str(caught.value) == "cluster.nodes: this machine is none of the cluster's nodes"
    assert caught.value.hint == (
        "say which with --node; the nodes are spark1 (10.0.0.1), spark2 (10.0.0.2); "
        "seen here: host name forge, addresses 192.168.1.19"
    )


def test_the_host_name_of_another_is_not_spark2() -> None:
    with pytest.raises(ConfigError):
        identify(PAIR, asked=None, hostname="spark2", addresses=[])  # its configured host name is gx10-b


def test_ambiguous() -> None:
    with pytest.raises(ConfigError, match="this machine could be spark1 or spark2"):
        identify(PAIR, asked=None, hostname="spark1", addresses=["10.0.0.1", "10.0.0.2"])


def test_asked_for_a_stranger() -> None:
    with pytest.raises(ConfigError) as caught:
        identify(PAIR, asked="spark3", hostname="spark1", addresses=["10.0.0.1"])
    assert str(caught.value) == "--node: no node is called 'spark3'"
    assert caught.value.hint == "the nodes are spark1 (10.0.0.1), spark2 (10.0.0.2)"


def test_this_machine() -> None:
    assert "127.0.0.1" in local_addresses()
    alone = Cluster(nodes=(Node(name="here", link_address="127.0.0.1"), Node(name="there", link_address="192.0.2.1")))
    assert identify_here(alone).name == "here"
    assert identify_here(alone, asked="there").name == "there"
