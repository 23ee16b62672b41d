"""Layer docker: the daemon that runs the engine's container, and room on the disks that it and sparkd need."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparkd.doctor.check import Answers, Gate, cannot_tell, check, doubtful, no, yes
from sparkd.doctor.facts import Facts, container, fact
from sparkd.engine.container import DaemonState
from sparkd.host import cdi, gpu
from sparkd.host.memory import GIB, MIB
from sparkd.model.errors import SparkdError, UnreachableError
from sparkd.model.finding import Cure, Layer
from sparkd.model.plan import ContainerSpec

VERSION_MIN = (20, 10)  # the first that knows cgroup v2, and what the tests of this project run on
HOOKS = (
    "nvidia-container-runtime-hook",
    "nvidia-container-toolkit",
)  # what `--gpus` needs where no runtime is registered
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LOG_MAX_BYTES = 2 * GIB


@dataclass(frozen=True)
class Need:
    """Below `bad_bytes` something fails now, below `low_bytes` soon."""

    bad_bytes: int
    low_bytes: int


DOCKER_NEEDS = Need(256 * MIB, 2 * GIB)  # a container's metadata and writable layer; caches and logs of some days
STATE_NEEDS = Need(16 * MIB, 256 * MIB)  # a few small files, written anew each time
LOGS_NEED = Need(32 * MIB, 512 * MIB)  # one engine log per launch


@fact
def info(facts: Facts) -> DaemonState:
    """What the daemon says of itself. UnreachableError where it does not answer."""
    return facts.docker.info()


@dataclass(frozen=True)
class Room:
    """The file system below a path. `device` tells whether two paths share one."""

    path: Path
    device: int
    free_bytes: int  # for others than root: what daemons that keep a reserve see
    total_bytes: int
    inodes_free: int | None  # None where the file system has no fixed number


def room(path: Path) -> Room | None:
    """Of the nearest directory that exists; None where not even that can be looked at."""
    for candidate in (path, *path.parents):
        try:
            about, fs = candidate.stat(), os.statvfs(candidate)
        except FileNotFoundError:
            continue
        inodes = fs.f_ffree if fs.f_files else None
        return Room(path, about.st_dev, fs.f_bfree * fs.f_frsize, fs.f_blocks * fs.f_frsize, inodes)
    return None


@fact
def docker_room(facts: Facts) -> Room | None:
    """Docker's own directory; its usual place where the daemon cannot be asked, because a full disk is why it is down."""
    try:
        root = info(facts).root
    except SparkdError:
        root = ""
    return room(Path(root or "/var/lib/docker"))


def judge_room(found: Room | None, what: str, need: Need) -> Answers:
    """Pure."""
    if found is None:
        yield cannot_tell(f"{what}: its file system cannot be looked at")
        return
    unit, name = (GIB, "GiB") if found.total_bytes >= GIB else (MIB, "MiB")
    free = f"{found.free_bytes / unit:.1f} of {found.total_bytes / unit:.0f} {name} free"
    place = f"{what} ({found.path})"
    if found.inodes_free == 0:
        yield no(f"{place} has no inodes left", evidence=(f"df -i {found.path}", free))
    elif found.free_bytes < need.bad_bytes:
        yield no(f"the disk of {place} is full: {free}", evidence=(f"df -h {found.path}",))
    elif found.free_bytes < need.low_bytes:
        yield doubtful(f"the disk of {place} is nearly full: {free}", evidence=(f"df -h {found.path}",))
    else:
        yield yes(f"{what}: {free}")


@check(
    "docker.disk-full",
    layer=Layer.DOCKER,
    question="Is there room on Docker's disk?",
    how="statvfs of Docker's root directory",
    means="No container can be made or written to, and Docker itself may fail to start.",
    remedy="docker system df; docker image prune; du -xh /var/lib/docker | sort -h | tail",
    sample="the disk of Docker (/var/lib/docker) is full: 0.0 of 916 GiB free",
    gate=Gate.HOST,
)
def disk_full(facts: Facts) -> Answers:
    yield from judge_room(docker_room(facts), "Docker", DOCKER_NEEDS)


