"""The checks that gate a launch, lowest layer first: is this node fit to start its rank?

Each check answers with findings; a check that could not look answers *unknown*, which never opens a gate by itself
being read as good and never closes it either: what cannot be seen now is seen by the step that needs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparkd.engine import patches, weights
from sparkd.engine.container import Docker, differences
from sparkd.host import execstart, gpu, link, ports, units
from sparkd.model.cluster import Settings
from sparkd.model.errors import SparkdError, UnreachableError
from sparkd.model.finding import Cure, Finding, Verdict, Who, bad, good, unknown
from sparkd.model.plan import ClusterPlan, Plan
from sparkd.model.report import Digests

OUR_UNITS = ("sparkd.service", "sparkd-engine.service")


@dataclass(frozen=True)
class Context:
    """What the checks are asked about."""

    settings: Settings
    cluster_plan: ClusterPlan
    rank: int
    docker: Docker

    @property
    def plan(self) -> Plan:
        return self.cluster_plan.ranks[self.rank]


Check = Callable[[Context], Iterator[Finding]]


def preflight(context: Context, *, everything: bool = False) -> tuple[list[Finding], Digests]:
    """All findings, and the digests that every rank must share. `everything` also asks what needs a running container."""
    checks: tuple[Check, ...] = (check_units, check_link, check_ports, check_environment, check_docker, check_weights)
    findings = [finding for check in checks for finding in _safely(check, context)]
    if everything:
        findings += _safely(check_container, context)
        findings += in_container(context)
    return findings, _digests(context)


def in_container(context: Context) -> list[Finding]:
    """What can only be asked of a running container: the program, the weights as it sees them, patches, units' scripts."""
    checks: tuple[Check, ...] = (check_program, check_patches, check_container_units)
    return [finding for check in checks for finding in _safely(check, context)]


def worst(findings: list[Finding], *, only_person: bool = False) -> Finding | None:
    """The finding that decides: what needs a person before what is waited for; within these, the lowest layer."""
    for cure in (Cure.PERSON,) if only_person else (Cure.PERSON, Cure.RELAUNCH, Cure.WAIT):
        for finding in findings:
            if finding.is_bad and finding.cure is cure:
                return finding
    return None


def summary(findings: list[Finding]) -> str:
    """What was found, one clause a check: the events show on each launch what was asked and what the answer was."""
    said = {verdict: [f.says for f in findings if f.verdict is verdict] for verdict in Verdict}
    clauses = [*said[Verdict.GOOD], *(f"warning: {says}" for says in said[Verdict.WARNING])]
    clauses += [f"could not tell: {says}" for says in said[Verdict.UNKNOWN]]
    return f"{len(findings)} checks asked, none against a launch: " + "; ".join(clauses)


def fingerprint(context: Context, digests: Digests) -> str:
    """Changes when an input that could have blocked a launch changes: files, image, container, weights, units."""
    parts = [repr(digests)]
    try:
        state = context.docker.inspect(context.plan.container.name)
        parts.append(f"{state.id} {state.started_at}" if state else "no container")
    except SparkdError:
        parts.append("no docker")
    for name in _unit_names(context):
        try:
            state_of = units.unit_state(name)
            files = [state_of.fragment_path, *state_of.drop_ins]
            parts += [f"{file} {Path(file).stat().st_mtime_ns}" for file in files if file and Path(file).exists()]
        except SparkdError:
            parts.append(f"{name} unknown")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _safely(check: Check, context: Context) -> list[Finding]:
    """A check that fails is a result of its own."""
    found: list[Finding] = []
    try:
        found.extend(check(context))
    except UnreachableError as error:
        found.append(
            bad("docker.unreachable", str(error), cure=Cure.WAIT, remedy=error.hint or "systemctl status docker")
        )
    except (SparkdError, OSError) as error:
        found.append(unknown(f"check.{check.__name__.removeprefix('check_')}", str(error)))
    return found


# --- units -------------------------------------------------------------------------------------


