"""The part of a boundary that lies in files of the host: driver, kernel, host, sysctls, link. No subprocess, no daemon.

Every function takes the root of the file system, so that a test can give it another tree.
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from sparkd.host import link as links
from sparkd.host.files import text
from sparkd.host.gpu import driver_version
from sparkd.model.redact import redact

ROOT = Path("/")
FILE_MAX_BYTES = 1 << 20
GIDS_MAX = 16  # of a port's table: what NCCL could use stands at its beginning
_PACKAGE_STATUS = Path("var/lib/dpkg/status")
_PACKAGES_MAX_BYTES = 32 << 20

Group = dict[str, str]

# What changes how memory, shared memory and the link behave. Sizes that the kernel derives at boot are left out.
SYSCTLS = (
    *("vm." + name for name in (
        "swappiness", "overcommit_memory", "overcommit_ratio", "max_map_count", "min_free_kbytes", "vfs_cache_pressure",
        "dirty_ratio", "dirty_background_ratio", "dirty_bytes", "dirty_background_bytes", "nr_hugepages",
        "nr_overcommit_hugepages", "zone_reclaim_mode", "watermark_scale_factor", "compaction_proactiveness",
        "panic_on_oom", "oom_kill_allocating_task", "page-cluster",
    )),
    *("kernel." + name for name in (
        "shmmax", "shmall", "shmmni", "numa_balancing", "panic", "panic_on_oops", "softlockup_panic", "hung_task_panic",
        "hung_task_timeout_secs", "sysrq", "yama.ptrace_scope", "perf_event_paranoid", "pid_max", "threads-max",
    )),
    *("net.core." + name for name in (
        "rmem_max", "wmem_max", "rmem_default", "wmem_default", "optmem_max", "netdev_max_backlog", "somaxconn",
        "default_qdisc", "busy_poll", "busy_read",
    )),
    *("net.ipv4." + name for name in (
        "tcp_rmem", "tcp_wmem", "tcp_mtu_probing", "tcp_congestion_control", "tcp_keepalive_time", "tcp_keepalive_intvl",
        "tcp_keepalive_probes", "tcp_retries2", "tcp_syn_retries", "tcp_fin_timeout", "tcp_tw_reuse", "tcp_timestamps",
        "tcp_sack", "tcp_window_scaling", "tcp_slow_start_after_idle", "tcp_moderate_rcvbuf", "ip_local_port_range",
        "ip_local_reserved_ports", "ip_forward", "conf.all.rp_filter", "conf.all.arp_ignore", "conf.all.arp_announce",
    )),
    "net.ipv6.conf.all.disable_ipv6",
    "fs.file-max", "fs.nr_open", "fs.aio-max-nr", "fs.inotify.max_user_watches",
)  # fmt: skip
_HUGE_PAGES = ("enabled", "defrag", "shmem_enabled")

DRIVER_PACKAGES = (
    r"(?:lib)?nvidia-(?!container)[a-z0-9.+-]+|cuda-(?:drivers|compat)[a-z0-9.+-]*|libcudnn[a-z0-9.+-]*"
    r"|mlnx-[a-z0-9.+-]+|rdma-core|libibverbs1|ibverbs-providers"
)
KERNEL_PACKAGES = r"linux-firmware|linux-(?:image|modules)-[a-z]+[a-z0-9.+-]*"
DOCKER_PACKAGES = (
    r"docker-ce|docker\.io|docker-buildx-plugin|containerd\.io|containerd|runc"
    r"|nvidia-container-[a-z0-9.+-]+|libnvidia-container[a-z0-9.+-]*"
)
HOST_PACKAGES = r"systemd|earlyoom|systemd-oomd|dgx-[a-z0-9.+-]+|netplan\.io|network-manager|fwupd|irqbalance"


# --- reading -------------------------------------------------------------------------------------


def digest(content: bytes | str) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def file_digest(path: Path, max_bytes: int = FILE_MAX_BYTES) -> str | None:
    """sha256 of a small regular file; None for everything else."""
    try:
        if not path.is_file() or path.stat().st_size > max_bytes:
            return None
        return digest(path.read_bytes())
    except OSError:
        return None


def entries(directory: Path) -> list[Path]:
    """What a directory holds, by name; nothing where it cannot be listed."""
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _known(pairs: Iterable[tuple[str, str | None]]) -> Group:
    return {name: value for name, value in pairs if value}


def packages(wanted: str, root: Path = ROOT) -> Group:
    """Versions of the installed packages whose names match, from dpkg's own list. No such list: none."""
    try:
        with (root / _PACKAGE_STATUS).open("rb") as file:
            status = file.read(_PACKAGES_MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return {}
    found = {}
    for match in re.finditer(rf"^Package: ({wanted})\n", status, re.M):
        end = status.find("\n\n", match.end())
        fields = status[match.end() : end if end >= 0 else len(status)]
        version = re.search(r"^Version: (\S+)$", fields, re.M)
        if version and re.search(r"^Status: \S+ ok installed$", fields, re.M):
            found[f"package {match[1]}"] = version[1]
    return found


# --- groups --------------------------------------------------------------------------------------


def driver(root: Path = ROOT) -> Group:
    """The NVIDIA module, library, parameters and firmware, and the network cards' firmware."""
    found = _known(
        [("module nvidia", driver_version(root / "sys/module/nvidia/version", root / "proc/driver/nvidia/version"))]
    )
    for module in ("nvidia_uvm", "nvidia_peermem", "mlx5_core", "mlx5_ib"):
        found |= _known([(f"module {module}", text(root / "sys/module" / module / "version"))])
    for library in sorted((root / "usr/lib").glob("*/libcuda.so.1")):
        found[f"library {library.parent.name}/libcuda"] = library.resolve().name
    parameters = text(root / "proc/driver/nvidia/params")
    if parameters:
        found["parameters"] = digest(parameters)
    for gpu in entries(root / "proc/driver/nvidia/gpus"):
        about = dict(_fields(text(gpu / "information"), ":"))
        for key in ("Model", "GPU Firmware", "Video BIOS"):
            found |= _known([(f"{gpu.name} {key.lower()}", about.get(key))])
    for hca in entries(root / "sys/class/infiniband"):
        found |= _known([(f"{hca.name} firmware", text(hca / "fw_ver")), (f"{hca.name} board", text(hca / "board_id"))])
    return found | packages(DRIVER_PACKAGES, root)


def kernel(root: Path = ROOT) -> Group:
    """Release, every boot parameter by itself, and what modprobe is told."""
    found = _known(
        [("release", text(root / "proc/sys/kernel/osrelease")), ("build", text(root / "proc/sys/kernel/version"))]
    )
    found |= boot_parameters(text(root / "proc/cmdline"))
    for file in entries(root / "etc/modprobe.d"):
        if file.suffix == ".conf":
            found |= _known([(f"modprobe {file.name}", file_digest(file))])
    return found | packages(KERNEL_PACKAGES, root)


def boot_parameters(line: str) -> Group:
    """Pure. A parameter that is given twice has both values; what comes after "--" is for the init program."""
    found: dict[str, list[str]] = {}
    for word in redact(line.partition(" -- ")[0]).split():
        name, equals, value = word.partition("=")
        found.setdefault(f"parameter {name}", []).append(value if equals else "set")
    return {name: " ".join(values) for name, values in found.items()}


def host(root: Path = ROOT) -> Group:
    """The machine, its firmware, its system, and what logind does to shared memory."""
    dmi = root / "sys/class/dmi/id"
    found = _known(
        [
            *((f"BIOS {name}", text(dmi / f"bios_{name}")) for name in ("vendor", "version", "date", "release")),
            ("product", text(dmi / "product_name")),
            ("board", text(dmi / "board_name")),
            ("name", text(root / "proc/sys/kernel/hostname")),
            ("os", dict(_fields(text(root / "etc/os-release"), "=")).get("PRETTY_NAME")),
            ("RemoveIPC", _logind(root, "RemoveIPC")),
            ("processors", text(root / "sys/devices/system/cpu/online")),
            ("memory", _memory(text(root / "proc/meminfo"))),
        ]
    )
    for key, value in _fields(text(root / "etc/dgx-release"), "="):
        if not re.search(r"SERIAL|UUID", key):
            found[f"dgx {key.removeprefix('DGX_').lower()}"] = value
    for line in text(root / "proc/swaps").splitlines()[1:]:
        words = line.split()
        if len(words) >= 3:
            found[f"swap {words[0]}"] = f"{words[1]} {int(words[2]) >> 10} MiB"
    return found | packages(HOST_PACKAGES, root)


def _memory(meminfo: str) -> str | None:
    """To the GiB: how much the kernel keeps for itself differs by some MB from boot to boot."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.M)
    return f"{round(int(match[1]) / 2**20)} GiB" if match else None


def _logind(root: Path, key: str) -> str | None:
    """As logind reads it: the main file, then the drop-ins by name, the last one wins."""
    files = [root / "etc/systemd/logind.conf"]
    drop_ins = {
        file.name: file
        for where in ("usr/lib", "run", "etc")
        for file in entries(root / where / "systemd/logind.conf.d")
    }
    files += [drop_ins[name] for name in sorted(drop_ins)]
    values = [value for file in files for name, value in _fields(text(file), "=") if name == key]
    return values[-1] if values else None


def sysctls(root: Path = ROOT) -> Group:
    found = {}
    for name in SYSCTLS:
        parts = name.split(".", 2 if name.startswith("net.") else 1)
        value = text(root.joinpath("proc/sys", *parts[:-1], parts[-1].replace(".", "/")))
        if value:
            found[name] = " ".join(value.split())
    for name in _HUGE_PAGES:
        value = text(root / "sys/kernel/mm/transparent_hugepage" / name)
        if value and (chosen := re.search(r"\[(\w+)\]", value)):
            found[f"vm.transparent_hugepage.{name}"] = chosen[1]
    return found


def _fields(content: str, separator: str) -> Iterator[tuple[str, str]]:
    for line in content.splitlines():
        name, found, value = line.partition(separator)
        if found and not name.lstrip().startswith("#"):
            yield name.strip(), value.strip().strip('"')


# --- link ----------------------------------------------------------------------------------------


def link(interface: str, root: Path = ROOT) -> Group:
    """The interface between the nodes, its bond and slaves, and the HCAs with the GIDs that NCCL may name by index."""
    state = links.read_link(interface)
    if not state.exists:
        return {"interface": f"{interface} (missing)"} | hcas(root)
    # Link-local addresses are made anew by some systems at each boot, and nobody configures one.
    lasting = sorted(address for address in state.addresses if not address.startswith("fe80:"))
    found = _known(
        [
            ("interface", interface),
            ("mtu", str(state.mtu or "")),
            ("addresses", ", ".join(lasting)),
            ("speed", str(state.speed_mbps or "")),
        ]
    )
    sysfs = root / "sys/class/net" / interface
    if text(sysfs / "ifindex") == str(socket.if_nametoindex(interface)):  # it may be of another network namespace
        found |= bond(sysfs)
    return found | hcas(root)


def bond(sysfs: Path) -> Group:
    """Mode, slaves and what matters of its options; nothing where the interface is no bond."""
    found: Group = {}
    for option in ("mode", "xmit_hash_policy", "miimon", "lacp_rate", "primary"):
        found |= _known([(f"bond {option}", text(sysfs / "bonding" / option))])
    slaves = sorted(text(sysfs / "bonding/slaves").split())
    found |= _known([("bond slaves", " ".join(slaves))])
    for slave in slaves:
        about = sysfs.parent / slave
        found |= _known([(f"{slave} mtu", text(about / "mtu")), (f"{slave} speed", text(about / "speed"))])
    return found


def hcas(root: Path = ROOT) -> Group:
    found: Group = {}
    for hca in entries(root / "sys/class/infiniband"):
        device = hca / "device"
        netdevs = " ".join(entry.name for entry in entries(device / "net"))
        width, speed = text(device / "current_link_width"), text(device / "current_link_speed")
        pcie = f"{speed} x{width}" if speed and width else None
        found |= _known([(f"{hca.name} interface", netdevs), (f"{hca.name} pcie", pcie)])
        for port in entries(hca / "ports"):
            name = hca.name if port.name == "1" else f"{hca.name}:{port.name}"
            found |= _known([(f"{name} state", text(port / "state")), (f"{name} rate", text(port / "rate"))])
            found |= {f"{name} {gid}": value for gid, value in _gids(port)}
    return found


def _gids(port: Path) -> Iterator[tuple[str, str]]:
    """Those that lead to an address of a network: a link-local one is made from the MAC and says nothing."""
    for index in range(GIDS_MAX):
        gid = text(port / "gids" / str(index))
        if gid and set(gid) - set("0:") and not gid.startswith("fe80:"):
            kind, interface = text(port / "gid_attrs/types" / str(index)), text(port / "gid_attrs/ndevs" / str(index))
            yield f"gid {index}", " ".join(filter(None, (gid, kind, interface)))
