"""Layer script: what vLLM is told, by argument and by environment, in the plan and in what really runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from itertools import pairwise

from sparkd.doctor.check import Answers, Gate, cannot_tell, check, doubtful, no, yes
from sparkd.doctor.checks.commands import Command, commands, living
from sparkd.doctor.checks.container import expected, try_container
from sparkd.doctor.checks.engine import launched
from sparkd.doctor.checks.image import look
from sparkd.doctor.facts import Facts, container, launch_id, unit_state
from sparkd.engine import process, scripts
from sparkd.engine.arguments import forbidden, json_arguments, json_faults, value_of
from sparkd.model.finding import Cure, Layer, Who
from sparkd.model.plan import LAUNCH_ID_VARIABLE, Plan

# Known to break the engine even where a recipe does not say so: AttributeError: 'ShmRingBuffer' object has no attribute ...
KNOWN_TO_BREAK = ("VLLM_WORKER_MULTIPROC_METHOD=fork",)
# Where ranks may differ: addresses, and names of what is plugged in where.
OWN_VARIABLES = re.compile(r"VLLM_HOST_IP|NCCL_IB_(HCA|GID_INDEX)|\w+_SOCKET_IFNAME|UCX_NET_DEVICES|HOSTNAME")
OWN_FLAGS = ("--node-rank", "--headless")
TAKEN_PORTS = {8888: "Jupyter", 8100: "sparkrun's proxy", 46379: "Ray"}
TAKEN_RANGE = (9000, 9100)  # exporters of metrics
SHOWN_MAX_CHARS = 120
REMEDIES = {"script.missing": "sparkd doctor --fix"}


# --- the environment ---------------------------------------------------------------------------------


@check(
    "script.env-forbidden",
    layer=Layer.SCRIPT,
    question="Is the environment free of variables that are known to break the engine?",
    how="the recipe's forbidden_environment against the plan, the container's Env, /proc/PID/environ, the operator's scripts",
    means="The classic: VLLM_WORKER_MULTIPROC_METHOD=fork crashes the engine in its shared memory ring, like a bug of its own.",
    remedy="remove the variable from the recipe, the profile, the node's environment, the image and your own scripts",
    sample="the plan sets VLLM_WORKER_MULTIPROC_METHOD, which is forbidden",
    gate=Gate.HOST,
)
def env_forbidden(facts: Facts) -> Answers:
    entries = facts.plan.forbidden_environment
    answers = list(_forbidden_in_plan(facts.plan, entries))
    looked = ["the plan"]
    if not facts.calm:
        told, state = commands(facts), try_container(facts)
        answers += _forbidden_in_commands(told, entries)
        answers += _forbidden_in_container(state.name, state.env, entries) if state else ()
        looked += [command.where for command in told] + ([f"container {state.name}"] if state else [])
    yield from answers or [yes(f"nothing forbidden in the environment of {', '.join(looked)}")]


def _forbidden_in_plan(plan: Plan, entries: Sequence[str]) -> Answers:
    for found in forbidden(plan.environment, entries):
        name = found.partition("=")[0]
        remedy = f"remove {name} from the recipe, the profile and the node's environment"
        yield no(f"the plan sets {name}, which is forbidden", remedy=remedy)
    for found in forbidden(plan.environment, [each for each in KNOWN_TO_BREAK if each not in entries]):
        yield doubtful(f"the plan sets {found}, which broke the engine elsewhere; the recipe does not forbid it")


def _forbidden_in_commands(found: Sequence[Command], entries: Sequence[str]) -> Answers:
    for command in found:
        if command.environment is None:
            yield cannot_tell(f"the environment of {command.where} is not ours to read", remedy="sudo sparkd doctor")
        for wrong in forbidden(command.environment or {}, [*entries, *(e for e in KNOWN_TO_BREAK if e not in entries)]):
            yield no(f"{command.where} has {wrong}, which is forbidden")


def _forbidden_in_container(name: str, environment: Mapping[str, str], entries: Sequence[str]) -> Answers:
    """sparkd's own script takes it away again, but not what anybody else starts in there."""
    for wrong in forbidden(environment, entries):
        says = (
            f"container {name} sets {wrong}, which is forbidden: what is started there without sparkd's script gets it"
        )
        yield doubtful(says, remedy="make an image without it, or make the container without -e")


