"""Layer container: is the plan's container there, as the plan wants it, and driven by nobody else?"""

from __future__ import annotations

import posixpath
import re
from datetime import datetime
from pathlib import Path

from sparkd.doctor.check import Answers, Gate, cannot_tell, check, doubtful, no, yes
from sparkd.doctor.checks.docker import info
from sparkd.doctor.facts import Facts, container, fact, image_id, launch_id
from sparkd.engine.container import ContainerState, differences
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Cure, Finding, Layer, Who
from sparkd.model.render import API_KEY_PATH

RESTARTS_MAX = 3  # more by Docker itself is a loop
SHOWN_MAX = 5
NOBODYS = re.compile(r"^/(var/)?tmp/|/\.cache/|/(dist|site)-packages/")  # scripts that programs make and unpack
# A compile cache in the writable layer goes with the container: minutes of work, and 39 % of decode speed until it is warm.
CACHES = (
    "/.cache/vllm",
    "/.cache/flashinfer",
    "/.triton",
    "/.tilelang",
    "/.deep_gemm",
    "/torchinductor_",
    "/.cache/huggingface",
)


@fact
def added_files(facts: Facts) -> tuple[str, ...]:
    """Paths that exist in the container's writable layer alone."""
    return tuple(facts.docker.added_files(facts.plan.container.name))


def expected(facts: Facts) -> bool:
    """A launch is meant to live here now, so that its container must run. In a launch's preflight none is."""
    return not facts.calm and launch_id(facts) is not None and facts.phase not in ("clean", "container", "stopping")


def _differs(facts: Facts, state: ContainerState) -> list[str]:
    return differences(state, facts.plan.container, image_id=image_id(facts), runtimes=info(facts).runtimes)


@check(
    "container.missing",
    layer=Layer.CONTAINER,
    question="Is the container of the launch that is meant to live there?",
    how="`docker inspect` of the plan's container name",
    means="Somebody removed it under the engine. Before a first launch there is none, and sparkd makes it.",
    remedy="sparkd restart",
    sample="container vllm_ds4 is gone, and launch 3f2a9c1e-18 should live in it",
    who=Who.SPARKD,
    cure=Cure.RELAUNCH,
    after=("docker.unreachable",),
)
def missing(facts: Facts) -> Answers:
    if container(facts) is not None:
        return
    name = facts.plan.container.name
    if expected(facts):
        yield no(f"container {name} is gone, and launch {launch_id(facts)} should live in it")
    else:
        yield yes(f"there is no container {name} yet: the next launch makes it")


@check(
    "container.foreign",
    layer=Layer.CONTAINER,
    question="Is the container of the plan's name one that sparkd may use?",
    how="its labels io.sparkd.*, and `docker inspect` against the plan",
    means="Somebody else made a container of this name, for another purpose or in another way. sparkd never replaces one.",
    remedy="docker diff NAME; docker rename NAME NAME-old, or docker rm -f NAME; sparkd makes its own from the plan",
    sample="container vllm_ds4 was not made by sparkd and differs from the plan: network: the container has 'bridge'",
    gate=Gate.STEP,
    after=("docker.unreachable", "image.missing"),
)
def foreign(facts: Facts) -> Answers:
    """No gate in preflight: `container`, the step after `clean`, refuses it. One that is as the plan wants it is adopted."""
    state = container(facts)
    if state is None or state.is_ours:
        return
    wrong = _differs(facts, state)
    if wrong:
        says = f"container {state.name} was not made by sparkd and differs from the plan: {wrong[0]}"
        remedy = f"docker diff {state.name}; docker rm -f {state.name}  (sparkd makes it anew from the plan)"
        yield no(says, evidence=tuple(wrong), remedy=remedy)
    else:
        yield yes(f"container {state.name} was made by hand, as the plan wants it")


