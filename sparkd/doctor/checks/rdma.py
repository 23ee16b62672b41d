"""Layer link, RDMA: do the devices that the plan names work, and can the engine reach them? link.py lists these checks."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparkd.doctor.check import Answers, cannot_tell, check, doubtful, no, yes
from sparkd.doctor.facts import Facts, engine_processes, fact
from sparkd.engine.spec import ContainerState
from sparkd.host import rdma
from sparkd.host.rdma import Hca
from sparkd.model.finding import Cure, Finding, Layer, Who
from sparkd.model.plan import Plan

PCIE_SPEED, PCIE_WIDTH = 32.0, 4  # GT/s and lanes: what a GB10 gives each half of a port
SAMPLE_S = 0.3
MEMLOCK_MIN_BYTES = 1 << 30  # NCCL pins more than the usual 8 MiB as soon as it begins


@fact
def hcas(facts: Facts) -> tuple[Hca, ...] | None:
    return rdma.devices()


def wants_rdma(plan: Plan) -> bool:
    """The plan names RDMA devices and does not switch them off: then a fall back to sockets is a fault."""
    return (
        plan.size > 1
        and bool(plan.environment.get("NCCL_IB_HCA", "").strip())
        and plan.environment.get("NCCL_IB_DISABLE", "0").strip() in ("", "0")
    )


def chosen(facts: Facts) -> tuple[Hca, ...]:
    """The devices that NCCL would take by the plan's environment; none where this machine has none."""
    found = hcas(facts) if wants_rdma(facts.plan) else None
    return () if found is None else rdma.selected(found, facts.plan.environment["NCCL_IB_HCA"])


@check(
    "link.rdma-missing",
    layer=Layer.LINK,
    question="Do the RDMA devices exist that the plan names?",
    how="NCCL_IB_HCA of the plan (^ = prefix :port understood) against /sys/class/infiniband",
    means="Names differ with the port that the cable is in, and after firmware updates. NCCL then falls back to TCP, or ends.",
    remedy="ibdev2netdev; correct NCCL_IB_HCA in this node's environment (nodes[].environment in sparkd.yaml)",
    sample="NCCL_IB_HCA names rocep1s0f1, which this node does not have (it has mlx5_0, mlx5_1)",
    cure=Cure.WAIT,
)
def rdma_missing(facts: Facts) -> Answers:
    if wants_rdma(facts.plan):
        found = hcas(facts)
        present = True if found else rdma.hardware_present()
        yield from judge_devices(facts.plan.environment["NCCL_IB_HCA"], found, present)


def judge_devices(text: str, found: Sequence[Hca] | None, hardware_present: bool | None) -> Answers:
    """Pure. A machine without such a card is no Spark, and nothing is wrong with it."""
    if not found:
        if hardware_present:
            says = "there is a ConnectX card, and no RDMA device: the driver mlx5_ib is not loaded"
            yield no(says, remedy="modprobe mlx5_ib; dmesg | grep mlx5")
        else:
            yield cannot_tell(f"this machine has no RDMA device, the plan names {text}")
        return
    names = [hca.name for hca in found]
    absent = rdma.selector(text).unmatched(names)
    for name in absent:
        yield no(f"NCCL_IB_HCA names {name}, which this node does not have (it has {', '.join(names)})")
    if not absent:
        taken = ", ".join(hca.name for hca in rdma.selected(found, text))
        yield yes(f"NCCL takes {taken or 'no device'} ({text})")


@check(
    "link.rdma-down",
    layer=Layer.LINK,
    question="Are the RDMA devices that the plan names active?",
    how="/sys/class/infiniband/DEVICE/ports/N/{state,phys_state}",
    means="No light at that port: the cable is in the other one, or out. NCCL hangs or falls back to TCP.",
    remedy="ibdev2netdev; name the devices that are Up, or plug the cable into that port",
    sample="rocep1s0f1 is DOWN (Disabled)",
    who=Who.HANDS,
    after=("link.rdma-missing", "link.carrier", "link.missing"),
)
def rdma_down(facts: Facts) -> Answers:
    for hca in chosen(facts):
        yield judge_active(hca)


