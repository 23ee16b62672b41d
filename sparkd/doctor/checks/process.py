"""Layer process: engine processes, whose they are and how they stand, and the ports that they need."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sparkd.doctor.check import Answers, Gate, cannot_tell, check, doubtful, no, yes
from sparkd.doctor.checks import commands, script
from sparkd.doctor.facts import Facts, container, engine_processes, fact, launch_id
from sparkd.engine import cleaning
from sparkd.host import clock, memory, ports, processes, usage
from sparkd.host.processes import EngineProcess, is_engine_proper
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Cure, Layer, Who
from sparkd.model.plan import Plan

MEMLOCK_MIN_BYTES = 8 << 30  # NCCL registers its buffers, and vLLM's weights where they are sent: gigabytes
SECOND_LOOK_S = 0.2  # before a port is said to be held
FILES_MIN = 4096  # vLLM raises its own limit as far as it may, to 65535; it takes a thousand in quiet times
FILES_USED_MAX = 0.8  # of its limit
ENDING = ("stopping", "clean")  # phases in which a launch's processes are on their way out
BETWEEN = ("backoff", "preflight")
SETTLED = ("loading", "proving", "serving")  # phases in which the engine's process must live


# --- facts ----------------------------------------------------------------------------------------


@fact
def listeners(facts: Facts) -> tuple[ports.Listener, ...]:
    """Who listens on the engine's ports."""
    return tuple(ports.listeners((facts.plan.api_port, facts.plan.rendezvous_port)))


@fact
def everybody(facts: Facts) -> tuple[usage.Usage, ...]:
    """Every process of the host with what it takes."""
    return tuple(usage.everybody())


@fact
def living(facts: Facts) -> tuple[EngineProcess, ...]:
    """The engine's own processes of the launch that is meant to live here."""
    launch = launch_id(facts)
    found = (one for one in engine_processes(facts) if is_engine_proper(one))
    return tuple(one for one in found if launch is not None and one.launch_id == launch)


@dataclass(frozen=True)
class Owned:
    """Engine processes that no living launch explains, each with the reason. `undecided`: who could tell gave no answer."""

    stale: tuple[tuple[EngineProcess, str], ...]
    foreign: tuple[EngineProcess, ...]
    undecided: tuple[EngineProcess, ...]


@fact
def owned(facts: Facts) -> Owned:
    """As the step before a launch judges them (engine/cleaning.py), but without Docker too, as far as that goes."""
    try:
        state = container(facts)
        ours = [state.id] if state is not None and state.made_for(facts.plan.cluster) else []
        asked = True
    except SparkdError:
        ours, asked = [], False
    fixed = (facts.plan.api_port, facts.plan.rendezvous_port)
    return judge(
        engine_processes(facts),
        launch=launch_id(facts),
        ours=ours,
        asked=asked,
        blind=not is_root(),
        fixed=fixed,
        held=listeners(facts),
        boot=clock.boot_id_short(),
    )


def judge(
    found: Iterable[EngineProcess],
    *,
    launch: str | None,
    ours: Collection[str],
    asked: bool,
    blind: bool,
    fixed: Collection[int],
    held: Sequence[ports.Listener],
    boot: str,
) -> Owned:
    """Pure. `asked`: Docker told which container is ours (`ours`, by id). `blind`: launch ids cannot be read."""
    stale, others = processes.told_apart(
        found, living_launch=launch, container_ids=ours, our_ports=fixed, listeners=held, boot=boot
    )
    undecided = tuple(one for one in others if blind or (one.container_id and not asked))
    return Owned(tuple(stale), tuple(one for one in others if one not in undecided), undecided)


def engine_here(facts: Facts) -> bool:
    """Whether an engine that is not provably somebody else's lives on this host: then its memory is meant to be full."""
    others = {one.pid for one in owned(facts).foreign} if facts.cluster_plan is not None else set()
    return any(is_engine_proper(one) and one.pid not in others for one in engine_processes(facts))


def is_root() -> bool:
    """Only root may read other users' environments and open files."""
    return os.geteuid() == 0


def _named(found: Iterable[EngineProcess]) -> str:
    return ", ".join(f"{one.name} (pid {one.pid})" for one in found)


# --- whose ----------------------------------------------------------------------------------------


