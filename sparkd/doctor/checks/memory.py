"""Layer host-memory: on a GB10 the host's memory is the GPU's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from sparkd.doctor.check import Answers, cannot_tell, check, doubtful, no, yes
from sparkd.doctor.checks import driver, process
from sparkd.doctor.facts import Facts, container, engine_processes, fact
from sparkd.engine.cleaning import memory_needed
from sparkd.engine.spec import ContainerState
from sparkd.host import gpu, killers, memory, pressure, usage, vm
from sparkd.host.memory import GIB, MIB, Memory
from sparkd.model.cluster import DropCaches
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Cure, Finding, Layer, Who

LOW_BYTES = int(2.5 * GIB)  # a healthy head has 4 GiB available under load
CRITICAL_BYTES = GIB
PRESSED = 1.0  # per cent of the time in which every process waits for memory
SWAPPED_MIN_BYTES = 10 * MIB
LARGE_MIN_BYTES = GIB  # free in blocks of 2 MiB
UNACCOUNTED_MAX_BYTES = 8 * GIB  # the driver of an idle GPU holds a few hundred MiB
COTENANT_MIN_BYTES = 8 * GIB  # resident, for a process that is no engine
GPU_COTENANT_MIN_BYTES = GIB  # of GPU memory: a desktop takes less
DAEMON_MAX_BYTES = GIB
OVERHEAD_BYTES = 8 * GIB  # what the system and the API server take beside the GPU's share: 4 GiB are left of 12 at 0.90

# What people found grown on their Sparks, and what could grow alike. An engine's own processes are none of them.
DAEMONS = frozenset(
    (
        *("polkitd", "wireplumber", "pipewire", "pipewire-pulse", "bluetoothd", "dbus-daemon"),
        *("gnome-shell", "Xorg", "gdm3", "systemd-logind", "systemd-journal", "systemd-resolve"),
        *("NetworkManager", "ModemManager", "snapd", "packagekitd", "fwupd", "tracker-miner-f"),
        *("cupsd", "udisksd", "dockerd", "containerd", "nvidia-persiste", "node_exporter"),
        *("dcgm-exporter", "netdata"),
    )
)


# --- facts ----------------------------------------------------------------------------------------


@fact
def now(facts: Facts) -> Memory:
    return memory.read_memory()


def _consumers(facts: Facts, count: int = 4) -> tuple[str, ...]:
    """Who holds most of it, for the evidence."""
    heaviest = usage.largest(process.everybody(facts), count=count)
    return tuple(f"{one.comm} (pid {one.pid}): {one.rss_bytes / GIB:.1f} GiB resident" for one in heaviest)


def _gib(amount: int) -> str:
    return f"{amount / GIB:.1f} GiB"


# --- enough for a launch --------------------------------------------------------------------------


@fact
def kernel_counters(facts: Facts) -> dict[str, int]:
    return vm.counters()


@check(
    "memory.short",
    layer=Layer.MEMORY,
    question="Is there as much memory as gpu_memory_utilization will ask for?",
    how="/proc/meminfo: MemAvailable against gpu_memory_utilization x MemTotal, while no engine lives",
    means="Somebody holds memory that no page cache drop gives back: another program, an engine that is left, or the driver for "
    "some minutes after a crash. The start ends with `Free memory on device ... is less than desired`.",
    remedy="see what holds it: ps aux --sort=-rss | head; stop it, or lower gpu-memory-utilization",
    sample="31.2 GiB of 119.7 can be had, gpu-memory-utilization 0.9 needs 107.7",
    cure=Cure.RELAUNCH,
    after=("process.stale", "process.foreign", "memory.cotenant", "memory.not-returned"),
)
def short(facts: Facts) -> Answers:
    have, needed, share = now(facts), memory_needed(facts.plan, now(facts)), facts.plan.gpu_memory_utilization
    if process.engine_here(facts) or facts.phase in process.ENDING or not needed:
        return  # it has what it asked for, or is giving it back
    if have.available >= needed:
        yield yes(f"{_gib(have.available)} of {_gib(have.total)} can be had, the engine will ask for {_gib(needed)}")
        return
    says = f"{_gib(have.available)} of {have.total / GIB:.1f} can be had, "
    says += f"gpu-memory-utilization {share} needs {needed / GIB:.1f}"
    yield _missing(facts)(says, evidence=(f"shared memory {_gib(have.shmem)}", *_consumers(facts)))


def _missing(facts: Facts) -> Callable[..., Finding]:
    """Between two launches memory may still be on its way back: bad only where sparkd itself has waited for it in vain."""
    waited_for = ((facts.status or {}).get("waiting") or {}).get("id")
    return doubtful if facts.phase in process.BETWEEN and waited_for != "memory.short" else no


@check(
    "memory.page-cache",
    layer=Layer.MEMORY,
    question="Is memory free that the engine will ask for, and not full of cached files?",
    how="/proc/meminfo: MemFree and MemAvailable against gpu_memory_utilization x MemTotal, while no engine lives",
    means="CUDA's free memory is the kernel's MemFree in many builds, so cached weights count as used, although the kernel would "
    "give them back at once. sparkd drops the cache before each launch unless `drop_caches: never` forbids it.",
    remedy="sparkd doctor --fix  (sync; echo 3 > /proc/sys/vm/drop_caches)",
    sample="4.8 GiB of 119.7 are free, 104.2 GiB are page cache; gpu-memory-utilization 0.9 needs 107.7",
    who=Who.SPARKD,
    cure=Cure.RELAUNCH,
    after=("memory.short",),
)
def page_cache(facts: Facts) -> Answers:
    have, needed = now(facts), memory_needed(facts.plan, now(facts))
    if process.engine_here(facts) or not needed or have.available < needed:
        return
    if have.free >= needed:
        yield yes(f"{_gib(have.free)} are free, the engine will ask for {_gib(needed)}")
        return
    says = f"{have.free / GIB:.1f} GiB of {have.total / GIB:.1f} are free, {_gib(have.cached - have.shmem)} are page cache; "
    says += f"gpu-memory-utilization {facts.plan.gpu_memory_utilization} needs {needed / GIB:.1f}"
    settings = facts.settings
    drops = facts.status is not None and settings is not None and settings.drop_caches is not DropCaches.NEVER
    yield doubtful(f"{says}; sparkd will drop it before a launch") if drops else no(says)


@check(
    "memory.not-returned",
    layer=Layer.MEMORY,
    question="Has the driver given the memory of dead engines back?",
    how="/proc/meminfo: MemTotal less everything that has an owner, while no process holds the GPU",
    means="After some crashes the driver needs one to four minutes; after some it keeps 33 to 100 GiB until the machine boots.",
    remedy="wait five minutes and look again; then remove the container (docker rm -f); then reboot the node",
    sample="61.3 GiB belong to nobody: no process, no cache, no shared memory",
    who=Who.HANDS,
    cure=Cure.RELAUNCH,
    after=("process.stale", "process.unkillable", "memory.cotenant"),
)
def not_returned(facts: Facts) -> Answers:
    if not driver.has_gpu(facts) or process.engine_here(facts) or facts.phase in process.ENDING:
        return
    lost = vm.unaccounted_bytes(vm.meminfo())
    try:
        users = driver.gpu_processes(facts)
    except SparkdError:
        users = ()  # what holds it, if anything does, is then seen by nobody
    if lost > UNACCOUNTED_MAX_BYTES and not users:
        says = f"{_gib(lost)} belong to nobody: no process, no cache, no shared memory"
        yield _missing(facts)(says, evidence=(f"{_gib(now(facts).available)} can be had",))
    else:
        yield yes(f"{_gib(lost)} are the driver's and the kernel's own")


@check(
    "memory.fragmentation",
    layer=Layer.MEMORY,
    question="Does free memory lie in blocks that are large enough for the driver?",
    how="/proc/buddyinfo: blocks of 2 MiB and more, while no engine lives",
    means="NVIDIA's driver asks for blocks of 2 MiB, and does not make the kernel move pages for them: an allocation fails "
    "although gigabytes are free.",
    remedy="sync; echo 3 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/compact_memory",
    sample="0.4 GiB of 31.0 free lie in blocks of 2 MiB or more",
    after=("memory.short", "memory.page-cache"),
)
def fragmentation(facts: Facts) -> Answers:
    if not driver.has_gpu(facts) or process.engine_here(facts):
        return
    free, large = now(facts).free, vm.large_free_bytes()
    says = f"{large / GIB:.1f} GiB of {free / GIB:.1f} free lie in blocks of 2 MiB or more"
    yield doubtful(says) if free > 4 * GIB and large < LARGE_MIN_BYTES else yes(says)


# --- while it serves ------------------------------------------------------------------------------


@check(
    "memory.low-available",
    layer=Layer.MEMORY,
    question="Is there memory to spare, so that nothing waits for it?",
    how="/proc/pressure/memory (full avg10) with /proc/meminfo (MemAvailable)",
    means="Every process of the node waits for memory at times. The next step is a wedged machine: ping answers, ssh does not.",
    remedy="stop what is not the engine's; lower gpu-memory-utilization at the next launch; keep 16 GiB of swap",
    sample="1.9 GiB can be had, and all processes wait for memory 7.4 % of the time",
)
def low_available(facts: Facts) -> Answers:
    have, felt = now(facts), pressure.memory_pressure()
    waits = f"all processes wait for memory {felt.full_10s:.1f} % of the time"
    if have.available >= LOW_BYTES or felt.full_10s < PRESSED:
        yield yes(f"{_gib(have.available)} can be had, {waits}")
        return
    worse = no if have.available < CRITICAL_BYTES else doubtful
    yield worse(f"{_gib(have.available)} can be had, and {waits}", evidence=_consumers(facts))


@check(
    "memory.swapped-engine",
    layer=Layer.MEMORY,
    question="Are the engine's processes wholly in memory?",
    how="/proc/PID/status of engine processes: VmSwap",
    means="Pages that a past shortage swapped out stay there. A long prompt that touches them can lock the driver up.",
    remedy="with the engine stopped on both nodes: swapoff -a && swapon -a; keep the swap itself",
    sample="VLLM::Worker_TP (pid 4711) has 3.4 GiB in swap",
)
def swapped_engine(facts: Facts) -> Answers:
    engines = process.engine_usage(facts)
    out = sorted((one for one in engines if one.swap_bytes >= SWAPPED_MIN_BYTES), key=lambda one: -one.swap_bytes)
    if out:
        evidence = tuple(f"{one.comm} (pid {one.pid}): {one.swap_bytes / MIB:.0f} MiB" for one in out)
        yield doubtful(f"{out[0].comm} (pid {out[0].pid}) has {_gib(out[0].swap_bytes)} in swap", evidence=evidence)
    elif engines:
        yield yes(f"nothing of {len(engines)} engine processes is in swap")


@check(
    "memory.no-swap",
    layer=Layer.MEMORY,
    question="Has the node swap, for what is not the engine's?",
    how="/proc/meminfo: SwapTotal, on a node with a GPU",
    means="Serving leaves 4 GiB of 120. Without swap a moment's need of any other program ends a rank.",
    remedy="fallocate -l 16G /swap.img; chmod 600 /swap.img; mkswap /swap.img; swapon /swap.img; and a line in /etc/fstab",
    sample="this node has no swap",
)
def no_swap(facts: Facts) -> Answers:
    if not driver.has_gpu(facts):
        return
    have = now(facts)
    yield yes(f"{_gib(have.swap_total)} of swap") if have.swap_total else doubtful("this node has no swap")


# --- the kernel -----------------------------------------------------------------------------------


@check(
    "memory.cma",
    layer=Layer.MEMORY,
    question="Does the kernel count its contiguous memory right, so that RDMA can pin memory?",
    how="/proc/meminfo: CmaFree against CmaTotal; uname -r; kho=off in /proc/cmdline",
    means="Linux 7.0.0-1019 keeps 9 GiB of Kexec HandOver pages as uncounted CMA. Memory that RDMA pins must move off them, and "
    "fails with ENOMEM under pressure, so NCCL dies; a bandwidth test looks healthy.",
    remedy="apt install nvidia-spark-grub-kho (adds kho=off) and reboot both nodes, or boot a 6.17 kernel (grub-reboot)",
    sample="CmaFree (309.8 MiB) is above CmaTotal (0.0 MiB) on 7.0.0-1019-nvidia, without kho=off",
)
def cma(facts: Facts) -> Answers:
    have = now(facts)
    if have.cma_total is None or have.cma_free is None or not driver.has_gpu(facts):
        return
    if facts.cluster_plan is not None and not process.uses_rdma(facts.plan):
        return
    release = vm.kernel_release()
    says = f"CmaFree ({have.cma_free / MIB:.1f} MiB) is above CmaTotal ({have.cma_total / MIB:.1f} MiB) on {release}"
    if have.cma_free <= have.cma_total:
        yield yes(f"CMA: {have.cma_free / MIB:.1f} of {have.cma_total / MIB:.1f} MiB free")
    elif "kho=off" in vm.boot_options():
        yield doubtful(f"{says}, although kho=off is set")
    elif release.startswith("7.0.") and not process.living(facts):
        yield no(f"{says}, without kho=off")
    else:
        yield doubtful(f"{says}, without kho=off")


@check(
    "memory.oom-kills",
    layer=Layer.MEMORY,
    question="Has the kernel killed nothing for want of memory?",
    how="memory.events of the container's control group; /proc/vmstat: oom_kill, since boot",
    means="A process of the engine's container, or of the host, was killed. Exit status 137 alone would be no proof; this is.",
    remedy="journalctl -k | grep -i 'out of memory'; lower gpu-memory-utilization (0.80 to 0.85), or stop what runs beside it",
    sample="the kernel has killed 2 processes of container vllm_ds4 for want of memory",
    after=("docker.unreachable",),
)
def oom_kills(facts: Facts) -> Answers:
    total = kernel_counters(facts).get("oom_kill")
    state = container(facts)
    group = pressure.memory_group(state.pid) if state is not None and state.running and state.pid else None
    name = facts.plan.container.name
    if group is not None and group.oom_kills:
        says = f"the kernel has killed {_processes(group.oom_kills)} of container {name} for want of memory"
        # one that a proven launch has followed is history
        yield (doubtful if _serving(facts) else no)(says, evidence=(str(group.path),))
    elif total and driver.has_gpu(facts) and not _serving(facts):
        yield doubtful(f"the kernel has killed {_processes(total)} of this host for want of memory since it booted")
    elif total is None:
        yield cannot_tell("this kernel does not count its kills (/proc/vmstat has no oom_kill)")
    else:
        yield yes(f"{total} kills for want of memory since boot" + (f", none in container {name}" if group else ""))


def _processes(count: int) -> str:
    return f"{count} process{'' if count == 1 else 'es'}"


def _serving(facts: Facts) -> bool:
    return bool(facts.status and facts.status.get("serving"))


@check(
    "memory.limit",
    layer=Layer.MEMORY,
    question="May the engine's container take all the memory that the engine will ask for?",
    how="HostConfig.Memory of the container; the limit of its control group",
    means="The kernel kills a rank at the limit, with gigabytes of the host free (CONSTRAINT_MEMCG in the kernel log).",
    remedy="docker update --memory 0 --memory-swap 0 the container, or make it anew without --memory",
    sample="container vllm_ds4 may take 64.0 GiB, the engine will ask for 107.7",
    after=("docker.unreachable",),
)
def limit(facts: Facts) -> Answers:
    state = container(facts)
    if state is None:
        return
    most = lowest_limit(state, _group_limit(state))
    if most is None:
        yield yes(f"container {state.name} has no limit of memory")
        return
    needed = memory_needed(facts.plan, now(facts))
    says = f"container {state.name} may take {_gib(most)}, the engine will ask for {needed / GIB:.1f}"
    yield no(says) if most < needed else doubtful(f"{says}, and more beside the GPU's share")


def lowest_limit(state: ContainerState, of_group: int | None) -> int | None:
    """Pure. Bytes; None without a limit."""
    own = int((state.raw.get("HostConfig") or {}).get("Memory") or 0)
    return min((one for one in (own or None, of_group) if one is not None), default=None)


def _group_limit(state: ContainerState) -> int | None:
    try:
        return pressure.memory_group(state.pid).limit_bytes if state.running and state.pid else None
    except SparkdError:
        return None


# --- who else -------------------------------------------------------------------------------------


@check(
    "memory.cotenant",
    layer=Layer.MEMORY,
    question="Does nobody else hold much of the memory that the engine shares with the host?",
    how="nvidia-smi --query-compute-apps and /proc/*/status, without the engine's processes",
    means="gpu_memory_utilization is a share of all memory, not of what others leave. With Ollama, ComfyUI or a second model "
    "resident the start fails, or the machine swaps.",
    remedy="stop or unload it, or size both with --kv-cache-memory-bytes",
    sample="ollama (pid 812) holds 24.1 GiB of the GPU's memory",
)
def cotenant(facts: Facts) -> Answers:
    engines = {one.pid for one in engine_processes(facts)}
    try:
        on_gpu = driver.gpu_processes(facts) if driver.has_gpu(facts) else ()
    except SparkdError:
        on_gpu = ()  # what nvidia-smi cannot say is asked by driver.unresponsive
    found = cotenants(on_gpu, process.everybody(facts), engines)
    if not found:
        yield yes("nobody but the engine holds much memory")
        return
    needed, have = memory_needed(facts.plan, now(facts)), now(facts)
    prevents = bool(needed) and have.available < needed and not process.engine_here(facts)
    yield (no if prevents else doubtful)(found[0], evidence=tuple(found))


def cotenants(on_gpu: Iterable[gpu.GpuProcess], everyone: Iterable[usage.Usage], engines: Collection[int]) -> list[str]:
    """Pure. A sentence for each process that is no engine's and holds much, the heaviest first."""
    heavy: dict[int, tuple[int, str]] = {}
    for one in everyone:
        if one.pid not in engines and not one.comm.startswith("VLLM::") and one.rss_bytes >= COTENANT_MIN_BYTES:
            heavy[one.pid] = (one.rss_bytes, f"{one.comm} (pid {one.pid}) holds {_gib(one.rss_bytes)} of memory")
    for each in on_gpu:
        if each.pid not in engines and "VLLM::" not in each.name and (each.used_bytes or 0) >= GPU_COTENANT_MIN_BYTES:
            used, name = each.used_bytes or 0, each.name.rpartition("/")[2]
            heavy[each.pid] = (used, f"{name} (pid {each.pid}) holds {_gib(used)} of the GPU's memory")
    return [says for _, says in sorted(heavy.values(), key=lambda pair: -pair[0])]


