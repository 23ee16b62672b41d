"""The living container beside the plan's: what differs, in sentences. Pure: it reads what `docker inspect` said."""

from __future__ import annotations

import os.path
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sparkd.model.plan import ContainerSpec

LABEL_MANAGED = "io.sparkd.managed"
LABEL_CLUSTER = "io.sparkd.cluster"
_BIND_MODES_THAT_MATTER = {"ro"}


@dataclass(frozen=True)
class ContainerState:
    """A container as the daemon describes it. `raw` is the whole answer, for what is not named here."""

    id: str
    name: str
    image_id: str
    image: str  # as it was named when the container was made
    running: bool
    status: str  # created, running, paused, restarting, removing, exited, dead
    exit_code: int
    started_at: str  # RFC 3339, the daemon's clock; "0001-01-01T00:00:00Z" where it never ran
    pid: int  # of its first process as the host sees it, 0 where it does not run
    labels: Mapping[str, str]
    restart_policy: str  # "no", "always", "unless-stopped", "on-failure"
    pid_mode: str
    ipc: str
    network: str
    mounts: tuple[str, ...]  # binds and named volumes, "source:target[:ro]", normalised
    env: Mapping[str, str]
    raw: Mapping[str, Any] = field(repr=False, default_factory=dict)
    created_at: str = ""  # RFC 3339
    restart_count: int = 0  # by Docker's own restart policy
    oom_killed: bool = False  # the kernel killed something in it since it was started
    error: str = ""  # why it could not be started, in Docker's words
    user: str = ""  # empty: root
    privileged: bool = False
    capabilities: tuple[str, ...] = ()  # added ones, without CAP_
    devices: tuple[str, ...] = ()  # paths on the host
    ulimits: Mapping[str, int] = field(default_factory=dict)  # hard limits, -1 unlimited
    log_driver: str = ""
    log_options: Mapping[str, str] = field(default_factory=dict)
    log_path: str = ""  # on the host, where the driver writes a file

    @property
    def is_ours(self) -> bool:
        return self.labels.get(LABEL_MANAGED, "").lower() in ("1", "true", "yes")

    def made_for(self, cluster: str) -> bool:
        """By sparkd, for that cluster: what runs in it is that cluster's own."""
        return self.is_ours and self.labels.get(LABEL_CLUSTER) == cluster


def state_of(raw: Mapping[str, Any]) -> ContainerState:
    """The answer of `GET /containers/NAME/json`, any Docker since 19.03."""
    state, config, host = raw.get("State") or {}, raw.get("Config") or {}, raw.get("HostConfig") or {}
    env = dict(entry.partition("=")[::2] for entry in config.get("Env") or ())
    return ContainerState(
        id=raw["Id"],
        name=str(raw.get("Name", "")).lstrip("/"),
        image_id=raw.get("Image", ""),
        image=config.get("Image", ""),
        running=bool(state.get("Running")),
        status=state.get("Status", ""),
        exit_code=int(state.get("ExitCode") or 0),
        started_at=state.get("StartedAt", ""),
        pid=int(state.get("Pid") or 0),
        labels=config.get("Labels") or {},
        restart_policy=(host.get("RestartPolicy") or {}).get("Name") or "no",
        pid_mode=host.get("PidMode") or "private",
        ipc=host.get("IpcMode") or "",
        network=host.get("NetworkMode") or "",
        mounts=_mounts_of(host),
        env=env,
        raw=raw,
        created_at=str(raw.get("Created", "")),
        restart_count=int(raw.get("RestartCount") or 0),
        oom_killed=bool(state.get("OOMKilled")),
        error=str(state.get("Error") or ""),
        user=str(config.get("User") or ""),
        privileged=bool(host.get("Privileged")),
        capabilities=tuple(str(each).removeprefix("CAP_") for each in host.get("CapAdd") or ()),
        devices=tuple(str(each.get("PathOnHost", "")) for each in host.get("Devices") or ()),
        ulimits={str(each["Name"]): int(each["Hard"]) for each in host.get("Ulimits") or ()},
        log_driver=str((host.get("LogConfig") or {}).get("Type") or ""),
        log_options=(host.get("LogConfig") or {}).get("Config") or {},
        log_path=str(raw.get("LogPath") or ""),
    )


@dataclass(frozen=True)
class ImageState:
    """An image as the daemon describes it. `architecture` in Go's words: "arm64", "amd64"."""

    id: str
    architecture: str
    created_at: str  # RFC 3339
    labels: Mapping[str, str]
    env: Mapping[str, str]
    digests: tuple[str, ...] = ()  # "repository@sha256:..."; none where it came by `docker load`


def image_of(raw: Mapping[str, Any]) -> ImageState:
    """The answer of `GET /images/NAME/json`."""
    config = raw.get("Config") or {}
    return ImageState(
        id=str(raw["Id"]),
        architecture=str(raw.get("Architecture") or ""),
        created_at=str(raw.get("Created") or ""),
        labels=config.get("Labels") or {},
        env=dict(entry.partition("=")[::2] for entry in config.get("Env") or ()),
        digests=tuple(raw.get("RepoDigests") or ()),
    )


@dataclass(frozen=True)
class DaemonState:
    """The Docker daemon as it describes itself."""

    version: str
    runtimes: tuple[str, ...]
    root: str  # its directory on the host
    architecture: str  # the kernel's word: "aarch64", "x86_64"
    log_driver: str
    live_restore: bool
    cgroup_driver: str