@check(
    "process.stale",
    layer=Layer.PROCESS,
    question="Is every engine process of ours one of the launch that is meant to live?",
    how="/proc/*/{environ,cmdline,cgroup}: launch ids, our container, holders of our ports; the daemon's launch id",
    means="A process of an earlier launch survived. It holds memory and the rendezvous port, and may even still answer: the "
    "next launch ends with EADDRINUSE, or joins a rank of the past.",
    remedy="sparkd doctor --fix  (or `sparkd clean`: it ends what is proven ours, and waits until it is gone)",
    sample="VLLM::Worker_TP0 (pid 4711) is of no living launch: it holds our port 29501",
    who=Who.SPARKD,
    cure=Cure.RELAUNCH,
)
def stale(facts: Facts) -> Answers:
    found = owned(facts)
    if facts.calm or facts.phase in ENDING:
        return  # they are being ended this moment
    proper = [(one, why) for one, why in found.stale if is_engine_proper(one)]
    if proper:
        one, why = proper[0]
        more = f", and {len(proper) - 1} more" if len(proper) > 1 else ""
        evidence = tuple(f"process {each.pid} {each.name}: {reason}" for each, reason in found.stale)
        # Between two launches it is the trace of what happened, and the next one begins by ending it.
        answer = doubtful if facts.phase in BETWEEN else no
        found_it = answer(f"{one.name} (pid {one.pid}) is of no living launch: it {why}{more}", evidence=evidence)
        yield found_it.model_copy(update={"symptom": _is_badly_told(facts, {each.pid for each, _ in proper})})
        return
    if found.undecided and not is_root():
        yield cannot_tell(f"whose {_named(found.undecided)} is: only root may read it", remedy="sudo sparkd doctor")
    elif found.undecided:
        yield cannot_tell(f"whose {_named(found.undecided)} is: Docker does not tell which container is ours")
    else:
        alive = living(facts)
        yield yes(
            f"{len(alive)} engine processes, all of the living launch" if alive else "no engine process is left over"
        )


def _is_badly_told(facts: Facts, pids: Collection[int]) -> bool:
    """Somebody started it by hand or by a unit, with arguments that cannot work: then those are what is to be mended."""
    return any(
        script.flaws(command, facts.plan)
        for command in commands.living(facts)
        if command.pid in pids and command.launch_id is None
    )


@check(
    "process.foreign",
    layer=Layer.PROCESS,
    question="Is there no engine on this host that is somebody else's?",
    how="/proc: `vllm serve` and processes titled VLLM::*, without our launch id, container or ports",
    means="Another vLLM shares this machine's memory. sparkd never touches it; what it holds is missing for ours.",
    remedy="stop it if it is not wanted, or size both with --kv-cache-memory-bytes",
    sample="vllm serve (pid 812) is not ours: 41.3 GiB resident",
    after=("process.stale",),
)
def foreign(facts: Facts) -> Answers:
    found = owned(facts).foreign
    if not found:
        if not owned(facts).undecided:  # process.stale says that nobody can tell whose those are
            yield yes("no engine of somebody else's runs here")
        return
    sizes = {one.pid: one.rss_bytes for one in everybody(facts)}
    resident = sum(sizes.get(one.pid, 0) for one in found)
    evidence = tuple(
        f"process {one.pid} {one.name}: {sizes.get(one.pid, 0) / memory.GIB:.1f} GiB resident, "
        + (f"container {one.container_id[:12]}" if one.container_id else "in no container")
        for one in found
    )
    says = (
        f"{_named(found[:3])} {'is' if len(found) == 1 else 'are'} not ours: {resident / memory.GIB:.1f} GiB resident"
    )
    have = memory.read_memory()
    prevents = not engine_here(facts) and have.available < cleaning.memory_needed(facts.plan, have)
    remedy = f"look: ps -o pid,user,etime,args -p {found[0].pid}; stop it, or size both with --kv-cache-memory-bytes"
    yield (no if prevents else doubtful)(says, evidence=evidence, remedy=remedy)


# --- ports ----------------------------------------------------------------------------------------


@check(
    "port.conflict",
    layer=Layer.PROCESS,
    question="Do sparkd and the engine want different ports?",
    how="cluster.link.port against the plan's API and rendezvous ports",
    means="One of them could not listen.",
    remedy="change cluster.link.port",
    sample="sparkd and the engine both want port 8000",
    gate=Gate.HOST,
)
def conflict(facts: Facts) -> Answers:
    port = facts.configured.cluster.link.port
    if port in (facts.plan.api_port, facts.plan.rendezvous_port):
        yield no(f"sparkd and the engine both want port {port}")
        return
    held = listeners(facts)
    holders = ", ".join(f"{listener.port} by {'/'.join(listener.names) or 'unknown'}" for listener in held)
    yield yes(f"the engine's ports are {'held before cleaning: ' + holders if held else 'free'}")