@check(
    "container.differs",
    layer=Layer.CONTAINER,
    question="Does the container that sparkd made still match the plan?",
    how="`docker inspect` against the plan's container spec, image id included",
    means="The plan or the image changed since it was made; sparkd never replaces one by itself.",
    remedy="docker diff NAME; docker rm -f NAME  (sparkd makes it anew from the plan)",
    sample="container vllm_ds4 differs from the plan: ipc: the container has 'private', the plan wants 'host'",
    gate=Gate.STEP,
    after=("docker.unreachable", "image.missing"),
)
def differs(facts: Facts) -> Answers:
    """No gate in preflight: `container`, the step after `clean`, makes it where there is none and refuses where it differs."""
    state = container(facts)
    if state is None or not state.is_ours:
        return
    wrong = _differs(facts, state)
    if wrong:
        remedy = f"docker diff {state.name}; docker rm -f {state.name}  (sparkd makes it anew from the plan)"
        found = no(f"container {state.name} differs from the plan: {wrong[0]}", evidence=tuple(wrong), remedy=remedy)
        # A name that means another image now has its own reason: where the nodes' images differ, that is the thing to mend.
        is_image = len(wrong) == 1 and wrong[0].startswith("image:")
        yield found.model_copy(update={"symptom": is_image})
    else:
        yield yes(f"container {state.name} is as the plan wants it")


@check(
    "container.restart-policy",
    layer=Layer.CONTAINER,
    question="Is sparkd the only one that restarts the container?",
    how="HostConfig.RestartPolicy of `docker inspect`",
    means="Docker and sparkd restart it against each other, and one rank comes back alone. Only one supervisor can be right.",
    remedy="docker update --restart=no NAME",
    sample="Docker restarts container vllm_ds4 by itself (restart policy always)",
    after=("docker.unreachable",),
)
def restart_policy(facts: Facts) -> Answers:
    state = container(facts)
    if state is not None:
        yield judge_restart_policy(state)


def judge_restart_policy(state: ContainerState) -> Finding:
    """Pure."""
    if state.restart_policy == "no":
        return yes(f"Docker leaves container {state.name} alone (restart policy no)")
    says = f"Docker restarts container {state.name} by itself (restart policy {state.restart_policy})"
    answer = doubtful if state.restart_policy == "on-failure" else no
    return answer(says, remedy=f"docker update --restart=no {state.name}")


@check(
    "container.restart-loop",
    layer=Layer.CONTAINER,
    question="Does Docker not restart the container over and over?",
    how="RestartCount and State of `docker inspect`",
    means="Its program ends as soon as it is started; each turn may read the weights again and fill the page cache.",
    remedy="docker update --restart=no NAME; docker logs --tail 50 NAME",
    sample="Docker restarted container vllm_ds4 41 times; now it is restarting (exit status 127)",
    after=("docker.unreachable", "container.oom-killed"),
)
def restart_loop(facts: Facts) -> Answers:
    state = container(facts)
    if state is None:
        return
    if state.status == "restarting" or state.restart_count >= RESTARTS_MAX:
        says = f"Docker restarted container {state.name} {state.restart_count} times; now it is {state.status}"
        says += f" (exit status {state.exit_code})" if not state.running or state.status == "restarting" else ""
        yield no(says, remedy=f"docker update --restart=no {state.name}; docker logs --tail 50 {state.name}")
    else:
        yield yes(f"Docker restarted container {state.name} {state.restart_count} times")


@check(
    "container.oom-killed",
    layer=Layer.CONTAINER,
    question="Did the kernel kill nothing in the container for want of memory?",
    how="State.OOMKilled of `docker inspect`",
    means="The engine and something else together wanted more memory than there is.",
    remedy="journalctl -k | grep -i 'out of memory'; lower gpu-memory-utilization, or stop what else runs on this node",
    sample="the kernel killed a process of container vllm_ds4 for want of memory",
    cure=Cure.RELAUNCH,
    after=("docker.unreachable",),
)
def oom_killed(facts: Facts) -> Answers:
    state = container(facts)
    if state is None:
        return
    if not state.oom_killed:
        yield yes(f"nothing in container {state.name} was killed for want of memory")
        return
    says = f"the kernel killed a process of container {state.name} for want of memory since {state.started_at[:19]}"
    # In a container that runs on, it may have been an engine of long ago.
    yield (doubtful if state.running and facts.phase == "serving" else no)(says)


@check(
    "container.start-failed",
    layer=Layer.CONTAINER,
    question="Could Docker start the container?",
    how="State.Error of `docker inspect`",
    means="It was made and never ran: the runtime refused it (GPU, device, mount), or its command is not in the image.",
    remedy="docker start NAME; journalctl -u docker -n 50",
    sample="container vllm_ds4 could not be started: failed to inject CDI devices: unresolvable CDI devices nvidia.com/gpu=all",
    cure=Cure.RELAUNCH,
    after=("docker.unreachable", "docker.disk-full"),
)
def start_failed(facts: Facts) -> Answers:
    state = container(facts)
    if state is not None and not state.running and state.error:
        remedy = f"docker start {state.name}; journalctl -u docker -n 50"
        yield no(f"container {state.name} could not be started: {state.error}", remedy=remedy)


