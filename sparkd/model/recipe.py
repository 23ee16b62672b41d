"""A recipe says what to run; a profile is a named set of changes to it."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue, field_validator

from sparkd.model.cluster import Strict
from sparkd.model.environment import Environment, EnvironmentChanges, check_name

# What the plan derives from the cluster; a recipe that sets one of these would contradict it.
RESERVED_ARGUMENTS = ("nnodes", "node-rank", "master-addr", "master-port", "headless")

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"  # of recipes and profiles: they are file names too

IMAGE_PATTERN = r"^[A-Za-z0-9]+((\.|_{1,2}|-+|[:/@+])[A-Za-z0-9]+)*$"  # a name, a digest or an id; no way up
# Read by systemd, bash and Docker on its way: of characters that mean the same to all of them, and no way up.
DIRECTORY_PATTERN = r"^(/[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}){0,16}/?$"


def canonical(name: str) -> str:
    """The argument's one spelling: `max_model_len` and `max-model-len` are the same to vLLM.

    A dotted name (`compilation-config.cudagraph_mode`) sets a field inside a JSON argument; only the part
    before the first dot may be spelt both ways.
    """
    flag, dot, inner = name.partition(".")
    return flag.replace("_", "-") + dot + inner


def _finite(value: JsonValue) -> bool:
    if isinstance(value, dict):
        return all(_finite(inner) for inner in value.values())
    if isinstance(value, list):
        return all(_finite(inner) for inner in value)
    return not isinstance(value, float) or math.isfinite(value)


def _check_value(name: str, value: JsonValue) -> None:
    if not _finite(value):
        raise ValueError(f"{name}: infinity and not-a-number cannot be passed")
    if isinstance(value, list) and not value:
        raise ValueError(f"{name}: an empty list passes nothing; leave the argument out")
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str) and "\0" in item:
            raise ValueError(f"{name}: no argument can carry a NUL byte")
        # One value can be joined to its flag (`--flag=-x`), several cannot.
        if isinstance(value, list) and len(value) > 1 and isinstance(item, str) and item.startswith("-"):
            raise ValueError(f"{name}: {item!r} in a list would be taken for an option")


def check_arguments(arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """`arguments` under their canonical names, in the order written. ValueError names one that cannot be passed."""
    checked: dict[str, JsonValue] = {}
    for written, value in arguments.items():
        name = canonical(written)
        if written.startswith("-"):
            raise ValueError(f"{written}: write argument names without dashes in front")
        if not name or any(not (letter.isascii() and letter.isalnum()) and letter not in "-_." for letter in name):
            raise ValueError(f"{written}: is not the name of an argument")
        if name in RESERVED_ARGUMENTS:
            raise ValueError(f"{written}: is derived from the cluster, a recipe cannot set it")
        if name == "api-key":
            raise ValueError(f"{written}: everybody could read it in the process list; use api_key_file")
        if name == "model":
            raise ValueError(f"{written}: the weights are named by the recipe's own key `model`")
        if name in checked:
            raise ValueError(f"{written}: is given twice (- and _ are the same in an argument's name)")
        _check_value(written, value)
        checked[name] = value
    return checked


# `true` is a bare flag, `false` leaves the argument out, a mapping is passed as one JSON argument,
# a list as several values after one flag. The configuration loader keeps numbers as the author wrote them.
Arguments = Annotated[dict[str, JsonValue], AfterValidator(check_arguments)]


class ContainerRecipe(Strict):
    """How the container is made. Defaults are those of the two-Spark deployment."""

    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}$")
    image: str = Field(pattern=IMAGE_PATTERN, max_length=255)
    runtime: str | None = "nvidia"
    gpus: str | None = Field(default="all", pattern=r"^(all|[0-9]{1,3}|device=[A-Za-z0-9,.:_-]{1,200})?$")
    network: str = "host"
    ipc: str = "host"
    privileged: bool = True
    volumes: tuple[str, ...] = ()  # "host path:container path[:ro]"; ~ is root's home on the node
    command: tuple[str, ...] = ("sleep", "infinity")
    init: bool = True  # `sleep infinity` as PID 1 reaps nothing and ignores SIGTERM
    script_directory: str = Field(default="/workspace", pattern=DIRECTORY_PATTERN)

    @field_validator("volumes")
    @classmethod
    def _absolute(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for index, volume in enumerate(value):
            host, _, rest = volume.partition(":")
            if any(not letter.isprintable() for letter in volume):
                raise ValueError(f"[{index}]: {volume!r}: no path here may have a line break or another control character")
            if not host or not rest.startswith("/"):
                raise ValueError(f"[{index}]: {volume!r} is not host path:container path[:ro]")
            if host.startswith("~") and host != "~" and not host.startswith("~/"):
                raise ValueError(f"[{index}]: {host!r}: only ~ itself is known (root's home); write it out")
        return value


class PatchInvariant(Strict):
    """A file in the image in which `needle` must stand `count` times, unless `superseded_by` shows an upstream fix."""

    id: str = Field(pattern=NAME_PATTERN)
    file: str = Field(pattern=r"^/")  # path or glob inside the container
    needle: str = Field(min_length=1)
    count: int = Field(ge=0)  # lines with the needle, as `grep -c` counts
    superseded_by: str | None = None  # a string whose presence means: fixed upstream
    superseded_in: str | None = Field(default=None, pattern=r"^/")  # path or glob where to look for it; None: in `file`
    block: str | None = None  # the first line of the patched block, for the repair of a doubled one


class Recipe(Strict):
    """What to run: image, weights, environment, `vllm serve` arguments, patch invariants."""

    name: str = Field(pattern=NAME_PATTERN)
    description: str = ""
    model: str = Field(pattern=r"^[^-]")  # path of the weights inside the container
    container: ContainerRecipe
    environment: Environment = Field(default_factory=dict)
    forbidden_environment: tuple[str, ...] = ()  # "NAME" or "NAME=value"
    arguments: Arguments
    rendezvous_port: int = Field(default=29501, ge=1, le=65535)
    patches: tuple[PatchInvariant, ...] = ()
    default_profile: str | None = None
    api_key_file: str | None = Field(default=None, pattern=r"^/")  # host path; goes by VLLM_API_KEY, never by argument

    @field_validator("arguments")
    @classmethod
    def _given(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name, argument in value.items():
            if argument is None:
                raise ValueError(f"{name}: has no value (for a bare flag write true; null is for profiles)")
        return value

    @field_validator("forbidden_environment")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for index, entry in enumerate(value):
            try:
                check_name(entry.partition("=")[0])
            except ValueError as error:
                raise ValueError(f"[{index}]: {error}") from None
        return value


class Profile(Strict):
    """A named set of changes: arguments and environment laid over the recipe's (null removes one)."""

    name: str = Field(pattern=NAME_PATTERN)
    description: str = ""
    arguments: Arguments = Field(default_factory=dict)
    environment: EnvironmentChanges = Field(default_factory=dict)
