"""Layer link: the private network between the nodes, end to end."""

from __future__ import annotations

from sparkd.doctor.check import Answers, Gate, cannot_tell, check, no, yes
from sparkd.doctor.facts import Facts, fact
from sparkd.host import link
from sparkd.model.cluster import Node
from sparkd.model.finding import Cure, Layer, Who


@fact
def state(facts: Facts) -> link.LinkState:
    return link.read_link(facts.configured.cluster.link.interface)


def others(facts: Facts) -> list[Node]:
    return [node for node in facts.configured.cluster.nodes if node.name != facts.plan.node]


def _alone(facts: Facts) -> bool:
    return facts.plan.size == 1


@check(
    "link.missing",
    layer=Layer.LINK,
    question="Does the link's interface exist?",
    how="/sys/class/net/INTERFACE",
    means="The interface that joins the nodes is not there: driver, bond or name. While a node boots it may still come.",
    remedy="ip -br link; networkctl status; is the bond configured in netplan?",
    sample="the link bond0 does not exist",
    cure=Cure.WAIT,
    gate=Gate.HOST,
)
def missing(facts: Facts) -> Answers:
    if _alone(facts):
        return
    name = facts.configured.cluster.link.interface
    if state(facts).exists:
        yield yes(f"{name} exists")
    else:
        yield no(f"the link {name} does not exist", remedy=f"ip addr show {name}")


@check(
    "link.carrier",
    layer=Layer.LINK,
    question="Is the link up, with a carrier?",
    how="/sys/class/net/INTERFACE/{flags,carrier}",
    means="No light on the cable: it is out, broken, or the other machine is off.",
    remedy="is the cable in, is the peer on?",
    sample="bond0 is up but has no carrier",
    who=Who.HANDS,
    cure=Cure.WAIT,
    gate=Gate.HOST,
    after=("link.missing",),
)
def carrier(facts: Facts) -> Answers:
    if _alone(facts):
        return
    name, now = facts.configured.cluster.link.interface, state(facts)
    if now.up and now.carrier is not False:
        yield yes(f"{name} is up")
        return
    says = f"{name} is {'down' if not now.up else 'up but has no carrier'}"
    yield no(says, remedy=f"ip addr show {name}; is the cable in, is the peer on?")


@check(
    "link.address",
    layer=Layer.LINK,
    question="Does the link have this node's address?",
    how="the interface's IPv4 addresses against cluster.nodes[].link_address",
    means="The ranks look for each other at an address that is not there.",
    remedy="ip -4 addr show on the link; netplan apply (never while serving)",
    sample="bond0 has 169.254.12.7, not 10.0.0.1",
    cure=Cure.WAIT,
    gate=Gate.HOST,
    after=("link.missing", "link.carrier"),
)
def address(facts: Facts) -> Answers:
    if _alone(facts):
        return
    cluster, now = facts.configured.cluster, state(facts)
    name, wanted = cluster.link.interface, cluster.nodes[facts.plan.rank].link_address
    if str(wanted) in now.addresses:
        yield yes(f"{name} has {wanted}")
    else:
        says = f"{name} has {', '.join(now.addresses) or 'no address'}, not {wanted}"
        yield no(says, remedy=f"ip addr show {name}")


@check(
    "link.mtu",
    layer=Layer.LINK,
    question="Does the link have the configured MTU?",
    how="/sys/class/net/INTERFACE/mtu against cluster.link.mtu",
    means="Ends that differ stall large transfers while small packets pass. Firmware updates reset the MTU to 1500.",
    remedy="ip link set INTERFACE mtu 9000, and in netplan so that it survives a reboot",
    sample="bond0 has MTU 1500, the configuration says 9000",
    gate=Gate.HOST,
    after=("link.missing", "link.carrier", "link.address"),
)
def mtu(facts: Facts) -> Answers:
    if _alone(facts):
        return
    cluster, now = facts.configured.cluster, state(facts)
    name, wanted = cluster.link.interface, cluster.link.mtu
    if now.mtu == wanted:
        yield yes(f"{name} has MTU {wanted}")
    else:
        says = f"{name} has MTU {now.mtu}, the configuration says {wanted}"
        yield no(says, remedy=f"ip link set {name} mtu {wanted} (and in netplan)")


@check(
    "link.mtu-path",
    layer=Layer.LINK,
    question="Do packets of full size reach the other nodes unfragmented?",
    how="ICMP echo with don't-fragment, small and of the link's MTU",
    means="Something between the ends drops large frames: the peer's MTU, or a port in between.",
    remedy="ping -M do -s 8972 the peer; set the same MTU on both ends and everything between",
    sample="spark2 answers, but not with frames of 9000 bytes",
    gate=Gate.HOST,
    after=("link.missing", "link.carrier", "link.address", "link.mtu"),
)
def mtu_path(facts: Facts) -> Answers:
    if _alone(facts):
        return
    size = facts.configured.cluster.link.mtu
    for other in others(facts):
        where = str(other.link_address)
        probe = link.probe_mtu(where, size)
        if probe.mtu_ok is False:
            remedy = f"ping -M do -s {size - 28} {where}; set MTU {size} on both ends and everything between"
            yield no(f"{other.name} answers, but not with frames of {size} bytes", remedy=remedy)
        elif probe.mtu_ok:
            yield yes(f"{other.name} answers with frames of {size} bytes")
        else:  # a peer that is off is the barrier's business; a path that drops large frames is ours
            yield cannot_tell(probe.says or f"{other.name} does not answer yet")
