"""A plan is recipe + profile + cluster + node, resolved: container, environment, argv, script text. It has a digest."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from sparkd.model.recipe import PatchInvariant

LAUNCH_ID_VARIABLE = "SPARKD_LAUNCH_ID"


class ContainerSpec(BaseModel):
    """What `docker run` is to make. Volumes are "host:container[:ro]" with ~ already expanded."""

    model_config = ConfigDict(frozen=True)

    name: str
    image: str
    runtime: str | None
    gpus: str | None
    network: str
    ipc: str
    privileged: bool
    volumes: tuple[str, ...]
    command: tuple[str, ...]
    init: bool


class Plan(BaseModel):
    """One rank's part. `argv` is the engine's whole command line, `argv[0] == "vllm"`."""

    model_config = ConfigDict(frozen=True)

    cluster: str
    node: str
    rank: int
    size: int  # number of nodes
    profile: str | None
    container: ContainerSpec
    environment: dict[str, str]  # without the launch id
    forbidden_environment: tuple[str, ...]
    argv: tuple[str, ...]
    script: str  # the self-contained launch script; takes the launch id as its only argument
    script_path: str  # inside the container
    model: str  # path of the weights inside the container
    served_name: str
    api_host: str  # the address at which this node asks the endpoint (head only)
    api_port: int
    rendezvous_port: int
    gpu_memory_utilization: float | None
    patches: tuple[PatchInvariant, ...]
    has_reasoning: bool
    has_tools: bool
    api_key_file: str | None

    @property
    def api_url(self) -> str:
        """Where this node asks its own endpoint."""
        host = f"[{self.api_host}]" if ":" in self.api_host else self.api_host
        return f"http://{host}:{self.api_port}"

    @property
    def is_head(self) -> bool:
        return self.rank == 0


class ClusterPlan(BaseModel):
    """Every rank's plan. Equal configuration gives an equal `digest` on every node, which is what the nodes compare."""

    model_config = ConfigDict(frozen=True)

    recipe: str
    profile: str | None
    ranks: tuple[Plan, ...]
    digest: str  # sha256 hex over every rank's plan
