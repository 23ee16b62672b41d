"""Layer driver: the GPU, its kernel driver, its clocks, and the kernel itself.

Asked only where the recipe wants a GPU. `nvidia-smi` runs once for everything; "[N/A]" is absent, not zero.
"""

from __future__ import annotations

from collections.abc import Iterable

from sparkd.doctor.check import Answers, cannot_tell, check, doubtful, no, yes
from sparkd.doctor.facts import DOOR_MAX_S, Facts, container, fact
from sparkd.host import gpu, thermal, vm, wall_clock
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Finding, Layer, Who

SMI_MAX_S = 2.0
BUSY = 90.0  # per cent of utilisation
LOW_CLOCK_MHZ = 950  # stuck ones were seen at 507, 702, 721 and 850; 2.2 to 2.5 GHz is healthy under load
LOW_POWER_W = 30.0  # healthy decoding takes 45 W on average
WARM_C, HOT_C = 85.0, 95.0  # GPUs were seen at 88 to 92 before the board cut the power
CRITICAL_MARGIN_C = 5.0
STALE_PROOF_FACTOR = 2  # canaries missed in a row before their silence says something
GROSSLY_S = 24 * 3600
SLOWED = {  # bits of NVML's clocksEventReasons that say that something holds the GPU back
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}

# Kernel releases that are known to break the pair, and how.
BAD_KERNELS = {
    "7.0.0-1019": "Kexec HandOver keeps 9 GiB of uncounted CMA: RDMA memory registration fails with ENOMEM under pressure",
}


# --- facts ----------------------------------------------------------------------------------------


@fact
def installed(facts: Facts) -> gpu.Installed:
    return gpu.installed()


@fact
def version(facts: Facts) -> str | None:
    """Of the driver that is loaded."""
    return gpu.driver_version()


@fact
def gpus(facts: Facts) -> tuple[gpu.Gpu, ...]:
    return tuple(gpu.ask_gpus(timeout_s=SMI_MAX_S))


@fact
def gpu_processes(facts: Facts) -> tuple[gpu.GpuProcess, ...]:
    """Who holds the GPU's memory. Not asked where the first question hung or failed: the second would as well."""
    gpus(facts)
    return tuple(gpu.ask_processes(timeout_s=SMI_MAX_S))


def wanted(facts: Facts) -> bool:
    """Whether the recipe wants a GPU; without one that could be read, what this machine has is looked at all the same."""
    return facts.cluster_plan is None or facts.rank is None or facts.plan.container.gpus is not None


@fact
def has_gpu(facts: Facts) -> bool:
    """Whether GPU questions apply: the recipe wants one, and this machine shows signs of one, driver or device."""
    return wanted(facts) and (version(facts) is not None or installed(facts).anything)


def busy(found: Iterable[gpu.Gpu]) -> list[gpu.Gpu]:
    return [one for one in found if one.utilisation is not None and one.utilisation >= BUSY]


# --- the driver -----------------------------------------------------------------------------------


@check(
    "driver.module-missing",
    layer=Layer.DRIVER,
    question="Is there a driver module for the kernel that runs?",
    how="/lib/modules/$(uname -r)/modules.dep, and those of the other kernels",
    means="A kernel update came without its NVIDIA module (linux-modules-nvidia-580-open-$(uname -r)), or DKMS failed to build "
    "it. There is no GPU until it is there.",
    remedy="apt install linux-modules-nvidia-580-open-$(uname -r), or boot the previous kernel (grub-reboot); then reboot",
    sample="6.17.0-1032-nvidia has no nvidia module, 6.17.0-1014-nvidia has",
)
def module_missing(facts: Facts) -> Answers:
    if not has_gpu(facts):
        return
    release, kernels = vm.kernel_release(), installed(facts).kernels
    others = [name for name, there in kernels.items() if there and name != release]
    if version(facts) is not None:
        yield yes(f"the module is loaded ({version(facts)})")
    elif kernels.get(release):
        yield yes(f"{release} has an nvidia module")
    elif others:
        remedy = f"apt install linux-modules-nvidia-580-open-{release}, or boot {others[-1]} (grub-reboot); then reboot"
        yield no(f"{release} has no nvidia module, {', '.join(others)} has", remedy=remedy)
    else:
        yield cannot_tell(f"no kernel under /lib/modules lists an nvidia module, nor {release}")


