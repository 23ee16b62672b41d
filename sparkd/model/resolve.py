"""Recipe + profile + cluster become one plan for each rank. Pure: equal configuration gives equal plans everywhere."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from ipaddress import ip_address

from pydantic import JsonValue

from sparkd.model.cluster import Cluster, Node, Settings
from sparkd.model.errors import ConfigError
from sparkd.model.outside import clean
from sparkd.model.plan import ClusterPlan, ContainerSpec, Plan
from sparkd.model.recipe import ContainerRecipe, Profile, Recipe
from sparkd.model.render import render_script

HOME = "/root"  # what ~ means in a volume, on every node: the daemon and Docker run as root
DEFAULT_PORT = 8000  # vLLM's own defaults, for what a recipe leaves out
DEFAULT_GPU_MEMORY_UTILIZATION = 0.9

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")

Arguments = Mapping[str, JsonValue]


def resolve(settings: Settings, recipe: Recipe, profile: Profile | None) -> ClusterPlan:
    """Every rank's plan. ConfigError where recipe, profile and cluster contradict each other."""
    arguments = _overlaid(recipe.arguments, profile.arguments if profile else {})
    _check_world(settings.cluster, recipe, arguments)
    ranks = tuple(_rank(settings.cluster, rank, recipe, profile, arguments) for rank in range(settings.cluster.size))
    _check_ports(settings, ranks[0])
    name = profile.name if profile else None
    return ClusterPlan(recipe=recipe.name, profile=name, ranks=ranks, digest=digest(ranks))