def _unit_names(context: Context) -> list[str]:
    node = context.plan.node
    theirs = [unit.name for unit in context.settings.operator_units if not unit.nodes or node in unit.nodes]
    return [*OUR_UNITS, *theirs]


def check_units(context: Context) -> Iterator[Finding]:
    """Does every ExecStart path exist? Exit 127 all night long is the seed's first incident."""
    yield from _unit_findings(context, lambda container, path: None)


def check_container_units(context: Context) -> Iterator[Finding]:
    """The same where the command is `docker exec`: does the path exist inside?"""
    yield from _unit_findings(context, context.docker.path_exists)


def _unit_findings(context: Context, in_container: Callable[[str, str], bool | None]) -> Iterator[Finding]:
    for name in _unit_names(context):
        state = units.unit_state(name)
        if state.load_state == "not-found":
            if name in OUR_UNITS:
                says = f"{name} is not installed"
                yield bad("unit.missing", says, cure=Cure.PERSON, remedy="run scripts/install again")
            else:
                says = f"{name} is named in the configuration but not installed on this node"
                yield bad("unit.missing", says, cure=Cure.PERSON, remedy="remove it from operator_units, or install it")
            continue
        yield from execstart.check_exec_paths(state, in_container=in_container)


# --- link --------------------------------------------------------------------------------------


def check_link(context: Context) -> Iterator[Finding]:
    """Up, with our address, and its MTU end to end. While a node boots all of it may still come: waited for."""
    cluster, plan = context.settings.cluster, context.plan
    if plan.size == 1:
        return
    name, node = cluster.link.interface, cluster.nodes[plan.rank]
    state = link.read_link(name)
    show = f"ip addr show {name}"
    if not state.exists:
        yield bad("link.missing", f"the link {name} does not exist", cure=Cure.WAIT, remedy=show)
        return
    if not state.up or state.carrier is False:
        says = f"{name} is {'down' if not state.up else 'up but has no carrier'}"
        yield bad(
            "link.carrier", says, cure=Cure.WAIT, remedy=f"{show}; is the cable in, is the peer on?", who=Who.HANDS
        )
        return
    if str(node.link_address) not in state.addresses:
        says = f"{name} has {', '.join(state.addresses) or 'no address'}, not {node.link_address}"
        yield bad("link.address", says, cure=Cure.WAIT, remedy=show)
        return
    if state.mtu != cluster.link.mtu:
        says = f"{name} has MTU {state.mtu}, the configuration says {cluster.link.mtu}"
        yield bad(
            "link.mtu", says, cure=Cure.PERSON, remedy=f"ip link set {name} mtu {cluster.link.mtu} (and in netplan)"
        )
        return
    yield good("link.interface", f"{name} is up with {node.link_address} and MTU {state.mtu}")
    for other in cluster.nodes:
        if other.name != node.name:
            yield _probe(str(other.link_address), other.name, cluster.link.mtu)


def _probe(address: str, name: str, mtu: int) -> Finding:
    """A peer that is off is the barrier's business; a path that drops large frames is ours."""
    probe = link.probe_mtu(address, mtu)
    if probe.mtu_ok is False:
        remedy = f"ping -M do -s {mtu - 28} {address}; set MTU {mtu} on both ends and everything between"
        return bad(
            "link.mtu-path", f"{name} answers, but not with frames of {mtu} bytes", cure=Cure.PERSON, remedy=remedy
        )
    if probe.mtu_ok:
        return good("link.mtu-path", f"{name} answers with frames of {mtu} bytes")
    return unknown("link.mtu-path", probe.says or f"{name} does not answer yet")


# --- ports, environment ------------------------------------------------------------------------


def check_ports(context: Context) -> Iterator[Finding]:
    """Our link port is our own; the engine's ports are proven free by `clean`, after what is stale was ended."""
    port = context.settings.cluster.link.port
    if port in (context.plan.api_port, context.plan.rendezvous_port):
        yield bad(
            "port.conflict",
            f"sparkd and the engine both want port {port}",
            cure=Cure.PERSON,
            remedy="change cluster.link.port",
        )
    held = ports.listeners((context.plan.api_port, context.plan.rendezvous_port))
    holders = ", ".join(f"{listener.port} by {'/'.join(listener.names) or 'unknown'}" for listener in held)
    yield good("port.listeners", f"the engine's ports are {'held before cleaning: ' + holders if held else 'free'}")