@check(
    "driver.not-loaded",
    layer=Layer.DRIVER,
    question="Is the NVIDIA driver loaded?",
    how="/sys/module/nvidia/version, /proc/driver/nvidia/version; NVIDIA devices under /sys/bus/pci",
    means="The container would not start, or would find no GPU.",
    remedy="modprobe nvidia; dmesg | grep -i nvrm; where the GPU is not on the bus: shut down, mains plug out for a minute",
    sample="the NVIDIA driver is not loaded, and the recipe asks for a GPU",
    after=("driver.module-missing",),
)
def not_loaded(facts: Facts) -> Answers:
    if not wanted(facts):
        return
    loaded, here = version(facts), installed(facts)
    if loaded is not None:
        yield yes(f"driver {loaded} is loaded")
    elif not here.anything:
        # Not bad: a recipe for GPUs is rehearsed on machines without one, and there Docker says what it cannot give.
        yield cannot_tell("this machine has neither an NVIDIA device nor anything of its driver")
    else:
        where = f"the GPU is at {', '.join(here.devices)}" if here.devices else "no NVIDIA GPU is on the PCI bus either"
        yield no("the NVIDIA driver is not loaded, and the recipe asks for a GPU", evidence=(where,))


@check(
    "driver.version-mismatch",
    layer=Layer.DRIVER,
    question="Are the driver's module and its libraries of one version?",
    how="/sys/module/nvidia/version against the file that libnvidia-ml.so.1 leads to",
    means="An upgrade replaced the libraries under the loaded module. nvidia-smi and every new container fail with "
    "`Driver/library version mismatch`; what runs already goes on.",
    remedy="reboot the node; to choose the time yourself: apt-mark hold the nvidia-driver and linux-nvidia packages",
    sample="the loaded module is 580.95.05, the libraries are 580.126.09",
    after=("driver.not-loaded",),
)
def version_mismatch(facts: Facts) -> Answers:
    loaded = version(facts)
    if not has_gpu(facts) or loaded is None:
        return
    library = installed(facts).library_version
    if library is None:
        yield cannot_tell("libnvidia-ml.so.1 is in none of the usual directories")
    elif library != loaded:
        yield no(f"the loaded module is {loaded}, the libraries are {library}")
    else:
        yield yes(f"module and libraries are {loaded}")


@check(
    "driver.next-kernel",
    layer=Layer.DRIVER,
    question="Will the next boot have a driver module?",
    how="/boot/vmlinuz and /lib/modules/RELEASE/modules.dep",
    means="The kernel that the next boot takes has no NVIDIA module: after a power cut the node comes back without its GPU.",
    remedy="apt install linux-modules-nvidia-580-open-RELEASE before the next reboot",
    sample="the next boot takes 6.17.0-1032-nvidia, which has no nvidia module",
    after=("driver.module-missing", "driver.not-loaded"),
)
def next_kernel(facts: Facts) -> Answers:
    here = installed(facts)
    release = here.next_kernel
    if not has_gpu(facts) or release is None or version(facts) is None or not any(here.kernels.values()):
        return
    if here.kernels.get(release):
        yield yes(f"the next boot takes {release}, which has an nvidia module")
    else:
        remedy = f"apt install linux-modules-nvidia-580-open-{release} before the next reboot"
        yield doubtful(f"the next boot takes {release}, which has no nvidia module", remedy=remedy)