def digest(ranks: tuple[Plan, ...]) -> str:
    """sha256 (hex) over the canonical JSON of every rank's plan."""
    canonical = json.dumps([plan.model_dump(mode="json") for plan in ranks], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _rank(cluster: Cluster, rank: int, recipe: Recipe, profile: Profile | None, arguments: Arguments) -> Plan:
    node = cluster.nodes[rank]
    name = profile.name if profile else None
    environment = _environment(recipe, profile, node)
    argv = ("vllm", "serve", recipe.model, *_words(arguments), *_place(cluster, rank, recipe.rendezvous_port))
    return Plan(
        cluster=cluster.name,
        node=node.name,
        rank=rank,
        size=cluster.size,
        profile=name,
        container=_container(recipe.container),
        environment=environment,
        forbidden_environment=recipe.forbidden_environment,
        argv=argv,
        script=render_script(
            cluster=cluster.name,
            node=node.name,
            rank=rank,
            size=cluster.size,
            recipe=recipe.name,
            profile=name,
            argv=argv,
            environment=environment,
            forbidden_environment=recipe.forbidden_environment,
            with_api_key=recipe.api_key_file is not None,
        ),
        script_path=f"{recipe.container.script_directory.rstrip('/')}/sparkd-rank{rank}.sh",
        model=recipe.model,
        served_name=_served_name(arguments, recipe.model),
        api_host=_api_host(arguments, recipe),
        api_port=_port(arguments, recipe),
        rendezvous_port=recipe.rendezvous_port,
        gpu_memory_utilization=_gpu_memory_utilization(arguments, recipe),
        patches=recipe.patches,
        has_reasoning=bool(arguments.get("reasoning-parser")),
        has_tools=bool(arguments.get("tool-call-parser")) and bool(arguments.get("enable-auto-tool-choice")),
        api_key_file=recipe.api_key_file,
    )


# --- arguments ---------------------------------------------------------------------------------


def _overlaid(base: Arguments, changes: Arguments) -> dict[str, JsonValue]:
    """`changes` over `base`: in place where the name is known, at the end where it is new, gone where it is None."""
    merged = {**base, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def _word(value: JsonValue) -> str:
    """One value as one word: text as it is, everything else as JSON writes it."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _words(arguments: Arguments) -> list[str]:
    words: list[str] = []
    for name, value in arguments.items():
        flag = f"--{name}"
        if value is False:
            continue
        values = [] if value is True else [_word(item) for item in value] if isinstance(value, list) else [_word(value)]
        if len(values) == 1 and values[0].startswith("-"):
            words.append(f"{flag}={values[0]}")  # apart, vLLM would take the value for an option
        else:
            words += [flag, *values]
    return words


def _place(cluster: Cluster, rank: int, rendezvous_port: int) -> list[str]:
    """What tells a rank its place. A cluster of one needs none of it."""
    if cluster.size == 1:
        return []
    place = ["--nnodes", str(cluster.size), "--node-rank", str(rank)]
    place += ["--master-addr", str(cluster.head.link_address), "--master-port", str(rendezvous_port)]
    # Without it a worker listens on the rendezvous port as well, and the pair never meets.
    return place if rank == 0 else [*place, "--headless"]


# --- environment and container -----------------------------------------------------------------


def _environment(recipe: Recipe, profile: Profile | None, node: Node) -> dict[str, str]:
    """The recipe's environment, the profile's over it, the node's over both."""
    merged = {**recipe.environment, **(profile.environment if profile else {}), **node.environment}
    environment = {name: value for name, value in merged.items() if value is not None}
    for forbidden in recipe.forbidden_environment:
        name, equals, value = forbidden.partition("=")
        if name in environment and (not equals or environment[name] == value):
            raise ConfigError(
                clean(f"the environment of {node.name} has {name}={environment[name]}, which this recipe forbids"),
                where=_where(recipe, profile),
                hint=f"remove {name} from the recipe, the profile or the node's environment",
                id="script.env-forbidden",
            )
    return environment


def _container(recipe: ContainerRecipe) -> ContainerSpec:
    volumes = tuple(HOME + volume[1:] if volume.startswith("~") else volume for volume in recipe.volumes)
    values = recipe.model_dump(exclude={"volumes", "script_directory"})
    return ContainerSpec(**values, volumes=volumes)


# --- what others need to know of the arguments ---------------------------------------------------


def _where(recipe: Recipe, profile: Profile | None = None) -> str:
    return f"recipe {recipe.name}" + (f", profile {profile.name}" if profile else "")


def _number(arguments: Arguments, name: str, default: float, recipe: Recipe) -> float:
    value = arguments.get(name, default)
    try:
        if isinstance(value, (bool, list, dict)) or value is None or not math.isfinite(float(value)):
            raise ValueError
        return float(value)
    except ValueError:
        raise ConfigError(f"{_word(value)!r} is not a number", where=f"{_where(recipe)}: arguments.{name}") from None


def _whole(arguments: Arguments, name: str, default: int, recipe: Recipe) -> int:
    number = _number(arguments, name, default, recipe)
    if number < 1 or number != int(number):
        raise ConfigError(f"{number:g} is not a whole number above 0", where=f"{_where(recipe)}: arguments.{name}")
    return int(number)


def _port(arguments: Arguments, recipe: Recipe) -> int:
    port = _whole(arguments, "port", DEFAULT_PORT, recipe)
    if port > 65535:
        raise ConfigError(f"{port} is not a port (1 to 65535)", where=f"{_where(recipe)}: arguments.port")
    return port


def _gpu_memory_utilization(arguments: Arguments, recipe: Recipe) -> float:
    share = _number(arguments, "gpu-memory-utilization", DEFAULT_GPU_MEMORY_UTILIZATION, recipe)
    if not 0 < share <= 1:
        raise ConfigError(
            f"{share:g} is not a share between 0 and 1", where=f"{_where(recipe)}: arguments.gpu-memory-utilization"
        )
    return share


def _served_name(arguments: Arguments, model: str) -> str:
    name = arguments.get("served-model-name", model)
    return _word(name[0] if isinstance(name, list) else name)


def _api_host(arguments: Arguments, recipe: Recipe) -> str:
    """Where the head asks its own endpoint: loopback where it listens everywhere, else the address it listens on."""
    host = arguments.get("host")
    if not isinstance(host, str):
        return "127.0.0.1"
    try:
        address = ip_address(host)
    except ValueError:
        if _HOST.fullmatch(host):
            return host
        told = f"{host[:60]!r} is neither an address nor a host name"
        raise ConfigError(told, where=f"{_where(recipe)}: arguments.host") from None
    if address.version == 6 and address.scope_id is not None:
        told = f"{host[:60]!r}: an address with a zone is nothing that clients could ask"
        raise ConfigError(told, where=f"{_where(recipe)}: arguments.host")
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"


# --- contradictions ------------------------------------------------------------------------------


def _check_world(cluster: Cluster, recipe: Recipe, arguments: Arguments) -> None:
    """A pair whose ranks cannot be shared out evenly would fail minutes later, in vLLM's words."""
    if cluster.size == 1 or any(name.startswith("data-parallel") for name in arguments):
        return
    tensor = _whole(arguments, "tensor-parallel-size", 1, recipe)
    pipeline = _whole(arguments, "pipeline-parallel-size", 1, recipe)
    if (tensor * pipeline) % cluster.size:
        raise ConfigError(
            f"tensor-parallel-size {tensor} times pipeline-parallel-size {pipeline} cannot be spread "
            f"over {cluster.size} nodes",
            where=_where(recipe),
            hint="use a recipe made for this number of nodes, or change cluster.nodes in sparkd.yaml",
        )


def _check_ports(settings: Settings, head: Plan) -> None:
    ports = {"the endpoint (arguments.port)": head.api_port}
    if settings.cluster.size > 1:
        ports["the rendezvous (rendezvous_port)"] = head.rendezvous_port
        ports["sparkd (cluster.link.port)"] = settings.cluster.link.port
    owners: dict[int, str] = {}
    for owner, port in ports.items():
        if port in owners:
            raise ConfigError(f"port {port} is wanted by both {owners[port]} and {owner}", where="ports")
        owners[port] = owner
