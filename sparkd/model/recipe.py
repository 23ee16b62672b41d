"""A recipe says what to run; a profile is a named set of changes to it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, JsonValue, field_validator

from sparkd.model.cluster import Strict

# `true` is a bare flag, `false` leaves the argument out, a mapping is passed as one JSON argument,
# a list as several values after one flag.
ArgumentValue = Annotated[JsonValue, Field(union_mode="left_to_right")]

# What the plan derives from the cluster; a recipe that sets one of these would contradict it.
RESERVED_ARGUMENTS = ("nnodes", "node-rank", "master-addr", "master-port", "headless")


class ContainerRecipe(Strict):
    """How the container is made. Defaults are those of the two-Spark deployment."""

    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]+$")
    image: str
    runtime: str | None = "nvidia"
    gpus: str | None = "all"
    network: str = "host"
    ipc: str = "host"
    privileged: bool = True
    volumes: tuple[str, ...] = ()  # "host path:container path[:ro]"; ~ is root's home on the node
    command: tuple[str, ...] = ("sleep", "infinity")
    init: bool = True  # `sleep infinity` as PID 1 reaps nothing and ignores SIGTERM
    script_directory: str = "/workspace"


class PatchInvariant(Strict):
    """A file in the image in which `needle` must stand `count` times, unless `superseded_by` shows an upstream fix."""

    id: str
    file: str  # path or glob inside the container
    needle: str
    count: int = Field(ge=0)
    superseded_by: str | None = None  # a string whose presence in the file means: fixed upstream
    block: str | None = None  # the first line of the patched block, for the repair of a doubled one


class Recipe(Strict):
    """What to run: image, weights, environment, `vllm serve` arguments, patch invariants."""

    name: str
    description: str = ""
    model: str  # path of the weights inside the container
    container: ContainerRecipe
    environment: dict[str, str] = Field(default_factory=dict)
    forbidden_environment: tuple[str, ...] = ()  # "NAME" or "NAME=value"
    arguments: dict[str, ArgumentValue]
    rendezvous_port: int = Field(default=29501, ge=1, le=65535)
    patches: tuple[PatchInvariant, ...] = ()
    default_profile: str | None = None
    api_key_file: str | None = None  # host path; passed as VLLM_API_KEY, never as an argument

    @field_validator("arguments")
    @classmethod
    def _not_reserved(cls, value: dict[str, ArgumentValue]) -> dict[str, ArgumentValue]:
        for name in value:
            if name.startswith("-"):
                raise ValueError(f"{name}: write argument names without dashes")
            if name.replace("_", "-") in RESERVED_ARGUMENTS:
                raise ValueError(f"{name}: is derived from the cluster, a recipe cannot set it")
        return value


class Profile(Strict):
    """A named set of changes: arguments and environment laid over the recipe's (null removes one)."""

    name: str
    description: str = ""
    arguments: dict[str, ArgumentValue] = Field(default_factory=dict)
    environment: dict[str, str | None] = Field(default_factory=dict)