@check(
    "driver.unresponsive",
    layer=Layer.DRIVER,
    question="Does the GPU answer?",
    how=f"one call of nvidia-smi, within {SMI_MAX_S:g} s",
    means="The driver or the GPU's firmware hangs, or has lost the GPU. Engines hang with it, and cannot be killed.",
    remedy="journalctl -k | grep -E 'NVRM|Xid'; reboot; if the GPU stays away: shut down, mains plug out for a minute",
    sample="nvidia-smi did not end within 2 s and was killed",
    who=Who.HANDS,
    after=("driver.module-missing", "driver.not-loaded", "driver.version-mismatch"),
)
def unresponsive(facts: Facts) -> Answers:
    if not has_gpu(facts) or version(facts) is None:
        return
    try:
        found = gpus(facts)
    except (gpu.SmiHungError, gpu.SmiFailedError) as error:
        yield no(error.message)
        return
    if not found:
        yield no("nvidia-smi shows no GPU")
    for one in found:
        yield yes(_described(one))


def _described(one: gpu.Gpu) -> str:
    parts = (
        (one.utilisation, "{:.0f} % busy"),
        (one.power_w, "{:.1f} W"),
        (one.clock_mhz, "{:.0f} MHz"),
        (one.temperature_c, "{:.0f} C"),
    )
    return f"{one.name}: " + (
        ", ".join(form.format(value) for value, form in parts if value is not None) or "no figures"
    )


@check(
    "driver.nvml-lost",
    layer=Layer.DRIVER,
    question="Does the container see the GPU as the host does?",
    how="`nvidia-smi -L` in the running container, while the host's answers",
    means="A `systemctl daemon-reload` takes the devices from running containers with some runtimes: `Failed to initialize NVML: "
    "Unknown Error`. What holds the GPU goes on, the next launch in this container fails.",
    remedy="docker restart the container; for good: nvidia-ctk system create-dev-char-symlinks, or cgroupfs as cgroup driver",
    sample="container vllm_ds4 has lost the GPU: Failed to initialize NVML: Unknown Error",
    after=("docker.unreachable", "driver.not-loaded", "driver.version-mismatch", "driver.unresponsive"),
)
def nvml_lost(facts: Facts) -> Answers:
    if not _asked(facts):
        return
    state = container(facts)
    if state is None or not state.running:
        return
    status, said = facts.docker.exec_run(state.name, ["nvidia-smi", "-L"], timeout_s=DOOR_MAX_S)
    yield judged_in_container(state.name, status, said)


def judged_in_container(name: str, status: int, said: str) -> Finding:
    """Pure. What `nvidia-smi -L` in the container came to."""
    lines = [line for line in said.splitlines() if line.strip()]
    if status in (126, 127):
        return cannot_tell(f"container {name} has no nvidia-smi to ask")
    if status == 0 and any(line.startswith("GPU ") for line in lines):
        return yes(f"container {name} sees {lines[0].partition(' (UUID')[0]}")
    return no(f"container {name} has lost the GPU: {lines[0] if lines else f'nvidia-smi ended with {status}'}")


# --- the GPU at work ------------------------------------------------------------------------------


@check(
    "driver.clock-low",
    layer=Layer.DRIVER,
    question="Does the GPU's clock rise under load?",
    how="nvidia-smi: utilisation, SM clock, power and the reasons for a low clock",
    means="The board is in a low-power state that it keeps over reboots: a USB-C negotiation that failed, or a latch after a "
    "crash. Everything works, two to ten times too slowly.",
    remedy="shut down, pull the mains plug of the power supply for 1 to 10 minutes, plug in the original 240 W adapter",
    sample="NVIDIA GB10 is 96 % busy at 702 MHz and 22.0 W, and names no reason",
    who=Who.HANDS,
    after=("driver.unresponsive",),
)
def clock_low(facts: Facts) -> Answers:
    if not _asked(facts):
        return
    for one in busy(gpus(facts)):
        if one.clock_mhz is None:
            yield cannot_tell(f"{one.name} does not tell its clock")
        elif one.clock_mhz <= LOW_CLOCK_MHZ and not held_back(one):
            power = f" and {one.power_w:.1f} W" if one.power_w is not None else ""
            yield no(
                f"{one.name} is {one.utilisation:.0f} % busy at {one.clock_mhz:.0f} MHz{power}, and names no reason"
            )
        else:
            yield yes(f"{one.name} is busy at {one.clock_mhz:.0f} MHz")


