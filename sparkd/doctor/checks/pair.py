"""What only several nodes together show: their boundaries side by side. Every answer tells both values, by node."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from sparkd.doctor.check import Answers, doubtful, no, pair_check, yes
from sparkd.doctor.drift import shortened
from sparkd.model.diagnosis import Boundary
from sparkd.model.finding import Finding, Layer

Boundaries = Mapping[str, Boundary]
Values = dict[str, str]  # node -> value

SHOWN_MAX_CHARS = 60
MORE_MAX = 12  # lines of evidence

# What the nodes of a pair may have of their own: their addresses, their cards, their place in the world.
OWN_VARIABLES = re.compile(
    r"VLLM_HOST_IP|HOST_IP|NCCL_IB_HCA|NCCL_IB_GID_INDEX|NCCL_IB_\w*PCI\w*|(NCCL|GLOO|TP|UCX)_(SOCKET_IFNAME|NET_DEVICES)|"
    r"MASTER_ADDR|NODE_RANK|RANK|HOSTNAME|HOME|CUDA_VISIBLE_DEVICES|\(forbidden\)|VLLM_CACHE_ROOT|.*_DIR"
)
OWN_ARGUMENTS = re.compile(r"--(node-rank|headless|host|port|data-parallel-(rank|address|start-rank)|api-server-count)")


# --- comparing -----------------------------------------------------------------------------------


def values(boundaries: Boundaries, group: str, name: str) -> Values | None:
    """What each node that could see the group has there ("none" where it has nothing); None where fewer than two could."""
    seen = {
        node: each.groups[group]
        for node, each in boundaries.items()
        if group in each.groups and group not in each.unseen
    }
    if len(seen) < 2 or not any(name in group for group in seen.values()):
        return None
    return {node: group.get(name, "none") for node, group in seen.items()}


def differ(found: Values | None) -> bool:
    return found is not None and len(set(found.values())) > 1


def by_node(found: Values) -> str:
    """ "580.95.05 on spark1, 580.82.09 on spark2"."""
    told = []
    for node, value in found.items():
        other = next((each for each in found.values() if each != value), "")
        told.append(f"{shortened(value, other, max_chars=SHOWN_MAX_CHARS)} on {node}")
    return ", ".join(told)


def different(boundaries: Boundaries, group: str, matters: Callable[[str], bool]) -> Iterator[tuple[str, Values]]:
    """Every name of a group that matters and is not the same everywhere."""
    names = {name: None for each in boundaries.values() for name in each.groups.get(group, {})}
    for name in sorted(filter(matters, names)):
        found = values(boundaries, group, name)
        if found is not None and differ(found):
            yield name, found


def told(pairs: list[tuple[str, Values]]) -> tuple[str, ...]:
    return tuple(f"{name}: {by_node(found)}" for name, found in pairs[:MORE_MAX])


def _same(boundaries: Boundaries, group: str, name: str, what: str, wrong: Callable[..., Finding]) -> Answers:
    found = values(boundaries, group, name)
    if found is None:
        return
    if differ(found):
        yield wrong(f"{what} differs: {by_node(found)}")
    else:
        yield yes(f"{what} is the same on {' and '.join(found)}")


# --- the checks ----------------------------------------------------------------------------------


@pair_check(
    "unit.peer-sparkd-version",
    layer=Layer.UNIT,
    question="Do all nodes run the same sparkd?",
    how="the version of each node's sparkd",
    means="Nodes of different versions may make different scripts of one configuration; they understand each other for an "
    "upgrade's time.",
    remedy="install the same version on all nodes (restarting sparkd does not disturb a serving engine)",
    sample="the version of sparkd differs: 0.1.0 on spark1, 0.2.0 on spark2",
)
def sparkd_version(boundaries: Boundaries) -> Answers:
    yield from _same(boundaries, "sparkd", "version", "the version of sparkd", doubtful)


@pair_check(
    "link.peer-mtu-differs",
    layer=Layer.LINK,
    question="Does the link have the same MTU at both ends?",
    how="the link's MTU, of each node",
    means="Ends that differ stall large transfers while small packets pass: the engine hangs in its first collective.",
    remedy="ip link set INTERFACE mtu 9000 on the node that has less, and in netplan so that it survives a reboot",
    sample="the MTU of the link differs: 9000 on spark1, 1500 on spark2",
    after=("link.mtu",),
)
def mtu(boundaries: Boundaries) -> Answers:
    yield from _same(boundaries, "link", "mtu", "the MTU of the link", no)


@pair_check(
    "link.peer-firmware",
    layer=Layer.LINK,
    question="Do the network cards of all nodes have the same firmware?",
    how="/sys/class/infiniband/*/fw_ver of each node",
    means="Most pairs of versions work. After an update of one node look here first: MTU, names and GIDs change with it.",
    remedy="fwupdmgr update on the node that is behind, then reboot it",
    sample="the firmware of the network cards differs: 28.45.4028 on spark1, 28.43.1014 on spark2",
)
def firmware(boundaries: Boundaries) -> Answers:
    found = {}
    for node, each in boundaries.items():
        group = {} if "driver" in each.unseen else each.groups.get("driver", {})
        # Names differ with the port that the cable is in: the set of versions is what can be compared.
        versions = sorted({value for name, value in group.items() if name.endswith(" firmware") and " gpu" not in name})
        if versions:
            found[node] = " and ".join(versions)
    if len(found) < 2:
        return
    if differ(found):
        yield doubtful(f"the firmware of the network cards differs: {by_node(found)}")
    else:
        yield yes(f"the firmware of the network cards is {next(iter(found.values()))} on {' and '.join(found)}")


@pair_check(
    "driver.peer-differs",
    layer=Layer.DRIVER,
    question="Do all nodes have the same GPU driver?",
    how="/sys/module/nvidia/version of each node",
    means="Ranks on different drivers hang or fail in their first collective, without a useful error.",
    remedy="install the same driver on all nodes and reboot them",
    sample="the NVIDIA driver differs: 580.95.05 on spark1, 580.82.09 on spark2",
)
def driver(boundaries: Boundaries) -> Answers:
    yield from _same(boundaries, "driver", "module nvidia", "the NVIDIA driver", no)


@pair_check(
    "driver.kernel-differs",
    layer=Layer.DRIVER,
    question="Do all nodes run the same kernel?",
    how="uname -r of each node",
    means="Usually harmless. Some kernels break RDMA memory registration on a GB10 (7.0.0-1019), and then on one node alone.",
    remedy="apt upgrade on the node that is behind, or boot the same kernel there",
    sample="the kernel differs: 6.17.0-1032-nvidia on spark1, 7.0.0-1019-nvidia on spark2",
)
def kernel(boundaries: Boundaries) -> Answers:
    yield from _same(boundaries, "kernel", "release", "the kernel", doubtful)


@pair_check(
    "docker.peer-version",
    layer=Layer.DOCKER,
    question="Do all nodes run the same Docker?",
    how="GET /info of each node's Docker",
    means="Harmless until it is not: defaults (limits, cgroup driver, runtimes) differ between versions.",
    remedy="apt upgrade on the node that is behind",
    sample="the version of Docker differs: 28.5.1 on spark1, 27.3.1 on spark2",
)
def docker(boundaries: Boundaries) -> Answers:
    yield from _same(boundaries, "docker", "version", "the version of Docker", doubtful)


@pair_check(
    "image.peer-differs",
    layer=Layer.IMAGE,
    question="Do all nodes have the same image?",
    how="the id that the plan's image name means on each node",
    means="Ranks of different builds meet in a collective and hang or crash: the same tag was pulled on two days.",
    remedy="docker save IMAGE | ssh the other node docker load, or pull the same digest on both",
    sample="the image differs: sha256:29f346a664af on spark1, sha256:77aa01bb02cc on spark2",
    after=("image.missing", "docker.unreachable"),
)
def image(boundaries: Boundaries) -> Answers:
    found = values(boundaries, "image", "id")
    if found is not None and "missing" not in found.values():  # image.missing tells that, of the node that lacks it
        yield from _same(boundaries, "image", "id", "the image", no)


@pair_check(
    "image.peer-patches-differ",
    layer=Layer.IMAGE,
    question="Are the patched files the same on all nodes?",
    how="sha256 of the files that the recipe's patches name, in each node's running container",
    means="One node's container was patched by hand and the other's was not.",
    remedy="use one image that was built with the patch on all nodes",
    sample="mxfp4.py differs: 6800606ce0e1 on spark1, 0b1c77a2f09e on spark2",
    after=("image.peer-differs", "image.patches"),
)
def patches(boundaries: Boundaries) -> Answers:
    wrong = list(different(boundaries, "patches", lambda name: name.startswith("/")))
    for name, found in wrong:
        yield no(f"{name.rpartition('/')[2]} differs: {by_node(found)}", evidence=(name,))
    if not wrong and sum("patches" in each.groups for each in boundaries.values()) > 1:
        yield yes("the patched files are the same")


@pair_check(
    "script.peer-plan-differs",
    layer=Layer.SCRIPT,
    question="Do all nodes have the same plan?",
    how="the digest over every rank's plan, as each node's configuration gives it",
    means="The configuration was changed on one node alone. The barrier does not open: ranks must run one plan.",
    remedy="copy /etc/sparkd (sparkd.yaml, recipes, profiles) from the node that is right to the other; sparkd restart",
    sample="the plan differs: c0b4a79aa86e on spark1, 11d2f0a7c3b9 on spark2",
)
def plan(boundaries: Boundaries) -> Answers:
    found = values(boundaries, "sparkd", "plan")
    if found is None:
        return
    if not differ(found):
        yield yes("all nodes have the same plan")
        return
    wrong = [
        *different(boundaries, "sparkd", lambda name: name in ("profile", "recipe")),
        *different(boundaries, "argv", lambda name: not OWN_ARGUMENTS.fullmatch(name)),
        *different(boundaries, "environment", lambda name: not OWN_VARIABLES.fullmatch(name)),
    ]
    why = f" ({wrong[0][0]}: {by_node(wrong[0][1])})" if wrong else ""
    yield no(f"the plan differs: {by_node(found)}{why}", evidence=told(wrong))


@pair_check(
    "script.peer-settings-differ",
    layer=Layer.SCRIPT,
    question="Do all nodes have the same settings in sparkd.yaml?",
    how="the digest over each node's sparkd.yaml as it was understood",
    means="The plans are the same, so that the engine runs alike; limits, page cache policy or watched units differ.",
    remedy="copy /etc/sparkd/sparkd.yaml from the node that is right to the other",
    sample="sparkd.yaml differs: limits.hang_max_s 90 on spark1, 15 on spark2",
    after=("script.peer-plan-differs",),
)
def settings(boundaries: Boundaries) -> Answers:
    found = values(boundaries, "sparkd", "settings")
    if found is None:
        return
    if not differ(found):
        yield yes("all nodes have the same settings")
        return
    wrong = list(different(boundaries, "sparkd", lambda name: name.startswith("limits.") or name == "drop_caches"))
    first = f"{wrong[0][0]} {by_node(wrong[0][1])}" if wrong else by_node(found)
    yield doubtful(f"sparkd.yaml differs: {first}", evidence=told(wrong))


@pair_check(
    "script.peer-env-differs",
    layer=Layer.SCRIPT,
    question="Do all ranks have the same environment, but for what is a node's own?",
    how="the living engines' environments of all nodes, else the plans'; without addresses, cards and ranks",
    means="Ranks that are configured differently hang after loading: memory profiles differ and the collective never matches.",
    remedy="look for the variable in the node's environment in sparkd.yaml, the image, the container and the unit",
    sample="NCCL_PROTO differs: Simple on spark1, none on spark2",
    after=("script.peer-plan-differs", "image.peer-differs"),
)
def environment(boundaries: Boundaries) -> Answers:
    group = _living(boundaries, "environment")
    wrong = list(different(boundaries, group, lambda name: not OWN_VARIABLES.fullmatch(name)))
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        yield no(f"{wrong[0][0]} differs: {by_node(wrong[0][1])}{more}", evidence=told(wrong))
    elif sum(group in each.groups for each in boundaries.values()) > 1:
        yield yes("the ranks' environments are alike")


@pair_check(
    "script.peer-argv-differs",
    layer=Layer.SCRIPT,
    question="Do all ranks have the same arguments, but for what is a rank's own?",
    how="the living engines' command lines of all nodes, else the plans'; without --node-rank, --headless, --host, --port",
    means="Ranks that are configured differently hang after loading, or one of them fails with an error that names neither.",
    remedy="sparkd render --rank N on both nodes; sparkd restart",
    sample="--max-model-len differs: 131072 on spark1, 65536 on spark2",
    after=("script.peer-plan-differs",),
)
def arguments(boundaries: Boundaries) -> Answers:
    group = _living(boundaries, "argv")
    wrong = list(different(boundaries, group, lambda name: not OWN_ARGUMENTS.fullmatch(name)))
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        yield no(f"{wrong[0][0]} differs: {by_node(wrong[0][1])}{more}", evidence=told(wrong))
    elif sum(group in each.groups for each in boundaries.values()) > 1:
        yield yes("the ranks' arguments are alike")


def _living(boundaries: Boundaries, what: str) -> str:
    """What the engines really got, where more than one lives; else what they are to get."""
    living = f"engine-{what}"
    return living if sum(living in each.groups for each in boundaries.values()) > 1 else what


@pair_check(
    "weights.peer-differs",
    layer=Layer.WEIGHTS,
    question="Do all nodes have the same weights?",
    how="the digest over names and sizes of the weights' files on each node",
    means="Ranks with different weights answer with noise, or one of them fails minutes into the load.",
    remedy="rsync the weights' directory from the node that is whole to the other",
    sample="the weights differ: 51 files, 149.0 GB on spark1, 50 files, 145.8 GB on spark2",
    after=("weights.path-missing", "weights.shards-missing", "weights.truncated", "weights.partial"),
)
def weights(boundaries: Boundaries) -> Answers:
    found = values(boundaries, "weights", "manifest")
    if found is None:
        return
    if not differ(found):
        yield yes("all nodes have the same weights")
        return
    sizes = {node: _size(boundaries[node].groups["weights"]) for node in found}
    yield no(f"the weights differ: {by_node(sizes if differ(sizes) else found)}", evidence=(by_node(found),))


def _size(group: Mapping[str, str]) -> str:
    return f"{group.get('files', '?')} files, {group.get('bytes', '?')} bytes"
