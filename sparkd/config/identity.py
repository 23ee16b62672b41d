"""Which of the cluster's nodes this machine is: the same sparkd.yaml lies on all of them."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import psutil

from sparkd.model.cluster import Cluster, Node
from sparkd.model.errors import ConfigError


def identify(cluster: Cluster, *, asked: str | None, hostname: str, addresses: Iterable[str]) -> Node:
    """The node called `asked`; else the one that has one of `addresses` (link or LAN); else the one of this host name.

    ConfigError where there is none, or more than one.
    """
    if asked is not None:
        named = [node for node in cluster.nodes if node.name == asked]
        if named:
            return named[0]
        raise ConfigError(f"no node is called {asked!r}", where="--node", hint=f"the nodes are {_listed(cluster)}")
    here = set(addresses)
    owners = [node for node in cluster.nodes if {str(node.link_address), str(node.lan)} & here]
    # Before the network is up only the host name is known; after, an address is the better witness.
    found = owners or [node for node in cluster.nodes if _same_host(node.hostname or node.name, hostname)]
    if len(found) == 1:
        return found[0]
    seen = f"host name {hostname}, addresses {', '.join(sorted(here)) or 'none'}"
    hint = f"say which with --node; the nodes are {_listed(cluster)}; seen here: {seen}"
    if found:
        either = " or ".join(node.name for node in found)
        raise ConfigError(f"this machine could be {either}", where="cluster.nodes", hint=hint)
    raise ConfigError("this machine is none of the cluster's nodes", where="cluster.nodes", hint=hint)


def identify_here(cluster: Cluster, asked: str | None = None) -> Node:
    """`identify` for the machine that we run on."""
    return identify(cluster, asked=asked, hostname=socket.gethostname(), addresses=local_addresses())


def local_addresses() -> set[str]:
    """Every IPv4 address that an interface of this machine has now."""
    return {
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET
    }


def _same_host(configured: str, actual: str) -> bool:
    """Host names are case-blind, and some machines report theirs with the domain, some without."""
    configured, actual = configured.lower(), actual.lower()
    return configured == actual or configured == actual.partition(".")[0] or configured.partition(".")[0] == actual


def _listed(cluster: Cluster) -> str:
    return ", ".join(f"{node.name} ({node.link_address})" for node in cluster.nodes)