@check(
    "container.not-running",
    layer=Layer.CONTAINER,
    question="Does the container of the launch that is meant to live run?",
    how="State.Status of `docker inspect`; whether its State.Pid exists",
    means="Somebody stopped or paused it, or its first process died, or containerd did with all its shims and Docker has not "
    "noticed: the engine in it is gone or frozen.",
    remedy="sparkd restart",
    sample="container vllm_ds4 is exited (137), and launch 3f2a9c1e-18 should live in it",
    who=Who.SPARKD,
    cure=Cure.RELAUNCH,
    after=("docker.unreachable", "container.start-failed", "container.oom-killed", "container.restart-loop"),
)
def not_running(facts: Facts) -> Answers:
    import psutil

    state = container(facts)
    if state is None:
        return
    stands = f"container {state.name} is {state.status}" + ("" if state.running else f" ({state.exit_code})")
    if state.running and state.pid and not psutil.pid_exists(state.pid):
        says = f"Docker takes container {state.name} for running, but its first process does not exist"
        by_hand = f"docker stop {state.name}; docker start {state.name}  (the next launch does it too)"
        yield no(says, remedy="sparkd restart" if expected(facts) else by_hand)
    elif state.running and state.status == "running":
        yield yes(f"{stands} since {state.started_at[:19]}")
    elif state.status in ("dead", "removing"):
        yield no(stands, remedy=f"docker rm -f {state.name}  # only if it stays so")
    elif expected(facts):
        fix = f"docker unpause {state.name}" if state.status == "paused" else "sparkd restart"
        yield no(f"{stands}, and launch {launch_id(facts)} should live in it", remedy=fix)
    else:
        yield yes(f"{stands}: the next launch starts it")


@check(
    "container.recreated",
    layer=Layer.CONTAINER,
    question="Is the container older than the launch that lives in it?",
    how="Created of `docker inspect` against the launch file in /run/sparkd",
    means="It was made anew after the launch: scripts, patches and caches of its writable layer are gone.",
    remedy="sparkd restart; keep scripts on the host and caches on volumes",
    sample="container vllm_ds4 was made at 2026-05-30T07:02:11, after launch 3f2a9c1e-18",
    who=Who.SPARKD,
    after=("docker.unreachable", "container.missing"),
)
def recreated(facts: Facts) -> Answers:
    state = container(facts)
    if state is None or not expected(facts):
        return
    try:
        launched_at = facts.paths.launch_file.stat().st_mtime
    except OSError:
        yield cannot_tell(f"{facts.paths.launch_file} does not say when the launch was")
        return
    made_at = seconds_of(state.created_at)
    if made_at is None:
        yield cannot_tell(f"Docker says that container {state.name} was made at {state.created_at!r}")
    elif made_at > launched_at + 1:
        yield doubtful(f"container {state.name} was made at {state.created_at[:19]}, after launch {launch_id(facts)}")
    else:
        yield yes(f"container {state.name} is from {state.created_at[:19]}, before the launch")


