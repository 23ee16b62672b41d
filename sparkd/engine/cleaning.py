"""Clean before a launch: prove ownership, end stale engines, clear leftovers, drop the page cache, measure what came back.

`survey` looks and changes nothing (it is `sparkd clean --dry-run`); `clean` acts on what the survey proved to be ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from sparkd.engine.container import ContainerState, Docker
from sparkd.host import clock, memory, ports, processes, shm
from sparkd.host.launch_file import last_launch
from sparkd.host.memory import GIB, MIB
from sparkd.host.run import run
from sparkd.model.cluster import DropCaches
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Cure, Finding, FindingError, Who, bad
from sparkd.model.plan import Plan

Trouble = TypeVar("Trouble")

TIDIED = ("processes", "segments", "cache")  # what `tidy` puts in order
STALE_GRACE_S = 15.0  # a headless worker needs 11 to 12 s to go by itself (FIELD.md 1.4)
PORTS_FREE_MAX_S = 5.0
MEMORY_SETTLES_MAX_S = 10.0  # what takes longer is waited for in backoff, not here


@dataclass(frozen=True)
class Survey:
    """What is lying about on this node. `stale` and `leftovers` are proven ours; `foreign` is only reported."""

    stale: tuple[tuple[processes.EngineProcess, str], ...]  # with the reason of ownership
    foreign: tuple[tuple[processes.EngineProcess, str], ...]  # with why it is left alone
    leftovers: tuple[shm.Segment, ...]
    taken: tuple[ports.Listener, ...]  # of the plan's ports

    def lines(self) -> list[str]:
        """For a person: what would be cleaned, what would be left alone, and why."""
        lines = [f"process {p.pid} {p.name}: stale, {why}" for p, why in self.stale]
        lines += [f"process {p.pid} {p.name}: left alone, {why}" for p, why in self.foreign]
        lines += [f"{s.path}: leftover of {s.bytes / MIB:.1f} MiB, nobody maps or opens it" for s in self.leftovers]
        owners = {p.pid for p, _ in self.stale}
        for listener in self.taken:
            if not owners.intersection(listener.pids):
                lines.append(f"port {listener.port}: held by {_holder(listener)}")
        return lines


def needed_ports(plan: Plan) -> tuple[int, ...]:
    """The ports that this rank's engine will bind: only the head binds fixed ones."""
    if not plan.is_head:
        return ()
    return (plan.api_port, plan.rendezvous_port) if plan.size > 1 else (plan.api_port,)


def survey(plan: Plan, docker: Docker, *, living_launch: str | None = None) -> Survey:
    """Look, and prove whose everything is. `living_launch` is the launch that is meant to live, if one is."""
    fixed = (plan.api_port, plan.rendezvous_port)
    listeners = ports.listeners(fixed)
    ours, boot = our_containers(plan, docker), clock.boot_id_short()
    found = processes.engine_processes()
    stale, others = processes.told_apart(
        found, living_launch=living_launch, container_ids=ours, our_ports=fixed, listeners=listeners, boot=boot
    )
    foreign = [(process, "nothing proves that it is ours") for process in others]
    living = {one.pid for one in found if living_launch is not None and one.launch_id == living_launch}
    leftovers = shm.leftovers(shm.segments())
    taken = [listener for listener in listeners if not living.intersection(listener.pids)]
    return Survey(tuple(stale), tuple(foreign), tuple(leftovers), tuple(taken))


def launch_by_unit(launch_file: Path, *, timeout_s: float = 10) -> str | None:
    """The launch whose unit is active, or may be: it is spared where systemd cannot be asked. For use without the daemon.

    Its file lies in /run, so it is of this boot and of the last launch, whatever became of the daemon's own state.
    """
    launch = last_launch(launch_file)
    if launch is None:
        return None
    try:
        state = run(["systemctl", "is-active", "sparkd-engine.service"], timeout_s=timeout_s).stdout.strip()
    except SparkdError:
        return launch
    return None if state in ("inactive", "failed") else launch