def daemon_of(raw: Mapping[str, Any]) -> DaemonState:
    """The answer of `GET /info`."""
    return DaemonState(
        version=str(raw.get("ServerVersion") or ""),
        runtimes=tuple((raw.get("Runtimes") or {}).keys()),
        root=str(raw.get("DockerRootDir") or ""),
        architecture=str(raw.get("Architecture") or ""),
        log_driver=str(raw.get("LoggingDriver") or ""),
        live_restore=bool(raw.get("LiveRestoreEnabled")),
        cgroup_driver=str(raw.get("CgroupDriver") or ""),
    )


def normalised_volume(volume: str) -> str:
    """ "/a/:/b:rw,z" becomes "/a:/b": equal volumes compare equal, options that do not change the contents drop out."""
    source, _, rest = volume.partition(":")
    target, _, options = rest.partition(":")
    if source.startswith("/"):
        source = os.path.normpath(source)
    kept = sorted(_BIND_MODES_THAT_MATTER & set(options.split(",")))
    return ":".join([source, os.path.normpath(target), *kept])


def _mounts_of(host: Mapping[str, Any]) -> tuple[str, ...]:
    binds = [normalised_volume(bind) for bind in host.get("Binds") or ()]
    for mount in host.get("Mounts") or ():
        if mount.get("Type") in ("bind", "volume") and mount.get("Source"):
            option = ":ro" if mount.get("ReadOnly") else ""
            binds.append(normalised_volume(f"{mount['Source']}:{mount['Target']}{option}"))
    return tuple(sorted(binds))


def differences(
    state: ContainerState,
    spec: ContainerSpec,
    *,
    image_id: str | None,
    runtimes: Collection[str] | None = None,
) -> list[str]:
    """One sentence for each way in which the container would run the engine otherwise than the plan says.

    `image_id` is what the plan's image name means on this node now (None: it is not here, so only names
    are compared). `runtimes` are those the daemon knows: the plan's is asked for only where it is one of them.
    Labels, `init` and the restart policy do not change how the engine runs: `notes` names them.
    """
    host = state.raw.get("HostConfig") or {}
    config = state.raw.get("Config") or {}
    found = [_image_difference(state, spec, image_id), *_volume_differences(state, spec)]
    found += [
        f"{what}: the container has {actual!r}, the plan wants {wanted!r}"
        for what, actual, wanted in (
            ("privileged", bool(host.get("Privileged")), spec.privileged),
            ("network", state.network, spec.network),
            ("ipc", state.ipc, spec.ipc),
            ("command", tuple(config.get("Cmd") or ()), spec.command),
        )
        if actual != wanted
    ]
    found.append(_gpu_difference(host, spec, runtimes))
    return [sentence for sentence in found if sentence]


def notes(state: ContainerState, spec: ContainerSpec) -> list[str]:
    """What differs without changing the engine: worth a word, never worth a person's time at night."""
    found = []
    if state.restart_policy != "no":
        found.append(
            f"Docker restarts it by itself (restart policy {state.restart_policy}); sparkd does not rely on that"
        )
    if spec.init and not (state.raw.get("HostConfig") or {}).get("Init"):
        found.append("it has no init, so dead processes stay as zombies and a stop takes 10 s")
    return found


def _image_difference(state: ContainerState, spec: ContainerSpec, image_id: str | None) -> str:
    if image_id is None:
        return (
            "" if state.image == spec.image else f"image: the container runs {state.image}, the plan wants {spec.image}"
        )
    if state.image_id == image_id:
        return ""
    if state.image == spec.image:
        return (
            f"image: the container was made from an older {spec.image} ({_short(state.image_id)}); "
            f"that name now means {_short(image_id)}"
        )
    return (
        f"image: the container runs {state.image} ({_short(state.image_id)}), "
        f"the plan wants {spec.image} ({_short(image_id)})"
    )


def _volume_differences(state: ContainerState, spec: ContainerSpec) -> list[str]:
    wanted = {normalised_volume(volume) for volume in spec.volumes}
    actual = set(state.mounts)
    return [f"volume {volume}: the plan wants it, the container lacks it" for volume in sorted(wanted - actual)] + [
        f"volume {volume}: the container has it, the plan does not" for volume in sorted(actual - wanted)
    ]


def _gpu_difference(host: Mapping[str, Any], spec: ContainerSpec, runtimes: Collection[str] | None) -> str:
    """`--runtime nvidia` and `--gpus all` give the same GPU by two ways: a container that has either is equal."""
    requests = [r for r in host.get("DeviceRequests") or () if _asks_for_gpu(r)]
    runtime = host.get("Runtime") or ""
    runtime_counts = spec.runtime is not None and spec.runtime in (runtimes or ())
    if spec.gpus and requests:
        actual = _gpus_of(requests)
        return "" if actual == spec.gpus else f"gpus: the container has {actual}, the plan wants {spec.gpus}"
    if runtime_counts and runtime != spec.runtime:
        return f"runtime: the container has {runtime or 'the default'}, the plan wants {spec.runtime}"
    if spec.gpus and not requests and runtime != spec.runtime:
        return f"gpus: the container has none, the plan wants {spec.gpus}"
    return ""


def _asks_for_gpu(request: Mapping[str, Any]) -> bool:
    return any("gpu" in group for group in request.get("Capabilities") or ())


def _gpus_of(requests: list[Mapping[str, Any]]) -> str:
    first = requests[0]
    if first.get("DeviceIDs"):
        return "device=" + ",".join(first["DeviceIDs"])
    count = int(first.get("Count") or 0)
    return "all" if count == -1 else str(count)


def _short(image_id: str) -> str:
    return image_id.removeprefix("sha256:")[:12] or "unknown"
