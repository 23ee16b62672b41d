"""What the machine under the lab sees of the nodes: engine processes, and what was left behind. Nothing here is claimed.

Looked at from outside, through the nodes' cgroups and /proc, so that a node that is off, frozen or busy is seen as well, and
a look costs milliseconds.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tests.lab.cgroups import hierarchies
from tests.lab.machine import Node
from tests.lab.pair import NODES, Pair

TOP, CORE, RANK = "vllm serve", "VLLM::EngineCore", "VLLM::Worker"
WHOLE = {"spark1": {TOP, CORE, RANK}, "spark2": {TOP, RANK}}  # a headless worker has no engine core
API_PORT = 8000
SEGMENT = re.compile(r"psm_[0-9a-f]{8}|sem\.mp-\w+")


@dataclass(frozen=True)
class Process:
    pid: int  # on the machine under the lab
    started: int  # ticks since boot: tells it from a later one with the same pid
    kind: str  # TOP, CORE or RANK
    title: str
    launch: str  # its SPARKD_LAUNCH_ID, where it has one


def pids(node: Node) -> set[int]:
    """Every process of the node. One hierarchy is enough: all of them hold the same."""
    found: set[int] = set()
    hierarchy = next((h for h in hierarchies() if h.root.name == "systemd" or h.v2), hierarchies()[0])
    for directory, _, _ in os.walk(hierarchy.root / node.group.path):
        try:
            found.update(int(pid) for pid in Path(directory, "cgroup.procs").read_text().split())
        except OSError:  # it ended while we looked
            continue
    return found - {0}


def engine(node: Node) -> tuple[Process, ...]:
    """Every engine process of the node that matters, whatever launch it is of; zombies are dead."""
    tops, titled, parents = [], [], {}
    for pid in pids(node):
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if argv[0].startswith("VLLM::"):
            kind = CORE if argv[0].startswith(CORE) else RANK
            titled.append(Process(pid, int(stat[19]), kind, argv[0], _launch(pid)))
        elif "serve" in argv and any(word.endswith("/vllm") for word in argv[:2]):
            tops.append(Process(pid, int(stat[19]), TOP, TOP, _launch(pid)))
            parents[pid] = int(stat[1])
    tops = [top for top in tops if parents[top.pid] not in parents]  # a fork carries its parent's words for a moment
    return tuple(sorted([*tops, *titled], key=lambda process: process.pid))


def _launch(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((w.partition(b"=")[2].decode() for w in words if w.startswith(b"SPARKD_LAUNCH_ID=")), "")


def engines(pair: Pair) -> dict[str, tuple[Process, ...]]:
    return {name: engine(pair.lab.node(name)) for name in NODES}


def is_whole(found: dict[str, tuple[Process, ...]]) -> bool:
    """Every process of both ranks lives, each once."""
    return all(sorted(process.kind for process in found[name]) == sorted(WHOLE[name]) for name in NODES)


def listens(node: Node, port: int = API_PORT) -> bool:
    """Somebody on the node accepts connections there. The engine takes its port long before it listens."""
    leader = node.leader()
    try:
        tables = [Path(f"/proc/{leader}/net/{table}").read_text().splitlines()[1:] for table in ("tcp", "tcp6")]
    except OSError:
        return False
    rows = [line.split() for table in tables for line in table]
    return any(row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port for row in rows)


# --- what was left behind ------------------------------------------------------------------------


@dataclass(frozen=True)
class Remains:
    """Everything on a node that could be left over. What was there before a fault is not the fault's doing."""

    things: frozenset[str]

    def beyond(self, before: Remains) -> tuple[str, ...]:
        return tuple(sorted(self.things - before.things))


def remains(pair: Pair) -> Remains:
    """Of both nodes."""
    things = set()
    for name in NODES:
        node = pair.lab.node(name)
        found = _processes_left(engine(node), WHOLE[name]) + _segments_left(node) + _told_by_node(pair, name)
        things.update(f"{name}: {thing}" for thing in found)
    return Remains(frozenset(things))


def _processes_left(found: tuple[Process, ...], wanted: set[str]) -> list[str]:
    """Each kind of process may live once, and all must be of one launch."""
    left = []
    for kind in (TOP, CORE, RANK):
        living = sorted((p for p in found if p.kind == kind), key=lambda p: p.started)
        kept = 1 if kind in wanted else 0
        left += [f"process {process.title}" for process in living[: max(0, len(living) - kept)]]
    if len({process.launch for process in found}) > 1:
        left.append(f"processes of launches {', '.join(sorted({p.launch or 'none' for p in found}))}")
    return left


def _segments_left(node: Node) -> list[str]:
    """Segments and semaphores in /dev/shm that no process of the node maps or holds open, by inode: glibc maps a
    semaphore under another name than it keeps."""
    leader = node.leader()
    if leader is None:
        return []
    shm = Path(f"/proc/{leader}/root/dev/shm")
    lying = {}
    for file in shm.iterdir():
        try:
            if SEGMENT.fullmatch(file.name):
                lying[file.stat().st_ino] = file.name
        except OSError:
            continue
    if not lying:
        return []
    device = shm.stat().st_dev
    used: set[int] = set()
    for pid in pids(node):
        used |= _mapped(pid, f"{os.major(device):02x}:{os.minor(device):02x}") | _opened(pid, device)
    return [f"segment {name}" for inode, name in lying.items() if inode not in used]


def _mapped(pid: int, device: str) -> set[int]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    return {int(words[4]) for line in lines if len(words := line.split(maxsplit=5)) > 4 and words[3] == device}


def _opened(pid: int, device: int) -> set[int]:
    found = set()
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                stat = link.stat()
            except OSError:
                continue
            if stat.st_dev == device:
                found.add(stat.st_ino)
    except OSError:
        pass
    return found


LOOK = r"""
docker ps --all --format 'container {{.Names}}'
systemctl list-units --failed --plain --no-legend | awk '{print "failed unit " $1}'
ss -Hltnp '( sport = :8000 or sport = :29501 )'
"""


def _told_by_node(pair: Pair, name: str) -> list[str]:
    """Containers, failed units, and listeners on the engine's ports that are no engine."""
    said = pair.run(name, LOOK, check=False, timeout_s=30).splitlines()
    found = [line for line in said if line.startswith(("container ", "failed unit "))]
    for line in said:
        holders = re.findall(r'\("([^"]+)",pid=\d+', line)
        if holders and not any(holder.startswith(("vllm", "VLLM::")) for holder in holders):
            found.append(f"port {line.split()[3].rpartition(':')[2]} held by {holders[0]}")
    return found