def judge_active(hca: Hca) -> Finding:
    """Pure."""
    if hca.is_active:
        rate = next((port.rate for port in hca.ports if port.is_active), "")
        return yes(f"{hca.name} is ACTIVE ({rate}; {', '.join(hca.netdevs) or 'no interface'})")
    stands = ", ".join(f"{port.state} ({port.physical})" for port in hca.ports) or "without a port"
    return no(f"{hca.name} is {stands}", evidence=(f"its interface: {', '.join(hca.netdevs) or 'none'}",))


@check(
    "link.rdma-halves",
    layer=Layer.LINK,
    question="Are the RDMA devices that the plan names the two halves of one port?",
    how="PCI addresses behind /sys/class/infiniband: the same slot and function in two domains",
    means="Each half has a PCIe link of its own. Two devices behind one link share 100 Gb/s; one half alone has no more.",
    remedy="NCCL_IB_HCA=rocep1s0fX,roceP2p1s0fX, with the X of the port that the cable is in; then measure",
    sample="rocep1s0f0 and rocep1s0f1 are behind one PCIe link (domain 0000): they share half of the bandwidth",
    after=("link.rdma-missing", "link.rdma-down"),
)
def rdma_halves(facts: Facts) -> Answers:
    found = chosen(facts)
    if found:
        yield from judge_halves(found, hcas(facts) or ())


def judge_halves(taken: Sequence[Hca], everything: Sequence[Hca]) -> Answers:
    """Pure. Only a device that has a twin can lack it."""
    active = [hca for hca in taken if hca.is_active]
    names = [hca.name for hca in taken]
    lonely = [(hca, rdma.twin(hca, everything)) for hca in active if rdma.twin(hca, taken) is None]
    missed = [(hca, other) for hca, other in lonely if other is not None and other.is_active]
    domains = {hca.domain for hca in active if hca.pci}
    if missed and len(active) > 1 and len(domains) == 1:
        shared = f"domain {domains.pop()}"
        says = f"{' and '.join(names)} are behind one PCIe link ({shared}): they share half of the bandwidth"
        yield doubtful(says, remedy=_halves_remedy(missed[0]))
    elif missed:
        hca, other = missed[0]
        yield doubtful(
            f"the plan names {hca.name} and not {other.name}, its port's other half", remedy=_halves_remedy(missed[0])
        )
    elif active and all(rdma.twin(hca, everything) is not None for hca in active):
        yield yes(f"{' and '.join(names)} are the halves of {'one port' if len(active) < 3 else 'their ports'}")


def _halves_remedy(pair: tuple[Hca, Hca]) -> str:
    return f"NCCL_IB_HCA={pair[0].name},{pair[1].name} in this node's environment; then measure"


@check(
    "link.gid",
    layer=Layer.LINK,
    question="Does every RDMA device have the GID that NCCL will use?",
    how="/sys/class/infiniband/DEVICE/ports/N/gids and gid_attrs; NCCL_IB_GID_INDEX of the plan",
    means="GID tables move when addresses change. With a pinned index that became a hole or link-local: ibv_modify_qp failed.",
    remedy="leave NCCL_IB_GID_INDEX out: NCCL finds the RoCE v2 address itself; ip -br addr of the device's interface",
    sample="NCCL_IB_GID_INDEX is 3, and GID 3 of roceP2p1s0f1 is empty",
    after=("link.rdma-missing", "link.rdma-down", "link.address"),
)
def gid(facts: Facts) -> Answers:
    pinned = facts.plan.environment.get("NCCL_IB_GID_INDEX")
    for hca in chosen(facts):
        yield judge_gid(hca, pinned)