@check(
    "port.taken",
    layer=Layer.PROCESS,
    question="Are the ports that this rank needs free, or held by its own engine?",
    how="binds them for a moment where no engine of ours should hold them; /proc/net/tcp and /proc/*/fd name the holder",
    means="The engine would end with EADDRINUSE, half a minute or ten minutes into its start.",
    remedy="ss -ltnp; stop the holder, or give the engine another port",
    sample="port 8000 is held by nginx (pid 812)",
    after=("process.stale", "port.conflict"),
)
def taken(facts: Facts) -> Answers:
    plan = facts.plan
    needed = cleaning.needed_ports(plan) if plan.container.network == "host" else ()
    if not needed or facts.calm or facts.phase in (*ENDING, "launching"):
        return
    alive = {one.pid for one in living(facts)}
    wrong = intruders(needed, listeners(facts), alive, owned(facts))
    if any(not one.pids for one in wrong) and not is_root():
        yield cannot_tell("who holds the engine's ports: only root may look", remedy="sudo sparkd doctor")
        return
    for listener in wrong:
        who = holder(listener)
        remedy = f"ss -ltnp 'sport = :{listener.port}'; stop it, or give the engine another port"
        yield no(f"port {listener.port} is held by {who}", remedy=remedy)
    known = {listener.port for listener in listeners(facts)}
    if not alive:
        unknown = [port for port in needed if port not in known]
        silent = cleaning.ports_taken(unknown, within_s=SECOND_LOOK_S)
        for port in silent:
            yield no(f"port {port} is held by a socket that does not listen", remedy=f"ss -anp 'sport = :{port}'")
        wrong += [ports.Listener(port, "", 0, (), ()) for port in silent]
    if not wrong:
        state = "held by the living engine" if alive and known else "free"
        yield yes(f"{'ports' if len(needed) > 1 else 'port'} {', '.join(map(str, needed))}: {state}")


def intruders(
    needed: Collection[int], held: Iterable[ports.Listener], alive: Collection[int], judged: Owned
) -> list[ports.Listener]:
    """Pure. Who listens on a port that this rank needs, and is neither the living engine nor a stale one of ours.

    With a living engine a holder that nobody may look into is taken for that engine.
    """
    explained = set(alive) | {one.pid for one, _ in judged.stale}
    return [
        one
        for one in held
        if one.port in needed and not explained.intersection(one.pids) and not (alive and not one.pids)
    ]


def holder(listener: ports.Listener) -> str:
    pairs = zip(listener.pids, listener.names, strict=False)
    return ", ".join(f"{name} (pid {pid})" for pid, name in pairs) or "a process that cannot be named"


# --- how they stand -------------------------------------------------------------------------------


@check(
    "process.unkillable",
    layer=Layer.PROCESS,
    question="Does every engine process that was killed also go?",
    how="/proc/PID/status of engine processes: state D with SIGKILL pending",
    means="The process hangs in the kernel, in the GPU's driver or on a disk. No signal reaches it; its memory and ports stay "
    "taken.",
    remedy="reboot the node; if it does not go down within minutes, hold the power button",
    sample="VLLM::Worker_TP (pid 4711) was sent SIGKILL and hangs in the kernel",
    who=Who.HANDS,
    cure=Cure.RELAUNCH,
)
def unkillable(facts: Facts) -> Answers:
    engines = engine_usage(facts)
    hung = [one for one in engines if one.state == "D" and one.kill_pending]
    for one in hung:
        yield no(f"{one.comm} (pid {one.pid}) was sent SIGKILL and hangs in the kernel", evidence=(_where(one.pid),))
    if not hung:
        yield yes(
            f"none of {len(engines)} engine processes hangs against SIGKILL" if engines else "no engine process hangs"
        )


@check(
    "process.zombies",
    layer=Layer.PROCESS,
    question="Are dead engine processes collected by their parents?",
    how="/proc/PID/status: state Z of processes called VLLM::*, and who their parent is",
    means="The container has no init that reaps: a stop takes ten seconds, and whoever counts processes by name sees an engine "
    "that is dead.",
    remedy="make the container with an init (`init: true` in the recipe, docker run --init)",
    sample="3 dead VLLM::Worker_TP are kept by sleep (pid 211), which does not reap",
)
def zombies(facts: Facts) -> Answers:
    by_pid = {one.pid: one for one in everybody(facts)}
    dead = uncollected(by_pid.values())
    if not dead:
        yield yes("no dead engine process is left uncollected")
        return
    parent = by_pid.get(dead[0].ppid)
    kept = f"{parent.comm} (pid {parent.pid})" if parent else f"process {dead[0].ppid}"
    yield doubtful(f"{len(dead)} dead {dead[0].comm} are kept by {kept}, which does not reap")