def check_environment(context: Context) -> Iterator[Finding]:
    """A variable that is known to break the engine must not be in the plan (the seed lost two sessions on one)."""
    environment = context.plan.environment
    entries = context.plan.forbidden_environment
    parts = [entry.partition("=") for entry in entries]
    found = [name for name, exact, value in parts if name in environment and (not exact or environment[name] == value)]
    if not found:
        yield good("script.environment", f"nothing forbidden in the environment ({', '.join(entries) or 'no list'})")
    for name in found:
        remedy = f"remove {name} from the recipe, the profile and the node's environment"
        yield bad("script.env-forbidden", f"the plan sets {name}, which is forbidden", cure=Cure.PERSON, remedy=remedy)


# --- Docker, container, image ------------------------------------------------------------------


def check_docker(context: Context) -> Iterator[Finding]:
    image = context.plan.container.image
    found = context.docker.image_id(image)
    if found is None:
        says = f"the image {image} is not on this node"
        yield bad("image.missing", says, cure=Cure.PERSON, remedy=f"docker pull {image}")
    else:
        yield good("image.present", f"{image} is {found[:19]}")


def check_container(context: Context) -> Iterator[Finding]:
    """Does the container that exists match the plan? (`container` makes it where it does not exist.)"""
    spec = context.plan.container
    state = context.docker.inspect(spec.name)
    if state is None:
        return
    wrong = differences(state, spec, image_id=context.docker.image_id(spec.image), runtimes=context.docker.runtimes())
    if wrong:
        remedy = f"docker diff {spec.name}; docker rm -f {spec.name}  (sparkd makes it anew from the plan)"
        says = f"container {spec.name} differs from the plan: {wrong[0]}"
        yield bad("container.differs", says, cure=Cure.PERSON, evidence=tuple(wrong), remedy=remedy)


def check_program(context: Context) -> Iterator[Finding]:
    """Is there a `vllm` to run, and do the weights show where the script looks for them?"""
    docker, plan = context.docker, context.plan
    state = docker.inspect(plan.container.name)
    if state is None or not state.running:
        yield unknown("image.vllm", f"container {plan.container.name} does not run")
        return
    status, _ = docker.exec_run(plan.container.name, ["bash", "-c", "command -v vllm"], timeout_s=20)
    if status != 0:
        says = f"there is no `vllm` command in {plan.container.image}: a launch would end with exit 127"
        yield bad(
            "image.vllm-missing",
            says,
            cure=Cure.PERSON,
            remedy=f"docker exec {plan.container.name} ls -l /usr/local/bin/vllm",
        )
    if plan.model.startswith("/") and docker.path_exists(plan.container.name, plan.model) is False:
        says = f"the container does not see {plan.model}"
        yield bad(
            "weights.path-missing", says, cure=Cure.PERSON, remedy=f"docker exec {plan.container.name} ls {plan.model}"
        )


def check_patches(context: Context) -> Iterator[Finding]:
    for invariant in context.plan.patches:
        yield patches.check_patch(context.docker, context.plan.container.name, invariant)


# --- weights -----------------------------------------------------------------------------------


def check_weights(context: Context) -> Iterator[Finding]:
    yield from weights.check_weights(context.plan)


def _digests(context: Context) -> Digests:
    """What all ranks must share. Something that cannot be read is empty here, and differs from one that can."""
    try:
        image = context.docker.image_id(context.plan.container.image) or ""
    except SparkdError:
        image = ""
    directory = weights.host_path(context.plan.container.volumes, context.plan.model)
    try:
        manifest = weights.manifest(directory).digest if directory is not None else ""
    except (SparkdError, OSError):
        manifest = ""
    return Digests(plan=context.cluster_plan.digest, image=image, weights=manifest, driver=gpu.driver_version() or "")