def our_containers(plan: Plan, docker: Docker) -> tuple[str, ...]:
    """The plan's container, where sparkd made it for this cluster: another one of that name is somebody's."""
    state = _ours(plan, docker)
    return (state.id,) if state is not None else ()


def thaw(plan: Plan, docker: Docker) -> tuple[str, ...]:
    """Unpauses our container: frozen processes take no signal, on cgroup v1 not even SIGKILL, and what is to end has to run.
    Returns what `our_containers` does."""
    state = _ours(plan, docker)
    if state is not None and state.status == "paused":
        docker.unpause(plan.container.name)
    return (state.id,) if state is not None else ()


def _ours(plan: Plan, docker: Docker) -> ContainerState | None:
    state = docker.inspect(plan.container.name)
    return state if state is not None and state.made_for(plan.cluster) else None


def clean(plan: Plan, docker: Docker, *, policy: DropCaches) -> str:
    """Returns what was done, in one sentence. Raises FindingError where the node is not fit for a launch."""
    thaw(plan, docker)
    found = survey(plan, docker)
    did = [_end_stale(found)]
    did += [f"process {process.pid} {process.name} left alone: {why}" for process, why in found.foreign]
    needed = _wait_ports_free(plan)
    if needed:
        did.append(f"ports {', '.join(map(str, needed))} proven free")
    removed = shm.remove(shm.leftovers(shm.segments()))
    freed = f" ({sum(segment.bytes for segment in removed) / GIB:.2f} GiB)" if removed else ""
    did.append(f"{len(removed) or 'no'} leftover segments{' removed' if removed else ''}{freed}")
    did.append(_drop(plan, policy))
    _wait_memory(plan)
    return "; ".join(did)


def _end_stale(found: Survey) -> str:
    if not found.stale:
        return "no stale engine processes"
    ended = processes.end([process for process, _ in found.stale], grace_s=STALE_GRACE_S)
    if ended.survivors:
        says = f"stale engine processes {_pids(ended.survivors)} survived SIGKILL (uninterruptible: driver or disk)"
        raise FindingError(bad("process.unkillable", says, cure=Cure.RELAUNCH, who=Who.HANDS, remedy="reboot the node"))
    names = ", ".join(sorted({process.name for process, _ in found.stale}))
    return f"{len(found.stale)} stale processes ended in {ended.seconds:.1f} s ({names})"


def _wait_ports_free(plan: Plan) -> tuple[int, ...]:
    """The ports that are free now. Raises FindingError naming who holds one of them."""
    needed = needed_ports(plan)
    taken = ports_taken(needed, within_s=PORTS_FREE_MAX_S)
    if not taken:
        return needed
    held = {listener.port: listener for listener in ports.listeners(taken)}
    who = "; ".join(f"port {p} by {_holder(held[p]) if p in held else 'a socket that does not listen'}" for p in taken)
    remedy = "; ".join(f"ss -ltnp 'sport = :{port}'" for port in taken)
    raise FindingError(bad("port.taken", f"held by someone else: {who}", cure=Cure.PERSON, remedy=remedy))


def ports_taken(needed: Iterable[int], *, within_s: float) -> list[int]:
    """Those that cannot be bound, now or within that time. One look alone may be wrong: the last lingering connection goes
    between two questions to the kernel, or another doctor tries a port in the same instant."""
    return _settle(lambda: [port for port in needed if not ports.can_bind(port)], within_s, every_s=0.2)