@check(
    "memory.leaking-daemon",
    layer=Layer.MEMORY,
    question="Has no daemon of the host grown beyond reason?",
    how="/proc/*/status: VmRSS of polkitd, wireplumber, gnome-shell, dockerd and their like",
    means="The engine leaves 4 GiB; a daemon that leaks takes them in days. polkitd grew to 3.4 GiB because a monitor opened an "
    "ssh session for each figure.",
    remedy="systemctl restart the daemon; let monitors share one ssh connection (ControlMaster); boot without a desktop",
    sample="polkitd (pid 812) has grown to 3.4 GiB",
)
def leaking_daemon(facts: Facts) -> Answers:
    grown = sorted(
        (one for one in process.everybody(facts) if one.comm in DAEMONS and one.rss_bytes >= DAEMON_MAX_BYTES),
        key=lambda one: -one.rss_bytes,
    )
    for one in grown:
        yield doubtful(f"{one.comm} (pid {one.pid}) has grown to {_gib(one.rss_bytes)}")
    if not grown:
        yield yes("no daemon of the host holds a GiB")


@check(
    "memory.killers",
    layer=Layer.MEMORY,
    question="Will nothing but the kernel end the engine when memory runs short?",
    how="/proc: earlyoom (with its -m, -M, -s, -S), systemd-oomd, nohang, dgx-anti-oom",
    means="Serving leaves 1.5 to 4 GiB by design. A killer whose floor is above that ends the engine as soon as it is ready; two "
    "killers beside each other end more than one would.",
    remedy="keep one: systemctl disable --now the others; its floor below what serving leaves (earlyoom -M 1048576)",
    sample="earlyoom (pid 812) strikes below 12.0 GiB, and serving will leave about 4.0",
)
def memory_killers(facts: Facts) -> Answers:
    have, share = now(facts), facts.plan.gpu_memory_utilization or 0.0
    found = killers.killers(have)
    names = ", ".join(f"{one.name} (pid {one.pid})" for one in found)
    leaves = have.available if process.living(facts) else int(max(0.0, (1 - share) * have.total - OVERHEAD_BYTES))
    if not driver.has_gpu(facts):
        leaves = have.available  # what an engine without a GPU takes is its own matter
    striking = [one for one in found if (floor := one.strikes_at(have)) is not None and floor >= leaves]
    if striking:
        one = striking[0]
        says = f"{one.name} (pid {one.pid}) strikes below {_gib(one.floor_bytes or 0)}, and serving "
        yield doubtful(says + f"{'leaves' if process.living(facts) else 'will leave about'} {leaves / GIB:.1f}")
    elif len(found) > 1:
        yield doubtful(f"{len(found)} programs that kill for memory run beside each other: {names}")
    else:
        yield yes(f"one killer: {names}" if found else "no program kills for memory but the kernel")
