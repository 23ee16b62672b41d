"""Layer link: the private network between the nodes, end to end. RDMA over it is in rdma.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sparkd.doctor.check import Answers, Gate, cannot_tell, check, doubtful, no, yes
from sparkd.doctor.facts import Facts, fact
from sparkd.host import bond, link, rdma
from sparkd.model.cluster import Node
from sparkd.model.finding import Cure, Finding, Layer, Who

FLAPS_MIN = 30  # carrier changes; fewer are cables being plugged and reboots of the peer
FLAPS_PER_HOUR = 1.0
SPEED_WANTED_MBPS = 200_000  # of a Spark's QSFP port; one half of it says 100 or 200 Gb/s, both are normal
SPEED_MIN_MBPS = 100_000
THROUGHPUT_S = 3.0
THROUGHPUT_BAD_GBPS, THROUGHPUT_LOW_GBPS = 30.0, 90.0  # of a 200 Gb/s link; the known bad state is 8 to 25
LAN_BYTES, LAN_MAX_S = 576, 0.5  # of an echo that only asks whether a machine lives
LOSS_ECHOES, LOST_MIN = 20, 2  # a single one may be chance
UPTIME = Path("/proc/uptime")


@fact
def state(facts: Facts) -> link.LinkState:
    return link.read_link(facts.configured.cluster.link.interface)


@fact
def probed(facts: Facts, address: str, size: int) -> link.MtuProbe:
    return link.probe_mtu(address, size)


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
        probe = probed(facts, where, size)
        if probe.mtu_ok is False:
            remedy = f"ping -M do -s {size - 28} {where}; set MTU {size} on both ends and everything between"
            yield no(f"{other.name} answers, but not with frames of {size} bytes", remedy=remedy)
        elif probe.mtu_ok:
            yield yes(f"{other.name} answers with frames of {size} bytes")
        else:  # a peer that is off is the barrier's business; a path that drops large frames is ours
            yield cannot_tell(probe.says or f"{other.name} does not answer yet")


@check(
    "link.peer-silent",
    layer=Layer.LINK,
    question="Do the other nodes answer over the link?",
    how="ICMP echo to the link addresses; where nothing comes back, to the LAN addresses: is it the link or the machine?",
    means="Nothing comes over the link although this end has a carrier: the other machine is off or hangs, or what is sent is "
    "lost in one direction at least (wrong port, bond mode, firewall, address).",
    remedy="is the other machine on? ip -s link show on both ends; ip neigh show dev INTERFACE",
    sample="spark2 answers over the LAN, but not over the link (10.0.0.2): what is sent over the link is lost",
    who=Who.HANDS,
    cure=Cure.WAIT,
    after=("link.missing", "link.carrier", "link.address"),
)
def peer_silent(facts: Facts) -> Answers:
    """No gate: whether to wait for a peer that boots is the barrier's business."""
    if _alone(facts) or facts.calm:
        return
    cluster = facts.configured.cluster
    for other in others(facts):
        where = str(other.link_address)
        if probed(facts, where, cluster.link.mtu).reached is not False:
            continue
        lan = other.lan_address and link.probe_mtu(str(other.lan_address), LAN_BYTES, timeout_s=LAN_MAX_S).reached
        if lan:
            says = f"{other.name} answers over the LAN, but not over the link ({where}): what is sent over the link is lost"
            name = cluster.link.interface
            yield no(
                says, remedy=f"on both nodes: ip -s link show {name}; ip neigh show dev {name}; ip addr show {name}"
            )
        else:
            also = f" nor over the LAN ({other.lan_address})" if other.lan_address else ""
            says = (
                f"{other.name} answers neither over the link ({where}){also}"
                if also
                else f"{other.name} does not answer"
            )
            yield no(
                f"{says}: it is off, boots, or hangs", remedy=f"look at {other.name} itself: is it on, does it boot?"
            )


@check(
    "link.loss",
    layer=Layer.LINK,
    question="Does everything arrive that is sent over the link?",
    how="20 small ICMP echoes at once, and 20 more where one was lost",
    means="A damaged cable, module or port: TCP slows to a crawl, RDMA breaks its connections, the engine hangs or dies.",
    remedy="ip -s link show on both ends; ethtool -S: which errors grow? plug the cable anew, or try another",
    sample="the link loses packets: 11 of 40 to spark2 and back were lost",
    who=Who.HANDS,
    after=("link.missing", "link.carrier", "link.address", "link.peer-silent"),
)
def loss(facts: Facts) -> Answers:
    if _alone(facts) or facts.calm:
        return
    for other in others(facts):
        where = str(other.link_address)
        if not probed(facts, where, facts.configured.cluster.link.mtu).reached:
            continue
        sent, lost = LOSS_ECHOES, link.count_lost(where, count=LOSS_ECHOES)
        if lost:
            sent, lost = 2 * sent, lost + link.count_lost(where, count=LOSS_ECHOES)
        if lost >= LOST_MIN:
            yield no("the link loses packets", evidence=(f"{lost} of {sent} to {other.name} and back were lost",))
        else:
            yield yes(f"{sent - lost} of {sent} packets to {other.name} came back")