@check(
    "docker.state-disk-full",
    layer=Layer.DOCKER,
    question="Is there room where sparkd keeps its state?",
    how="statvfs of the state directory (/var/lib/sparkd)",
    means="sparkd cannot write down its epoch, its events and its baselines: a restart then knows less than it should.",
    remedy="df -h /var/lib/sparkd; remove what is not needed on that disk",
    sample="the disk of sparkd's state (/var/lib/sparkd) is full: 0.0 of 916 GiB free",
    after=("docker.disk-full",),
)
def state_disk_full(facts: Facts) -> Answers:
    found = room(facts.paths.state)
    if not _same_disk(found, docker_room(facts)):
        yield from judge_room(found, "sparkd's state", STATE_NEEDS)


@check(
    "docker.logs-disk-full",
    layer=Layer.DOCKER,
    question="Is there room for the engine's logs?",
    how="statvfs of the log directory (/var/log/sparkd/engine)",
    means="The engine's output is lost, and with it the cause of the next fault; a writer may hang or die on it.",
    remedy="df -h /var/log/sparkd; journalctl --vacuum-size=500M; lower launches_kept",
    sample="the disk of the engine's logs (/var/log/sparkd) is full: 0.0 of 4 GiB free",
    after=("docker.disk-full", "docker.state-disk-full"),
)
def logs_disk_full(facts: Facts) -> Answers:
    found = room(facts.paths.engine_logs)
    if not any(_same_disk(found, other) for other in (docker_room(facts), room(facts.paths.state))):
        yield from judge_room(found, "the engine's logs", LOGS_NEED)


def _same_disk(one: Room | None, other: Room | None) -> bool:
    """A disk that is told of once need not be told of again."""
    return one is not None and other is not None and one.device == other.device


@check(
    "docker.unreachable",
    layer=Layer.DOCKER,
    question="Does the Docker daemon answer?",
    how="GET /info on its socket",
    means="Without Docker no container can be looked at or started. While a node boots it may still come.",
    remedy="systemctl status docker",
    sample="Docker does not answer: no such file or directory (/var/run/docker.sock)",
    cure=Cure.WAIT,
    gate=Gate.HOST,
    after=("docker.disk-full",),
)
def unreachable(facts: Facts) -> Answers:
    try:
        known = info(facts)
    except UnreachableError as error:
        if _forbidden():
            yield cannot_tell("not allowed to ask Docker", remedy="sudo sparkd doctor")
        else:
            yield no(str(error), remedy=error.hint)
    else:
        yield yes(f"Docker {known.version} answers (runtimes: {', '.join(known.runtimes)})")


def _forbidden(socket: Path = Path("/var/run/docker.sock")) -> bool:
    """A person without the right group: that says nothing about Docker."""
    return socket.exists() and not os.access(socket, os.W_OK)


@check(
    "docker.version",
    layer=Layer.DOCKER,
    question="Is Docker new enough?",
    how="ServerVersion of GET /info",
    means="Older daemons know neither cgroup v2 nor the GPU options that the plan uses.",
    remedy="apt install docker-ce, or the distribution's newer docker.io",
    sample="Docker 19.03.15 is older than 20.10",
    after=("docker.unreachable",),
)
def version(facts: Facts) -> Answers:
    known = info(facts)
    found = version_of(known.version)
    if found is None:
        yield cannot_tell(f"Docker calls its version {known.version!r}")
    elif found < VERSION_MIN:
        yield doubtful(f"Docker {known.version} is older than {'.'.join(map(str, VERSION_MIN))}")
    else:
        restart = "" if known.live_restore else "; live restore is off: a restart of Docker ends the engine"
        yield yes(f"Docker {known.version}{restart}")