def uncollected(everyone: Iterable[usage.Usage]) -> list[usage.Usage]:
    """Pure. Dead engine processes whose parent is no engine: an engine's own are collected within a moment."""
    known = {one.pid: one for one in everyone}
    return [
        one
        for one in known.values()
        if one.state == "Z"
        and one.comm.startswith("VLLM::")
        and (parent := known.get(one.ppid)) is not None
        and parent.comm in ("sleep", "bash", "sh", "tail", "cat")
    ]


@fact
def engine_usage(facts: Facts) -> tuple[usage.Usage, ...]:
    """What engine processes take, by pid where they are known and by name where their command line is gone already."""
    known = {one.pid for one in engine_processes(facts) if is_engine_proper(one)}
    return tuple(one for one in everybody(facts) if one.pid in known or one.comm.startswith("VLLM::"))


def _where(pid: int) -> str:
    try:
        return f"/proc/{pid}/wchan: {usage.waits_in(pid)}"
    except OSError:
        return f"/proc/{pid}/wchan cannot be read"


# --- what it may ----------------------------------------------------------------------------------


def _sample_pid(facts: Facts) -> tuple[int, str] | None:
    """A process that has the engine's limits: a living rank, else the container's first process."""
    alive = [one for one in living(facts) if one.container_id] or list(living(facts))
    if alive:
        return alive[-1].pid, f"{alive[-1].name} (pid {alive[-1].pid})"
    state = container(facts)
    return (state.pid, f"container {state.name}") if state is not None and state.running and state.pid else None


def uses_rdma(plan: Plan) -> bool:
    """Whether the ranks talk by RDMA: the recipe does not switch it off, and there is a GPU to talk for."""
    disabled = plan.environment.get("NCCL_IB_DISABLE", "0") == "1"
    return plan.size > 1 and plan.container.gpus is not None and not disabled


@check(
    "process.memlock",
    layer=Layer.PROCESS,
    question="May the engine lock as much memory as RDMA needs?",
    how="/proc/PID/{limits,status}: Max locked memory, and CAP_IPC_LOCK, with which the limit does not bind",
    means="Registering memory with the RoCE card fails with `Cannot allocate memory`, and NCCL falls back to TCP or dies.",
    remedy="docker run --ulimit memlock=-1 (or privileged: true in the recipe), and make the container anew",
    sample="container vllm_ds4 may lock 8 MiB of memory, RDMA needs gigabytes",
    after=("docker.unreachable",),
)
def memlock(facts: Facts) -> Answers:
    if not uses_rdma(facts.plan) or (sample := _sample_pid(facts)) is None:
        return
    pid, name = sample
    about = usage.usage(pid)
    soft, _ = usage.limits(pid).get("Max locked memory", (None, None))
    if soft is None or soft >= MEMLOCK_MIN_BYTES or (about is not None and about.may_lock):
        yield yes(f"{name} may lock {'any amount of' if soft is None or (about and about.may_lock) else soft} memory")
    else:
        yield no(f"{name} may lock {soft / 2**20:.0f} MiB of memory, RDMA needs gigabytes")


@check(
    "process.files",
    layer=Layer.PROCESS,
    question="May the engine open enough files?",
    how="/proc/PID/limits: Max open files, and how many /proc/PID/fd holds",
    means="Every request and every connection between the ranks is a descriptor; at the limit the endpoint refuses with "
    "`Too many open files`.",
    remedy="docker run --ulimit nofile=1048576:1048576, or LimitNOFILE= of docker.service; make the container anew",
    sample="container vllm_ds4 may open 1024 files, vLLM would take 65535",
    after=("docker.unreachable",),
)
def files(facts: Facts) -> Answers:
    if (sample := _sample_pid(facts)) is None:
        return
    _, name = sample
    _, hard = usage.limits(sample[0]).get("Max open files", (None, None))
    for one in living(facts):
        used, (soft, _) = usage.open_files(one.pid), usage.limits(one.pid).get("Max open files", (None, None))
        if soft is not None and used > FILES_USED_MAX * soft:
            yield no(f"{one.name} (pid {one.pid}) has {used} files open of {soft} that it may")
            return
    if hard is not None and hard < FILES_MIN:
        yield doubtful(f"{name} may open {hard} files, vLLM would take 65535")
    else:
        yield yes(f"{name} may open {'any number of' if hard is None else hard} files")