def judge_gid(hca: Hca, pinned: str | None) -> Finding:
    """Pure. An empty value counts as 0, as NCCL reads it; -1 is NCCL's own choice."""
    gids = [gid for port in hca.ports for gid in port.gids]
    routable = [gid for gid in gids if gid.kind == "RoCE v2" and gid.is_ipv4]
    shown = tuple(f"{gid.index}: {gid.gid} {gid.kind} {gid.netdev}" for gid in gids[:8])
    if pinned is not None and pinned.strip() != "-1":
        text = pinned.strip() or "0"
        said = f"NCCL_IB_GID_INDEX is {pinned.strip() or 'empty, which counts as 0'}"
        found = next((gid for gid in gids if str(gid.index) == text), None)
        if found is None:
            return no(f"{said}, and GID {text} of {hca.name} is empty", evidence=shown)
        if found.is_link_local:
            return no(f"{said}, and GID {text} of {hca.name} is a link-local address ({found.gid})", evidence=shown)
        if found not in routable:
            return no(f"{said}, and GID {text} of {hca.name} is {found.kind}, not RoCE v2 over IPv4", evidence=shown)
        return yes(f"{said}, on {hca.name} RoCE v2 over IPv4", evidence=shown)
    if routable:
        return yes(f"{hca.name} has RoCE v2 over IPv4 at GID {routable[0].index}", evidence=shown)
    netdev = ", ".join(hca.netdevs) or "its interface"
    return no(f"{hca.name} has no GID for RoCE v2 over IPv4: {netdev} has no IPv4 address", evidence=shown)


@check(
    "link.pcie",
    layer=Layer.LINK,
    question="Is the PCIe link of each RDMA device as wide and fast as it can be?",
    how="/sys/class/infiniband/DEVICE/device/{current_link_speed,current_link_width,max_link_*,aer_dev_fatal}",
    means="A link that trained down halves the bandwidth until the next power cycle.",
    remedy="shut down, pull the mains plug for a minute, start again; update the firmware",
    sample="rocep1s0f0: PCIe at 16 GT/s x4, 32 GT/s x4 are normal",
    who=Who.HANDS,
    after=("link.rdma-missing",),
)
def pcie(facts: Facts) -> Answers:
    for hca in chosen(facts):
        yield judge_pcie(hca)


def judge_pcie(hca: Hca) -> Finding:
    """Pure. The card could have more lanes than a GB10 gives it: what is normal there is the yardstick."""
    at = hca.pcie
    if at.speed is None or at.width is None:
        return cannot_tell(f"the kernel does not say how the PCIe link of {hca.name} runs")
    speed, width = min(at.speed_max or PCIE_SPEED, PCIE_SPEED), min(at.width_max or PCIE_WIDTH, PCIE_WIDTH)
    says = f"{hca.name}: PCIe at {at.speed:g} GT/s x{at.width}"
    if at.speed < speed or at.width < width:
        return doubtful(f"{says}, {speed:g} GT/s x{width} are normal")
    if at.fatal_errors:
        return doubtful(f"{says}, with {at.fatal_errors} fatal errors since boot", remedy="dmesg | grep -i aer")
    return yes(says)


@fact
def counted(facts: Facts) -> tuple[dict[str, int], dict[str, int]]:
    """Error and congestion counters of the devices that the plan names, twice."""
    names = [hca.name for hca in chosen(facts)]
    before = rdma.counters(names=names)
    if before:
        time.sleep(SAMPLE_S)
    return before, rdma.counters(names=names)


@check(
    "link.rdma-errors",
    layer=Layer.LINK,
    question="Do the RDMA devices' error counters stand still?",
    how="/sys/class/infiniband/DEVICE/ports/N/{hw_counters,counters}, twice within 0.3 s",
    means="Packets are lost or damaged right now: a bad cable, an MTU that differs, a peer that went away.",
    remedy="ethtool -S the interface | grep -E 'err|discard'; the same MTU on both ends; another cable",
    sample="rocep1s0f0:1 packet_seq_err grew by 118 in 0.3 s",
    after=("link.rdma-missing", "link.rdma-down", "link.mtu", "link.mtu-path"),
)
def rdma_errors(facts: Facts) -> Answers:
    if chosen(facts):
        yield judge_counters(*counted(facts), rdma.ERROR_COUNTERS, "error")


@check(
    "link.congestion",
    layer=Layer.LINK,
    question="Does nothing slow the RDMA devices down?",
    how="congestion notifications in /sys/class/infiniband/DEVICE/ports/N/hw_counters, twice within 0.3 s",
    means="On a direct cable there is nothing to be congested: the peer takes data too slowly, or a switch is in between.",
    remedy="look at the peer (memory pressure, PCIe link); with a switch: PFC and ECN on its ports",
    sample="rocep1s0f0:1 np_cnp_sent grew by 5120 in 0.3 s",
    after=("link.rdma-missing", "link.rdma-down", "link.rdma-errors"),
)
def congestion(facts: Facts) -> Answers:
    if chosen(facts):
        yield judge_counters(*counted(facts), rdma.CONGESTION_COUNTERS, "congestion")