@check(
    "script.env-required",
    layer=Layer.SCRIPT,
    question="Does the plan say over which interfaces the ranks meet, with no value left empty?",
    how="GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME, VLLM_HOST_IP and NCCL_IB_GID_INDEX in the plan's environment",
    means="Gloo and NCCL then choose an interface of their own (Wi-Fi, a bridge); an empty GID index counts as 0.",
    remedy="set GLOO_ and NCCL_SOCKET_IFNAME to the link, VLLM_HOST_IP to the node's address; leave out NCCL_IB_GID_INDEX",
    sample="NCCL_IB_GID_INDEX is set and empty: NCCL takes GID 0, a link-local address",
    gate=Gate.HOST,
)
def env_required(facts: Facts) -> Answers:
    if facts.plan.size > 1:
        yield from judge_required(facts.plan.environment, gpu=bool(facts.plan.container.gpus))


def judge_required(environment: Mapping[str, str], *, gpu: bool) -> Answers:
    """Pure."""
    wrong = False
    for name in ("NCCL_IB_GID_INDEX", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_IB_HCA", "VLLM_HOST_IP"):
        if name in environment and not environment[name].strip():
            wrong = True
            takes = ": NCCL takes GID 0, a link-local address" if name.endswith("GID_INDEX") else ""
            remedy = f"give {name} a value, or remove it (`{name}: null` in a profile)"
            yield no(f"{name} is set and empty{takes}", remedy=remedy)
    names = ["GLOO_SOCKET_IFNAME", "VLLM_HOST_IP", *(["NCCL_SOCKET_IFNAME"] if gpu else [])]
    missing = [name for name in names if name not in environment]
    if missing:
        yield doubtful(f"the plan does not set {' and '.join(missing)}: the ranks choose an interface of their own")
    elif not wrong:
        yield yes(f"the ranks meet over {environment['GLOO_SOCKET_IFNAME']} ({', '.join(names)} are set)")


@check(
    "script.host-ip",
    layer=Layer.SCRIPT,
    question="Is VLLM_HOST_IP an address of this node?",
    how="the plan's environment against the addresses of all interfaces",
    means="The other rank is told an address at which nobody is: Local IP is not in the list of nodes, or a silent wait.",
    remedy="correct VLLM_HOST_IP in this node's environment (nodes[].environment in sparkd.yaml)",
    sample="VLLM_HOST_IP is 192.168.1.11, which no interface of this node has",
    cure=Cure.WAIT,
    after=("link.missing", "link.carrier", "link.address"),
)
def host_ip(facts: Facts) -> Answers:
    wanted = facts.plan.environment.get("VLLM_HOST_IP", "").strip()
    if not wanted or facts.plan.size == 1:
        return
    from sparkd.config.identity import local_addresses

    try:
        ip_address(wanted)
    except ValueError:
        yield no(f"VLLM_HOST_IP is {wanted!r}, which is no address")
        return
    here = local_addresses()
    if wanted in here or ":" in wanted:
        yield yes(f"VLLM_HOST_IP is {wanted}, an address of this node")
    else:
        yield no(f"VLLM_HOST_IP is {wanted}, which no interface of this node has", evidence=tuple(sorted(here)))


def flaws(command: Command, plan: Plan) -> bool:
    """Pure. Whether a command has one of the faults that script.env-forbidden, .json-arguments and .headless look for."""
    entries = [*plan.forbidden_environment, *KNOWN_TO_BREAK]
    is_forbidden = bool(forbidden(command.environment or {}, entries))
    return is_forbidden or bool(json_faults(command.argv)) or any(judge_headless(command, plan.rank))


# --- arguments ---------------------------------------------------------------------------------------


@check(
    "script.json-arguments",
    layer=Layer.SCRIPT,
    question="Does every JSON argument arrive as JSON?",
    how="parses them in the plan, in /proc/PID/cmdline of what runs, and in the scripts that the operator's units run",
    means="A shell in between ate the quotes. Some versions of vLLM then fall back to their defaults without a word.",
    remedy="write the command into a script file and run that; in a recipe write keys and values, not text",
    sample="process 4711 got --compilation-config {cudagraph_mode:FULL_AND_PIECEWISE}: a shell took its quotes away",
    gate=Gate.HOST,
)
def json_intact(facts: Facts) -> Answers:
    told = [Command("the plan", facts.plan.argv, None), *commands(facts)]
    wrong = False
    for command in told:
        for fault in json_faults(command.argv):
            wrong = True
            why = "a shell took its quotes away" if fault.stripped else "that is no JSON"
            shown = fault.value[:SHOWN_MAX_CHARS]
            yield no(f"{command.where} {_has(command)} {fault.flag} {shown}: {why}")
    if not wrong:
        count = sum(len(json_arguments(command.argv)) for command in told)
        yield yes(f"{count} JSON arguments are whole ({', '.join(command.where for command in told)})")


def _has(command: Command) -> str:
    return "got" if command.pid else "has"


@check(
    "script.headless",
    layer=Layer.SCRIPT,
    question="Is every worker headless, and the head not?",
    how="--node-rank and --headless in the plan, in /proc/PID/cmdline of what runs, and in the operator's scripts",
    means="A worker without it fights the head for the rendezvous port, a head with it has no endpoint; both wait in silence.",
    remedy="add --headless to the worker's command, and only there",
    sample="process 4711 is rank 1 and lacks --headless",
    gate=Gate.HOST,
)
def headless(facts: Facts) -> Answers:
    plan = facts.plan
    if plan.size == 1:
        return
    told = [Command("the plan", plan.argv, None), *commands(facts)]
    wrong = [answer for command in told for answer in judge_headless(command, plan.rank)]
    yield from wrong or [yes(f"rank {plan.rank} is {'the head' if plan.is_head else 'a headless worker'}")]


def judge_headless(command: Command, rank: int) -> Answers:
    """Pure. A command that names no rank is somebody's single engine."""
    said = value_of(command.argv, "--node-rank")
    if said is None:
        return
    has_it = value_of(command.argv, "--headless") is not None
    if said.isdigit() and int(said) > 0 and not has_it:
        yield no(f"{command.where} is rank {said} and lacks --headless")
    elif said == "0" and has_it:
        yield no(f"{command.where} is rank 0, the head, and has --headless: there would be no endpoint")
    if said.isdigit() and int(said) != rank:
        yield no(f"{command.where} is rank {said}, this node is rank {rank}")


@check(
    "script.ranks-alike",
    layer=Layer.SCRIPT,
    question="Do the ranks differ only where they must?",
    how="the plans of all ranks side by side: arguments and environment",
    means="Ranks with different limits wait for each other for ever: a collective that never matches, with no useful error.",
    remedy="move the setting from nodes[].environment of one node to the recipe",
    sample="spark1 and spark2 differ in VLLM_USE_FLASHINFER_SAMPLER: 1, none",
)
def ranks_alike(facts: Facts) -> Answers:
    plans = facts.cluster_plan.ranks if facts.cluster_plan else ()
    if len(plans) > 1:
        yield from judge_alike(plans)


def judge_alike(plans: Sequence[Plan]) -> Answers:
    """Pure."""
    first = plans[0]
    alike = True
    for other in plans[1:]:
        names = sorted(first.environment.keys() | other.environment.keys())
        for name in names:
            ours, theirs = first.environment.get(name), other.environment.get(name)
            if ours != theirs and not OWN_VARIABLES.fullmatch(name):
                alike = False
                yield doubtful(f"{first.node} and {other.node} differ in {name}: {ours or 'none'}, {theirs or 'none'}")
        if _common(first.argv) != _common(other.argv):
            alike = False
            found = process.argument_differences(_common(first.argv), _common(other.argv))
            yield no(f"{first.node} and {other.node} get other arguments: {found[0]}", evidence=tuple(found))
    if alike:
        yield yes(f"{' and '.join(plan.node for plan in plans)} are told the same but for rank and addresses")


def _common(argv: Sequence[str]) -> tuple[str, ...]:
    kept = []
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif word == "--node-rank":
            skip = True
        elif word not in OWN_FLAGS:
            kept.append(word)
    return tuple(kept)


@check(
    "script.enforce-eager",
    layer=Layer.SCRIPT,
    question="Do CUDA graphs stay on?",
    how="--enforce-eager in the plan and in /proc/PID/cmdline of what runs",
    means="Left from debugging it halves decoding: 44 tok/s became 25.",
    remedy="remove enforce-eager, and mend the start problem that it hid",
    sample="the plan has --enforce-eager: decoding runs at half speed",
)
def enforce_eager(facts: Facts) -> Answers:
    if not facts.plan.container.gpus:
        return
    told = [Command("the plan", facts.plan.argv, None), *commands(facts)]
    found = [command for command in told if value_of(command.argv, "--enforce-eager") is not None]
    for command in found:
        yield doubtful(f"{command.where} has --enforce-eager: decoding runs at half speed")
    if not found:
        yield yes("CUDA graphs are on (no --enforce-eager)")


@check(
    "script.api-key-visible",
    layer=Layer.SCRIPT,
    question="Is the API key nowhere to be read?",
    how="--api-key in /proc/PID/cmdline and in scripts, VLLM_API_KEY in the container's Env",
    means="Everybody on the machine can read a command line, everybody in the group docker the container's Env.",
    remedy="put the key into a file of mode 0600, name it in the recipe's api_key_file, and make a new key",
    sample="process 4711 has the API key on its command line",
)
def api_key_visible(facts: Facts) -> Answers:
    found = [command for command in commands(facts) if value_of(command.argv, "--api-key")]
    for command in found:
        yield no(f"{command.where} has the API key on its command line")
    state = try_container(facts)
    visible = state is not None and bool(state.env.get("VLLM_API_KEY"))
    if visible and state is not None:
        yield doubtful(f"VLLM_API_KEY is in the environment of container {state.name}: `docker inspect` shows it")
    if not found and not visible:
        looked = [command.where for command in commands(facts)] + ([f"container {state.name}"] if state else [])
        yield yes(f"no API key is to be seen ({', '.join(looked) or 'nothing runs'})")


@check(
    "script.port-known",
    layer=Layer.SCRIPT,
    question="Do the plan's ports keep clear of those of well-known tools?",
    how="the endpoint's and the rendezvous port against a short list",
    means="It works until somebody starts that tool; then one of the two cannot listen.",
    remedy="choose another port: `port` of the arguments (8000), rendezvous_port (29501)",
    sample="port 8888 is where Jupyter listens",
)
def port_known(facts: Facts) -> Answers:
    ports = (facts.plan.api_port, *((facts.plan.rendezvous_port,) if facts.plan.size > 1 else ()))
    found = [(port, _tool(port)) for port in ports if _tool(port)]
    for port, tool in found:
        yield doubtful(f"port {port} is where {tool} listens")
    if not found:
        yield yes(f"ports {' and '.join(map(str, ports))} are nobody else's by custom")


def _tool(port: int) -> str:
    if TAKEN_RANGE[0] <= port <= TAKEN_RANGE[1]:
        return "an exporter of metrics"
    return TAKEN_PORTS.get(port, "")


@check(
    "script.unit-json",
    layer=Layer.SCRIPT,
    question="Does no unit of the operator's own pass JSON through a shell's command text?",
    how="ExecStart of the units that the configuration names: `bash -c` with a JSON argument in it",
    means="systemd, docker exec and bash each take a layer of quotes; one too few, and vLLM gets bare words.",
    remedy="write the command into a script file and let the unit run that",
    sample="vllm-ds4-head.service passes --compilation-config through `bash -c`",
)
def unit_json(facts: Facts) -> Answers:
    names = facts.operator_units
    found = False
    for name in names:
        for flag in judge_unit_json(unit_state(facts, name).exec_start):
            found = True
            yield doubtful(f"{name} passes {flag} through `bash -c`", remedy=f"systemctl cat {name}")
    if names and not found:
        yield yes(f"{', '.join(names)}: no JSON in a shell's command text")


def judge_unit_json(starts: Sequence[Sequence[str]]) -> list[str]:
    """Pure. Flags with a JSON value inside the text that follows `-c`."""
    found: list[str] = []
    for argv in starts:
        for option, text in pairwise(argv):
            if re.fullmatch(r"-[a-z]*c", option):
                found += re.findall(r"(--[a-z-]+)[ =]\\?['\"]?\\?\{", text)
    return list(dict.fromkeys(found))


# --- the staged file, and what was made of it -----------------------------------------------------------


@check(
    "script.missing",
    layer=Layer.SCRIPT,
    question="Is the launch script of the living launch still in the container, as the plan has it?",
    how="reads it from the container and compares it byte for byte",
    means="The container was made anew, or somebody changed the file. The next launch stages it again.",
    remedy="sparkd doctor --fix",
    sample="/workspace/sparkd-rank0.sh is not in container vllm_ds4",
    who=Who.SPARKD,
    cure=Cure.RELAUNCH,
    after=("docker.unreachable", "container.missing", "container.not-running"),
)
def staged(facts: Facts) -> Answers:
    """Only where a launch is meant to live: before that nothing has been staged. A changed file is script.differs."""
    state = container(facts)
    if state is None or not expected(facts):
        return
    found = scripts.verify(facts.docker, state.name, launched(facts))  # a changed configuration stages it anew
    yield found.model_copy(update={"who": Who.SPARKD, "remedy": REMEDIES.get(found.id, found.remedy)})


@check(
    "script.syntax",
    layer=Layer.SCRIPT,
    question="Can bash parse the launch script in the container?",
    how="`bash -n` with the container's own bash",
    means="A launch would end at once with exit status 2 and one line in its log.",
    remedy="sparkd restart stages it anew",
    sample="/workspace/sparkd-rank0.sh: line 12: unexpected EOF while looking for matching `\"'",
    who=Who.SPARKD,
    cure=Cure.RELAUNCH,
    after=("docker.unreachable", "script.missing"),
)
def syntax(facts: Facts) -> Answers:
    if try_container(facts) is None:
        return
    seen = look(facts)
    path = facts.plan.script_path
    if seen.syntax_ok:
        yield yes(f"bash parses {path}")
    elif seen.syntax_ok is False:
        says = seen.syntax_says[0] if seen.syntax_says else f"bash cannot parse {path}"
        yield no(says, evidence=seen.syntax_says)


@check(
    "script.stale",
    layer=Layer.SCRIPT,
    question="Does the living engine run what the plan says?",
    how="/proc/PID/cmdline and environ of its top process against the plan",
    means="It was started by an older configuration, a hand-edited script or a past unit; its flaws look like bugs of vLLM.",
    remedy="sparkd restart",
    sample="process 4711: --max-model-len: plan 131072, engine 200000",
    who=Who.SPARKD,
    cure=Cure.RELAUNCH,
    after=("script.json-arguments", "script.headless", "script.env-forbidden"),
)
def stale(facts: Facts) -> Answers:
    if facts.calm:
        return
    known = launch_id(facts)
    pending = str((facts.status or {}).get("pending") or "")
    for command in living(facts):
        if command.environment is None:
            yield cannot_tell(f"the environment of {command.where} is not ours to read", remedy="sudo sparkd doctor")
            continue
        wrong = differences(facts.plan, command, known)
        if not wrong:
            yield yes(f"{command.where} runs what the plan says ({len(command.argv)} arguments)")
        elif not differences(launched(facts), command, known):
            # What it was launched with is as it should be. If the new configuration is wrong, that is told by itself.
            says = f"the configuration was changed after the launch: {wrong[0]}"
            yield doubtful(says, evidence=tuple(wrong)).model_copy(update={"symptom": True})
        elif pending or facts.status is None or facts.phase != "serving":
            why = f" ({pending})" if pending else ""
            yield doubtful(f"{command.where}: {wrong[0]}{why}", evidence=tuple(wrong))
        else:
            yield no(f"{command.where}: {wrong[0]}", evidence=tuple(wrong))


def differences(plan: Plan, command: Command, launch: str | None) -> list[str]:
    """Pure. Sentences; an engine that somebody else started has no launch id to compare."""
    found = process.compare(
        plan,
        argv=command.argv,
        environment=dict(command.environment or {}),
        launch_id=command.launch_id or launch or "",
    )
    return [
        line
        for finding in found
        if finding.is_bad and finding.id != "engine.env-forbidden"
        for line in finding.evidence
        if not (command.launch_id is None and line.startswith(f"{LAUNCH_ID_VARIABLE}:"))
    ]


@check(
    "script.cache-ephemeral",
    layer=Layer.SCRIPT,
    question="Do the compile caches outlive the container?",
    how="cache paths of the plan's environment (else vLLM's own) against the recipe's volumes",
    means="A cold cache costs minutes at each start of a new container, and 39 % of decode speed until it is warm.",
    remedy="add a volume, as ~/.cache/vllm:/root/.cache/vllm",
    sample="vLLM's compile cache (/root/.cache/vllm) is on no volume",
)
def cache_ephemeral(facts: Facts) -> Answers:
    plan = facts.plan
    if plan.container.gpus:
        yield from judge_caches(plan)


def judge_caches(plan: Plan) -> Answers:
    """Pure."""
    targets = [volume.split(":")[1].rstrip("/") for volume in plan.container.volumes]
    lost = [(what, path) for what, path in _caches(plan.environment) if not _below(path, targets)]
    for what, path in lost:
        yield doubtful(
            f"{what} ({path}) is on no volume",
            remedy=f"add a volume of the recipe: ~{path.removeprefix('/root')}:{path}",
        )
    if not lost:
        yield yes("the compile caches are on volumes")


def _caches(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Those that every start fills, and those that the plan itself gives a place."""
    cache = environment.get("XDG_CACHE_HOME", "/root/.cache")
    yield "vLLM's compile cache", environment.get("VLLM_CACHE_ROOT", f"{cache}/vllm")
    if environment.get("VLLM_USE_FLASHINFER_SAMPLER") == "1" or "FLASHINFER_WORKSPACE_BASE" in environment:
        base = environment.get("FLASHINFER_WORKSPACE_BASE")
        yield "FlashInfer's kernel cache", f"{base}/.cache/flashinfer" if base else "/root/.cache/flashinfer"
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TILELANG_CACHE_DIR", "DG_JIT_CACHE_DIR"):
        if name in environment:
            yield name, environment[name]


def _below(path: str, targets: Sequence[str]) -> bool:
    return any(path == target or path.startswith(f"{target}/") for target in targets)