# --- the interface beneath ------------------------------------------------------------------------------


@fact
def bonded(facts: Facts) -> bond.Bond | None:
    return bond.read_bond(facts.configured.cluster.link.interface)


@fact
def hardware(facts: Facts) -> tuple[link.Nic, ...]:
    return link.nics(facts.configured.cluster.link.interface)


@check(
    "link.bond-slaves",
    layer=Layer.LINK,
    question="Does the bond have its slaves, and is each of them up?",
    how="/proc/net/bonding/INTERFACE",
    means="The link runs at half its speed, or not at all; a bond without slaves is up and carries nothing.",
    remedy="cat /proc/net/bonding/INTERFACE; is the cable in? ip link set SLAVE master INTERFACE",
    sample="slave enP2p1s0f0np0 of bond0 is down (its link failed 3 times)",
    who=Who.HANDS,
    after=("link.missing",),
)
def bond_slaves(facts: Facts) -> Answers:
    found = None if _alone(facts) else bonded(facts)
    if found is not None:
        yield from judge_bond(found)


def judge_bond(found: bond.Bond) -> Answers:
    """Pure."""
    name = found.interface
    if not found.slaves:
        yield no(f"{name} is a bond without slaves", remedy=f"cat /proc/net/bonding/{name}; netplan get")
        return
    down = [slave for slave in found.slaves if not slave.up]
    for slave in down:
        failed = f" (its link failed {slave.failures} times)" if slave.failures else ""
        yield no(
            f"slave {slave.name} of {name} is down{failed}", remedy=f"ip -s link show {slave.name}; is the cable in?"
        )
    if not down:
        names = ", ".join(slave.name for slave in found.slaves)
        yield yes(f"{name} has {len(found.slaves)} slaves, all up ({names}; {found.mode})")


@check(
    "link.bond-lacp",
    layer=Layer.LINK,
    question="Did both ends of the bond agree to share the load?",
    how="partner address and aggregators in /proc/net/bonding/INTERFACE, where its mode is 802.3ad",
    means="The other end is no such bond, or the slaves ended in different groups: only one of them carries traffic.",
    remedy="give both ends the same mode: 802.3ad with one LACP rate, or balance-xor",
    sample="nobody answers bond0 by LACP (partner 00:00:00:00:00:00)",
    after=("link.missing", "link.carrier", "link.bond-slaves"),
)
def bond_lacp(facts: Facts) -> Answers:
    found = None if _alone(facts) else bonded(facts)
    if found is not None and found.mode == "802.3ad":
        yield judge_lacp(found)


def judge_lacp(found: bond.Bond) -> Finding:
    """Pure."""
    groups = {slave.aggregator for slave in found.slaves if slave.aggregator is not None}
    if not found.partner:
        return cannot_tell(f"the driver does not say who {found.interface} talks to", remedy="sudo sparkd doctor")
    if found.partner == bond.NO_PARTNER:
        return doubtful(f"nobody answers {found.interface} by LACP (partner {found.partner})")
    if len(groups) > 1:
        return doubtful(f"the slaves of {found.interface} are in {len(groups)} groups: only one carries traffic")
    return yes(f"{found.interface} shares its load with {found.partner}")


@check(
    "link.flapping",
    layer=Layer.LINK,
    question="Does the link stay up?",
    how="/sys/class/net/INTERFACE/carrier_changes against the uptime; Link Failure Count of the bond's slaves",
    means="A loose or damaged cable, or a peer that boots again and again: RDMA connections break at each flap.",
    remedy="journalctl -k | grep -i 'link is'; plug the cable anew, or try another",
    sample="bond0 lost and found its carrier 212 times in 3.1 hours",
    who=Who.HANDS,
    after=("link.missing", "link.carrier"),
)
def flapping(facts: Facts) -> Answers:
    if _alone(facts):
        return
    found = bonded(facts)
    changes = state(facts).carrier_changes
    failures = sum(slave.failures for slave in found.slaves) if found else 0
    yield judge_flaps(facts.configured.cluster.link.interface, changes, failures, uptime_s())


def judge_flaps(interface: str, changes: int | None, failures: int, up_s: float) -> Finding:
    """Pure. One look sees no rate, so it is taken over the whole uptime."""
    if changes is None:
        return cannot_tell(f"the kernel does not say how often {interface} lost its carrier")
    worst = max(changes, 2 * failures)
    hours = max(up_s / 3600, 0.1)
    if worst >= FLAPS_MIN and worst / hours > FLAPS_PER_HOUR:
        return doubtful(f"{interface} lost and found its carrier {worst} times in {hours:.1f} hours")
    return yes(f"{interface} changed its carrier {changes} times in {hours:.1f} hours")


def uptime_s(path: Path = UPTIME) -> float:
    return float(path.read_text(encoding="ascii").split()[0])