def _settle(trouble: Callable[[], Trouble], max_s: float, *, every_s: float) -> Trouble:
    """Ask until there is no trouble (an empty answer), for at most `max_s` seconds; returns the last answer."""
    retrying = Retrying(
        retry=retry_if_result(bool),
        stop=stop_after_delay(max_s),
        wait=wait_fixed(every_s),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    return retrying(trouble)


def _drop(plan: Plan, policy: DropCaches) -> str:
    now = memory.read_memory()
    short = now.free < memory_needed(plan, now)
    if policy is DropCaches.NEVER or (policy is DropCaches.WHEN_SHORT and not short):
        return f"page cache kept (policy {policy}): {now.free / GIB:.1f} GiB free"
    try:
        drop = memory.drop_page_cache()
    except SparkdError as error:
        if not short:
            return f"page cache not dropped ({error.message}), but {now.free / GIB:.1f} GiB are free"
        raise FindingError(bad("memory.page-cache", error.message, cure=Cure.PERSON, remedy=error.hint)) from error
    free = f"free {drop.before.free / GIB:.1f} -> {drop.after.free / GIB:.1f} GiB"
    return f"page cache dropped: {free} ({drop.gained_bytes / GIB:+.1f}) in {drop.seconds:.1f} s"


def memory_needed(plan: Plan, memory_now: memory.Memory) -> int:
    """Bytes that vLLM will ask for: its share of the unified memory, which must be *free* (FIELD.md 9)."""
    return int((plan.gpu_memory_utilization or 0.0) * memory_now.total)


def _wait_memory(plan: Plan) -> None:
    """Memory may come back some seconds after a crash. Longer than that is a finding, retried later."""
    short = _settle(lambda: _shortage(plan), MEMORY_SETTLES_MAX_S, every_s=1)
    if short is not None:
        raise FindingError(short)


def _shortage(plan: Plan) -> Finding | None:
    now = memory.read_memory()
    needed = memory_needed(plan, now)
    if now.free >= needed:
        return None
    says = (
        f"{now.free / GIB:.1f} GiB of {now.total / GIB:.1f} are free, "
        f"gpu-memory-utilization {plan.gpu_memory_utilization} needs {needed / GIB:.1f}"
    )
    cache, shared, available = now.cached / GIB, now.shmem / GIB, now.available / GIB
    evidence = f"page cache {cache:.1f} GiB, shared memory {shared:.1f} GiB, available {available:.1f} GiB"
    remedy = "see what holds it: `ps aux --sort=-rss | head`; lower gpu-memory-utilization; drop the page cache"
    return bad("memory.short", says, cure=Cure.RELAUNCH, evidence=(evidence,), remedy=remedy)


def _holder(listener: ports.Listener) -> str:
    if not listener.pids:
        return "an unknown process"
    return ", ".join(f"{name} (pid {pid})" for pid, name in zip(listener.pids, listener.names, strict=False))


def _pids(pids: tuple[int, ...]) -> str:
    return ", ".join(str(pid) for pid in pids)


def tidy(
    plan: Plan, docker: Docker, *, living_launch: str | None, dry_run: bool, only: Collection[str] = TIDIED
) -> list[str]:
    """`sparkd clean`: like the step before a launch, but beside an engine that may live, which is left alone with all it uses.

    `only` restricts it to some of TIDIED. The page cache is dropped only where no engine lives.
    """
    found = survey(plan, docker, living_launch=living_launch)
    if dry_run:
        return found.lines() or ["nothing to clean"]
    lines = found.lines() if set(only) == set(TIDIED) else []
    if "processes" in only and found.stale:
        ended = processes.end([process for process, _ in found.stale], grace_s=STALE_GRACE_S)
        lines.append(f"ended {len(ended.terminated)} stale processes in {ended.seconds:.1f} s")
        if ended.survivors:
            lines.append(f"processes {_pids(ended.survivors)} survived SIGKILL (uninterruptible: driver or disk)")
    if "segments" in only and (removed := shm.remove(shm.leftovers(shm.segments()))):
        freed_mib = sum(segment.bytes for segment in removed) / MIB
        lines.append(f"removed {len(removed)} leftover segments ({freed_mib:.1f} MiB)")
    if "cache" in only and living_launch is None:
        lines.append(_drop(plan, DropCaches.ALWAYS))
    return lines or ["nothing to clean"]