def version_of(text: str) -> tuple[int, int] | None:
    """Pure. (major, minor) of "28.3.3" or "20.10.24+dfsg1"."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found.group(1)), int(found.group(2))) if found else None


@check(
    "docker.runtime-missing",
    layer=Layer.DOCKER,
    question="Can Docker give a container the GPU that the plan asks for?",
    how="the runtimes that GET /info lists, and NVIDIA's hook on the host",
    means='Docker came without the NVIDIA toolkit: could not select device driver "" with capabilities: [[gpu]].',
    remedy="nvidia-ctk runtime configure --runtime=docker && systemctl restart docker",
    sample="the plan asks for the GPU, and Docker knows no nvidia runtime (runtimes: runc)",
    gate=Gate.HOST,
    after=("docker.unreachable",),
)
def runtime_missing(facts: Facts) -> Answers:
    spec = facts.plan.container
    if spec.gpus or spec.runtime not in (None, "runc"):
        yield from judge_runtime(spec, info(facts).runtimes, gpu_hook())


def gpu_hook(path: str = SYSTEM_PATH) -> str:
    """The program by which `--gpus` works where no runtime is registered; empty where there is none."""
    return next((each for each in HOOKS if shutil.which(each, path=path)), "")


def judge_runtime(spec: ContainerSpec, known: Sequence[str], hook: str) -> Answers:
    """Pure. A container that asks for no GPU is made without the runtime and lacks nothing."""
    listed = f"runtimes: {', '.join(known) or 'none'}"
    if spec.runtime is None or spec.runtime in known:
        yield yes(f"Docker knows the runtime {spec.runtime or 'runc'}")
    elif spec.gpus and hook:
        yield doubtful(f"Docker does not know the runtime {spec.runtime} ({listed}); `--gpus` goes by {hook} instead")
    elif spec.gpus:
        yield no(f"the plan asks for the GPU, and Docker knows no {spec.runtime} runtime ({listed})")


@check(
    "docker.cdi-stale",
    layer=Layer.DOCKER,
    question="Do the CDI specs name files that exist?",
    how="/etc/cdi and /var/run/cdi, each hostPath in them; the mode in /etc/nvidia-container-runtime/config.toml",
    means="A driver update moved the libraries and the specs were not made anew: unresolvable CDI devices nvidia.com/gpu=all.",
    remedy="nvidia-ctk cdi generate --output=/var/run/cdi/nvidia.yaml; order docker.service After=nvidia-cdi-refresh.service",
    sample="/etc/cdi/nvidia.yaml names 14 files that do not exist, as /usr/lib/aarch64-linux-gnu/libcuda.so.580.82.07",
)
def cdi_stale(facts: Facts) -> Answers:
    if not facts.plan.container.gpus or gpu.driver_version() is None:
        return
    specs = [each for each in cdi.specs() if not each.kind or each.kind.startswith("nvidia.com/")]
    needed = cdi.runtime_mode() in ("cdi", "jit-cdi")
    if not specs and needed:
        yield no("the NVIDIA runtime works by CDI, and there is no spec in /etc/cdi or /var/run/cdi")
    for spec in specs:
        if not spec.kind:
            yield doubtful(f"{spec.path} is no CDI spec: it has no `kind`")
        elif spec.missing:
            says = f"{spec.path} names {len(spec.missing)} files that do not exist, as {spec.missing[0]}"
            yield (no if needed else doubtful)(says, evidence=spec.missing[:5])
        else:
            yield yes(f"{spec.path}: all {spec.paths} files exist")


@check(
    "docker.log-unbounded",
    layer=Layer.DOCKER,
    question="Will the container's own log not fill the disk?",
    how="log driver and max-size of `docker inspect`, the size of its log file, room on Docker's disk",
    means="The json-file driver keeps everything for ever unless it is told a size.",
    remedy='set "log-opts": {"max-size": "100m", "max-file": "3"} in /etc/docker/daemon.json; truncate -s 0 the log file',
    sample="the log of container vllm_ds4 has 31.2 GiB and no limit",
    after=("docker.unreachable", "docker.disk-full"),
)
def log_unbounded(facts: Facts) -> Answers:
    state = container(facts)
    if state is None or state.log_driver != "json-file" or state.log_options.get("max-size"):
        return
    try:
        size = Path(state.log_path).stat().st_size if state.log_path else 0
    except OSError:
        yield cannot_tell(f"the log of container {state.name} cannot be looked at ({state.log_path})")
        return
    if size > LOG_MAX_BYTES:
        remedy = f"truncate -s 0 {state.log_path}; set a max-size in /etc/docker/daemon.json"
        yield doubtful(f"the log of container {state.name} has {size / GIB:.1f} GiB and no limit", remedy=remedy)
    else:
        yield yes(f"the log of container {state.name} has {size / MIB:.1f} MiB (no limit is set)")