@check(
    "link.speed",
    layer=Layer.LINK,
    question="Does the link run at the speed of its hardware?",
    how="/sys/class/net/INTERFACE/speed of the network cards beneath",
    means="A cable or module that negotiated less: every token waits for the transfer between the nodes.",
    remedy="ethtool INTERFACE; use a 200 Gb/s QSFP56 cable; plug it anew",
    sample="enp1s0f0np0 runs at 50 Gb/s, its hardware can 200",
    who=Who.HANDS,
    after=("link.missing", "link.carrier"),
)
def speed(facts: Facts) -> Answers:
    if not _alone(facts):
        yield from judge_speed(facts.configured.cluster.link.interface, hardware(facts))


def judge_speed(interface: str, cards: Sequence[link.Nic]) -> Answers:
    """Pure. Only of a ConnectX we know what it should do."""
    if not cards:
        yield cannot_tell(f"{interface} is a virtual interface: no hardware says how fast it is")
    for card in cards:
        if card.speed_mbps is None:
            yield cannot_tell(f"the driver does not say how fast {card.name} is")
        elif card.vendor == rdma.MELLANOX and card.speed_mbps < SPEED_MIN_MBPS:
            yield no(
                f"{card.name} runs at {card.speed_mbps / 1000:g} Gb/s, its hardware can {SPEED_WANTED_MBPS // 1000}"
            )
        else:
            yield yes(f"{card.name} runs at {card.speed_mbps / 1000:g} Gb/s")


@check(
    "link.ifname-missing",
    layer=Layer.LINK,
    question="Do the interfaces exist that NCCL and Gloo are told to use?",
    how="NCCL_SOCKET_IFNAME (a list of prefixes, ^ and = understood), GLOO_SOCKET_IFNAME and TP_SOCKET_IFNAME against the host's",
    means="Unable to find address for: NAME, or Bootstrap : no socket interface found, at the first meeting of the ranks.",
    remedy="ip -br addr; correct the variable in this node's environment (nodes[].environment in sparkd.yaml)",
    sample="GLOO_SOCKET_IFNAME names enp1s0f1np1, which this node does not have",
    cure=Cure.WAIT,
    after=("link.missing",),
)
def ifname_missing(facts: Facts) -> Answers:
    if facts.plan.size > 1:
        yield from judge_ifnames(facts.plan.environment, link.interface_names())


def judge_ifnames(environment: Mapping[str, str], names: Sequence[str]) -> Answers:
    """Pure. NCCL takes prefixes, Gloo whole names."""
    wrong = False
    asked = [name for name in environment if name.endswith("_SOCKET_IFNAME") and environment[name].strip()]
    for variable in asked:
        value = environment[variable]
        if variable.startswith("NCCL_"):
            absent = rdma.selector(value).unmatched(names)
        else:
            absent = [each.strip() for each in value.split(",") if each.strip() not in names]
        for name in absent:
            wrong = True
            yield no(f"{variable} names {name}, which this node does not have", evidence=(f"here: {', '.join(names)}",))
    if asked and not wrong:
        yield yes(f"the interfaces exist that {' and '.join(asked)} name")


@check(
    "link.throughput",
    layer=Layer.LINK,
    question="Does the link carry what its speed promises?",
    how="the daemons send each other data for 3 s; only when it is asked for (--only link.throughput)",
    means="A known state after crashes and power faults carries 13 of 200 Gb/s while every counter looks well.",
    remedy="power both nodes off, pull the mains plug and the cable for a minute; compare with ib_write_bw on both halves",
    sample="spark2 is reached with 12.7 Gb/s of 200",
    who=Who.HANDS,
    after=("link.missing", "link.carrier", "link.address", "link.mtu", "link.mtu-path", "link.speed"),
    slow=True,
)
def throughput(facts: Facts) -> Answers:
    if _alone(facts):
        return
    if facts.throughput is None:
        yield cannot_tell("only the daemons can measure it, and this node's does not answer")
        return
    total_mbps = sum(card.speed_mbps or 0 for card in hardware(facts))
    for node, gbps in facts.throughput(THROUGHPUT_S).items():
        yield judge_throughput(node, gbps, total_mbps)


def judge_throughput(node: str, gbps: float, speed_mbps: int) -> Finding:
    """Pure. Daemons talk TCP through one processor core or two: what they reach is a lower bound."""
    says = f"{node} is reached with {gbps:.1f} Gb/s"
    if speed_mbps < SPEED_MIN_MBPS:
        return yes(f"{says} (how fast the link should be is not known)")
    says += f" of {min(speed_mbps, SPEED_WANTED_MBPS) // 1000}"
    if gbps < THROUGHPUT_BAD_GBPS:
        return no(says)
    if gbps < THROUGHPUT_LOW_GBPS:
        return doubtful(
            f"{says}: less than a sound link gives", remedy="ib_write_bw -d DEVICE on both halves at once: 184 or more"
        )
    return yes(says)


# The layer's checks are those of this file and then those of RDMA, which are told after the interface beneath them.
from sparkd.doctor.checks.rdma import (  # noqa: E402
    congestion,
    gid,
    memlock,
    pcie,
    rdma_down,
    rdma_errors,
    rdma_halves,
    rdma_missing,
    verbs,
)

__all__ = [
    "congestion",
    "gid",
    "memlock",
    "pcie",
    "rdma_down",
    "rdma_errors",
    "rdma_halves",
    "rdma_missing",
    "verbs",
]