@check(
    "driver.throttled",
    layer=Layer.DRIVER,
    question="Does nothing hold the GPU back?",
    how="nvidia-smi: clocks_event_reasons.active",
    means="Heat or the power supply makes the GPU slower than it is.",
    remedy="free the air inlets, separate stacked units; nvidia-smi -lgc 0,2000 costs little speed and 10 C; check the adapter",
    sample="NVIDIA GB10 is held back: hardware thermal slowdown (91 C)",
    after=("driver.unresponsive",),
)
def throttled(facts: Facts) -> Answers:
    if not _asked(facts):
        return
    for one in gpus(facts):
        if one.reasons is None:
            yield cannot_tell(f"{one.name} does not tell what its clock depends on")
        elif why := held_back(one):
            warm = f" ({one.temperature_c:.0f} C)" if one.temperature_c is not None else ""
            yield doubtful(f"{one.name} is held back: {', '.join(why)}{warm}")
        else:
            yield yes(f"nothing holds {one.name} back")


def held_back(one: gpu.Gpu) -> list[str]:
    """Pure. Why its clock is lower than it could be, in words; empty where it names nothing that matters."""
    return [name for bit, name in SLOWED.items() if (one.reasons or 0) & bit]


@check(
    "driver.silent-spin",
    layer=Layer.DRIVER,
    question="Does a busy GPU do work?",
    how="nvidia-smi: 90 % busy at less than 30 W with a normal clock; the age of the daemon's last proof",
    means="Kernels wait for the other rank for ever: NCCL spins on a peer that is gone. /health says 200, and no token comes.",
    remedy="sparkd restart  (both ranks, together; one alone would meet the other's past)",
    sample="NVIDIA GB10 is 96 % busy at 17.3 W, and nothing has been answered for 240 s",
    after=("driver.unresponsive", "driver.clock-low"),
    symptom=True,
)
def silent_spin(facts: Facts) -> Answers:
    if not _asked(facts):
        return
    for one in busy(gpus(facts)):
        if one.power_w is None:
            yield cannot_tell(f"{one.name} does not tell its power")
        elif one.power_w >= LOW_POWER_W or (one.clock_mhz or 0) <= LOW_CLOCK_MHZ:
            yield yes(f"{one.name} is busy at {one.power_w:.1f} W")
        elif (age := unproven_s(facts)) is not None:
            yield no(f"{_spins(one)}, and nothing has been answered for {age:.0f} s")
        else:
            yield doubtful(f"{_spins(one)}; healthy decoding takes 45")


def _spins(one: gpu.Gpu) -> str:
    return f"{one.name} is {one.utilisation:.0f} % busy at {one.power_w:.1f} W"


def unproven_s(facts: Facts) -> float | None:
    """How long the served engine has answered nothing, where that is too long; None where it answers, or is not asked."""
    status = facts.status or {}
    age = status.get("proof_age_s")
    if status.get("phase") != "serving" or not isinstance(age, int | float):
        return None
    limits = facts.settings.limits if facts.settings is not None else None
    patience_s = STALE_PROOF_FACTOR * (limits.canary_interval_s + limits.canary_max_s if limits else 120.0)
    return float(age) if age > patience_s else None


@check(
    "driver.thermal",
    layer=Layer.DRIVER,
    question="Is the machine cool enough?",
    how="nvidia-smi: temperature.gpu; /sys/class/thermal/thermal_zone*/{temp,trip_point_*}",
    means="Near its critical temperature the board cuts the power, often without a line in any log.",
    remedy="stop the load; free the air inlets, separate stacked units, clean them; nvidia-smi -lgc 0,2000",
    sample="NVIDIA GB10 is at 96 C",
    who=Who.HANDS,
)
def thermal_(facts: Facts) -> Answers:
    if not has_gpu(facts):
        return
    try:
        found = list(gpus(facts)) if version(facts) is not None else []
    except SparkdError:
        found = []  # driver.unresponsive tells it; the zones can be read without the GPU
    zones = thermal.zones()
    wrong = [*too_warm(found), *too_hot(zones)]
    yield from wrong
    if not wrong:
        warmest = max(
            [one.now_c for one in zones] + [one.temperature_c for one in found if one.temperature_c], default=None
        )
        yield cannot_tell("nothing here tells a temperature") if warmest is None else yes(f"{warmest:.0f} C at most")


