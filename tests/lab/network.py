"""The lab's network: a link and a LAN, each a bridge in a namespace of its own.

In the host's namespace a Docker's firewall would drop the frames. And a cable has to be pulled at its far side:
a node whose own interface goes down loses its default route for good.

    spark1 bond0 ── p1 [wire] p2 ── bond0 spark2        10.0.0.0/24, MTU 9000
    spark1 eth0 ── spark1 [lan] spark2 ── eth0 spark2   192.168.77.0/24; clients run in [lan]
"""

from __future__ import annotations

from pathlib import Path

from .host import run
from .places import CLIENT_ADDRESS, LINK_MTU, NODES, Places, lan_address, link_address

WIRE, LAN = "wire", "lan"


def port(node: str) -> str:
    """The far end of a node's `bond0`, in the wire's namespace."""
    return f"p{NODES.index(node) + 1}"


def up(places: Places) -> None:
    """Make what is not there yet. Raises LabError."""
    if exists(places):
        return
    down(places)
    for what in (WIRE, LAN, *NODES):
        run(["ip", "netns", "add", places.namespace(what)])
        ip(places, what, "link set lo up")
    ip(places, WIRE, f"link add wire mtu {LINK_MTU} type bridge")
    ip(places, WIRE, "link set wire up")
    ip(places, LAN, "link add lan type bridge")
    ip(places, LAN, "link set lan up")
    ip(places, LAN, f"addr add {CLIENT_ADDRESS}/24 dev lan")
    for node in NODES:
        end = f"mtu {LINK_MTU} netns {places.namespace(node)}"
        ip(places, WIRE, f"link add {port(node)} mtu {LINK_MTU} type veth peer name bond0 {end}")
        ip(places, WIRE, f"link set {port(node)} master wire up")
        ip(places, LAN, f"link add {node} type veth peer name eth0 netns {places.namespace(node)}")
        ip(places, LAN, f"link set {node} master lan up")


def configure_node(places: Places, node: str) -> None:
    """What a machine's boot does: addresses on, interfaces up. The hardware's state (MTU, cable) is left alone."""
    for interface, address in (("bond0", link_address(node)), ("eth0", lan_address(node))):
        ip(places, node, f"addr replace {address}/24 dev {interface}")
        ip(places, node, f"link set {interface} up")
    ip(places, node, f"route replace default via {CLIENT_ADDRESS}")


def exists(places: Places) -> bool:
    return all(Path("/run/netns", places.namespace(what)).exists() for what in (WIRE, LAN, *NODES)) and all(
        ip(places, node, "link show bond0", check=False) and ip(places, node, "link show eth0", check=False)
        for node in NODES
    )


def down(places: Places) -> None:
    """Remove the namespaces; their interfaces go with them."""
    for what in (*NODES, WIRE, LAN):
        if Path("/run/netns", places.namespace(what)).exists():
            run(["ip", "netns", "del", places.namespace(what)])


def ip(places: Places, what: str, command: str, *, check: bool = True) -> bool:
    """`ip COMMAND` in the namespace of a node, the wire or the LAN. Returns whether it succeeded."""
    return run(["ip", "-n", places.namespace(what), *command.split()], check=check).returncode == 0


def set_link(places: Places, *, carrier: bool) -> None:
    """Pull the cable out, or put it back: both ends see their carrier go."""
    for node in NODES:
        ip(places, WIRE, f"link set {port(node)} {'up' if carrier else 'down'}")


def set_mtu(places: Places, mtu: int) -> None:
    """MTU of the whole link: both ends and the path between them."""
    for node in NODES:
        ip(places, node, f"link set bond0 mtu {mtu}")
        ip(places, WIRE, f"link set {port(node)} mtu {mtu}")
    ip(places, WIRE, f"link set wire mtu {mtu}")


def entered(places: Places, what: str, argv: list[str]) -> list[str]:
    """`argv`, wrapped so that it runs in a namespace of the lab."""
    return ["nsenter", f"--net=/run/netns/{places.namespace(what)}", "--", *argv]