def seconds_of(text: str) -> float | None:
    """Pure. Docker's RFC 3339 (nanoseconds and all) as seconds since 1970."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None


@check(
    "container.mount-source",
    layer=Layer.CONTAINER,
    question="Can Docker mount every directory that the plan names?",
    how="looks for the host side of each volume",
    means="A link that leads nowhere makes the container impossible: error while creating mount source path ... file exists.",
    remedy="ls -ld the path; make it a real directory on every node",
    sample="the volume /home/milo/models:/models leads nowhere: /home/milo/models is a link to /mnt/gone",
    gate=Gate.HOST,
)
def mount_source(facts: Facts) -> Answers:
    volumes = facts.plan.container.volumes
    wrong = [volume for volume in volumes if _leads_nowhere(Path(volume.partition(":")[0]))]
    for volume in wrong:
        source = Path(volume.partition(":")[0])
        target = next(each for each in (source, *source.parents) if each.is_symlink() and not each.exists())
        says = f"the volume {volume} leads nowhere: {target} is a link to {target.readlink()}"
        yield no(says, remedy=f"ls -ld {target}")
    if volumes and not wrong:
        made = [volume for volume in volumes if volume.startswith("/") and not Path(volume.partition(":")[0]).exists()]
        more = f"; Docker will make {len(made)} of them, empty" if made else ""
        yield yes(f"{len(volumes)} volumes can be mounted{more}", evidence=tuple(made))


def _leads_nowhere(source: Path) -> bool:
    if not source.is_absolute():
        return False  # a named volume
    return any(each.is_symlink() and not each.exists() for each in (source, *source.parents))


@check(
    "container.writable-layer",
    layer=Layer.CONTAINER,
    question="Is nothing of worth in the container's writable layer alone?",
    how="`docker diff`: scripts and caches that were added there",
    means="What lies there goes when the container is made anew; a unit that runs such a script then ends with 127 for ever.",
    remedy="docker cp it to the host, or mount a volume over it",
    sample="container vllm_ds4 holds the only copy of /workspace/vllm-head-090.sh",
    after=("docker.unreachable",),
)
def writable_layer(facts: Facts) -> Answers:
    state = container(facts)
    if state is None:
        return
    paths = added_files(facts)
    ours = {facts.plan.script_path, API_KEY_PATH}
    scripts, caches = worth_keeping(paths, ours)
    name = state.name
    if scripts:
        says = f"container {name} holds the only copy of {_some(scripts)}"
        yield doubtful(says, evidence=tuple(scripts[:SHOWN_MAX]), remedy=f"docker cp {name}:{scripts[0]} .")
    if caches:
        says = f"caches lie in the writable layer of container {name}: {_some(caches)}"
        yield doubtful(says, evidence=tuple(caches[:SHOWN_MAX]), remedy="mount a volume there: `volumes` of the recipe")
    if not scripts and not caches:
        yield yes(f"{len(paths)} paths were added in container {name}, no script or cache among them")


def worth_keeping(paths: tuple[str, ...], ours: set[str]) -> tuple[list[str], list[str]]:
    """Pure. (scripts that sparkd did not stage, directories of caches)."""
    scripts = [path for path in paths if path.endswith(".sh") and path not in ours and not NOBODYS.search(path)]
    caches: dict[str, None] = {}
    for path in paths:
        for cache in CACHES:
            before, found, after = path.partition(cache)
            # Only with something in it: an empty directory is what a mount point leaves.
            if found and "/" in after:
                caches[posixpath.normpath(before + cache + after.partition("/")[0])] = None
    return scripts, list(caches)


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


@check(
    "container.user",
    layer=Layer.CONTAINER,
    question="Does the container run as root, as the engine's scripts and caches expect?",
    how="Config.User of `docker inspect`",
    means="Another user can neither read a key of mode 0600 nor write caches that root made: Permission denied.",
    remedy="make the container anew from the plan, without --user",
    sample="container vllm_ds4 runs as user 1000",
    after=("docker.unreachable", "container.differs", "container.foreign"),
)
def user(facts: Facts) -> Answers:
    state = container(facts)
    if state is None:
        return
    if state.user.partition(":")[0] in ("", "0", "root"):
        yield yes(f"container {state.name} runs as root")
    else:
        yield doubtful(f"container {state.name} runs as user {state.user}")


@check(
    "container.memory-limit",
    layer=Layer.CONTAINER,
    question="May the container use the memory that the engine is told to take?",
    how="HostConfig.Memory of `docker inspect`",
    means="On unified memory the weights count: a limit kills the engine while it loads.",
    remedy="docker update --memory 0 --memory-swap 0 NAME, or make it anew from the plan",
    sample="container vllm_ds4 may use 64.0 GiB of memory, less than the engine takes",
    after=("docker.unreachable",),
)
def memory_limit(facts: Facts) -> Answers:
    state = container(facts)
    if state is None:
        return
    limit = int((state.raw.get("HostConfig") or {}).get("Memory") or 0)
    if limit:
        remedy = f"docker update --memory 0 --memory-swap 0 {state.name}"
        yield doubtful(f"container {state.name} may use {limit / 2**30:.1f} GiB of memory and no more", remedy=remedy)
    else:
        yield yes(f"container {state.name} has no memory limit")


def try_container(facts: Facts) -> ContainerState | None:
    """The container where it runs; None where it does not, or where Docker cannot be asked."""
    try:
        state = container(facts)
    except SparkdError:
        return None
    return state if state is not None and state.running and state.status == "running" else None