def too_warm(found: Iterable[gpu.Gpu]) -> list[Finding]:
    """Pure."""
    warm = [(one.name, one.temperature_c or 0) for one in found if (one.temperature_c or 0) >= WARM_C]
    return [(no if now_c >= HOT_C else doubtful)(f"{name} is at {now_c:.0f} C") for name, now_c in warm]


def too_hot(zones: Iterable[thermal.Zone]) -> list[Finding]:
    """Pure. Zones near the temperature at which the board cuts the power."""
    return [
        no(f"{one.name} ({one.kind}) is at {one.now_c:.0f} C, the board cuts the power at {one.critical_c:.0f}")
        for one in zones
        if one.critical_c is not None and one.now_c >= one.critical_c - CRITICAL_MARGIN_C
    ]


@check(
    "driver.persistence",
    layer=Layer.DRIVER,
    question="Does the driver stay initialised while nobody uses the GPU?",
    how="nvidia-smi: persistence_mode",
    means="Without it the driver sets the GPU up anew for each first user: slower starts, and a clock limit is lost.",
    remedy="systemctl enable --now nvidia-persistenced",
    sample="persistence mode is off on NVIDIA GB10",
    after=("driver.unresponsive",),
)
def persistence(facts: Facts) -> Answers:
    if not _asked(facts):
        return
    for one in gpus(facts):
        if one.persistent is None:
            yield cannot_tell(f"{one.name} does not tell its persistence mode")
        else:
            yield yes(f"on for {one.name}") if one.persistent else doubtful(f"persistence mode is off on {one.name}")


def _asked(facts: Facts) -> bool:
    """Whether nvidia-smi can be asked. Its failures are driver.unresponsive's news, and hide what needs its answer."""
    if not has_gpu(facts) or version(facts) is None:
        return False
    try:
        return bool(gpus(facts))
    except SparkdError:
        return False


# --- the machine ----------------------------------------------------------------------------------


@check(
    "driver.kernel",
    layer=Layer.DRIVER,
    question="Is the running kernel none of those that are known to break the pair?",
    how="uname -r and /proc/cmdline against a list of releases",
    means="Linux 7.0.0-1019 fails RDMA memory registration under pressure unless kho=off is on its command line.",
    remedy="apt install nvidia-spark-grub-kho and reboot both nodes, or boot a 6.17 kernel (grub-reboot)",
    sample="7.0.0-1019-nvidia is known for: Kexec HandOver keeps 9 GiB of uncounted CMA",
)
def kernel(facts: Facts) -> Answers:
    release = vm.kernel_release()
    why = next((why for bad, why in BAD_KERNELS.items() if release == bad or release.startswith(f"{bad}-")), None)
    if why is None:
        yield yes(f"{release} is not known to break anything")
    elif "kho=off" in vm.boot_options():
        yield yes(f"{release} runs with kho=off")
    else:
        yield doubtful(f"{release} is known for: {why}")


@check(
    "driver.wall-clock",
    layer=Layer.DRIVER,
    question="Is the time of day roughly right?",
    how="the clock against the newest file of what is installed; adjtimex(2): whether NTP sets it",
    means="Certificates seem invalid, and the logs of the two nodes cannot be laid side by side. sparkd itself does not mind.",
    remedy="timedatectl set-ntp true; timedatectl; where it comes back after each boot, the clock's battery is empty",
    sample="this node thinks that it is 1970-01-01, a day before its software was made",
)
def wall(facts: Facts) -> Answers:
    now, made = wall_clock.now(), wall_clock.not_before()
    if now < made - GROSSLY_S:
        yield doubtful(
            f"this node thinks that it is {wall_clock.date(now)}, and its software was made on {wall_clock.date(made)}"
        )
    else:
        set_by = {True: "NTP sets it", False: "no NTP sets it", None: "whether NTP sets it is not known"}
        yield yes(f"{wall_clock.date(now)}; {set_by[wall_clock.synchronised()]}")