def judge_counters(before: Mapping[str, int], after: Mapping[str, int], which: Sequence[str], what: str) -> Finding:
    """Pure. Totals since boot may be of a cable that was plugged: only what moves now is news."""
    if not before:
        return cannot_tell(f"the driver has no {what} counters")
    grown = rdma.moved(before, after, which)
    totals = tuple(f"{key}: {n} since boot" for key, n in after.items() if n and key.rpartition(" ")[2] in which)
    if grown:
        key, by = max(grown.items(), key=lambda each: each[1])
        more = f" (and {len(grown) - 1} more)" if len(grown) > 1 else ""
        return doubtful(f"{key} grew by {by} in {SAMPLE_S:g} s{more}", evidence=totals[:10])
    return yes(f"the {what} counters stand still", evidence=totals[:10])


@check(
    "link.verbs-in-container",
    layer=Layer.LINK,
    question="Can the engine open the RDMA devices from inside its container?",
    how="Privileged and Devices of `docker inspect`; /dev/infiniband/uverbs* and libibverbs in the running container",
    means="--net host does not bring the devices: NCCL silently runs over TCP, via NET/Socket.",
    remedy="make the container anew with privileged: true (or --device /dev/infiniband), from an image with libibverbs",
    sample="container vllm_ds4 has no /dev/infiniband: NCCL would run over TCP",
    after=("docker.unreachable", "container.missing", "link.rdma-missing"),
)
def verbs(facts: Facts) -> Answers:
    from sparkd.doctor.checks.container import try_container
    from sparkd.doctor.checks.image import look

    running = try_container(facts) if chosen(facts) else None
    if running is None:
        return
    seen = look(facts)
    if not seen.verbs:
        yield no(f"container {running.name} has no /dev/infiniband: NCCL would run over TCP")
    elif seen.looked and not seen.ibverbs:
        yield no(f"there is no libibverbs in container {running.name}: NCCL would run over TCP")
    else:
        yield yes(f"container {running.name} can open {len(seen.verbs)} RDMA devices")


@check(
    "link.memlock",
    layer=Layer.LINK,
    question="May the engine pin the memory that RDMA needs?",
    how="Max locked memory in /proc/PID/limits of the engine; of the container where none runs",
    means="The default of 8 MiB is not enough: Call to ibv_reg_mr failed with error Cannot allocate memory.",
    remedy="make the container anew with privileged: true, or --ulimit memlock=-1",
    sample="container vllm_ds4 may pin 8 MiB of memory and has no CAP_IPC_LOCK",
    after=("docker.unreachable", "container.missing", "link.rdma-missing"),
)
def memlock(facts: Facts) -> Answers:
    from sparkd.doctor.checks.container import try_container
    from sparkd.doctor.checks.image import look

    running = try_container(facts) if chosen(facts) else None
    if running is None:
        return
    inside = [each for each in engine_processes(facts) if each.container_id == running.id]
    limit = locked_memory(f"/proc/{inside[0].pid}/limits") if inside else None
    if limit is None:
        limit = look(facts).memlock_bytes
    yield judge_memlock(running, limit)


def judge_memlock(state: ContainerState, limit: int | None) -> Finding:
    """Pure. `limit` in bytes, None unlimited. Root with CAP_IPC_LOCK is not held to it."""
    if state.privileged or {"IPC_LOCK", "ALL"} & set(state.capabilities) or limit is None:
        return yes(f"what runs in container {state.name} may pin as much memory as it likes")
    if limit < MEMLOCK_MIN_BYTES:
        return no(f"container {state.name} may pin {limit / 2**20:.0f} MiB of memory and has no CAP_IPC_LOCK")
    return yes(f"what runs in container {state.name} may pin {limit / 2**30:.1f} GiB of memory")


def locked_memory(path: str) -> int | None:
    """The soft limit in bytes, from /proc/PID/limits. None: unlimited, or not to be read."""
    try:
        text = Path(path).read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^Max locked memory\s+(\d+)", text, re.MULTILINE)
    return int(found.group(1)) if found else None
