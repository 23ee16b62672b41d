"""What a node's sparkd takes of its node, read from outside: memory, files, threads, CPU, disk, and what it leaves lying.

One small script runs in the node for each reading, in the system's own Python, and prints one line of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .machine import Node

READ_MAX_S = 30.0

SCRIPT = r"""
import glob, json, os, subprocess, sys, time

def said(*argv):
    return subprocess.run(argv, capture_output=True, text=True, timeout=20).stdout

def shown(unit, *names):
    lines = said("systemctl", "show", unit, *(f"--property={name}" for name in names)).splitlines()
    return dict(line.partition("=")[::2] for line in lines)

def text(path):
    with open(path, errors="replace") as file:
        return file.read()

def kib(path):
    return {line.split(":")[0]: int(line.split()[1]) for line in text(path).splitlines() if line.endswith(" kB")}

def disk(top):
    taken = files = 0
    for directory, _, names in os.walk(top):
        for name in names:
            try:
                taken += os.lstat(os.path.join(directory, name)).st_blocks * 512
                files += 1
            except OSError:
                pass  # gone since we looked
    return taken, files

def size(path):
    try:
        return os.stat(path).st_size
    except OSError:
        return 0

def children(pid):
    return sum(len(text(file).split()) for file in glob.glob(f"/proc/{pid}/task/*/children"))

def switches(pid):
    # Of the thread that turns the loop: those of threads that end cannot be summed up.
    return sum(int(line.split()[1]) for line in text(f"/proc/{pid}/status").splitlines() if line.startswith("voluntary_ctxt"))

def daemon(pid):
    rollup, words = kib(f"/proc/{pid}/smaps_rollup"), text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return {
        "life": f"{pid}-{words[19]}", "rss_kib": rollup["Rss"], "pss_kib": rollup["Pss"],
        "private_kib": rollup["Private_Dirty"] + rollup["Private_Clean"],
        "fds": len(os.listdir(f"/proc/{pid}/fd")), "threads": len(os.listdir(f"/proc/{pid}/task")),
        "children": children(pid), "cpu_s": (int(words[11]) + int(words[12])) / tick,
        "children_cpu_s": (int(words[13]) + int(words[14])) / tick, "switches": switches(pid),
    }

def processes():
    sparkd = zombies = every = 0
    for file in glob.glob("/proc/[0-9]*/stat"):
        try:
            state = text(file).rpartition(")")[2].split()[0]
            command = text(file.replace("/stat", "/cmdline"))
        except OSError:
            continue
        every += 1
        zombies += state == "Z"
        sparkd += "/opt/sparkd/" in command
    return {"processes": every, "zombies": zombies, "sparkd_processes": sparkd}

def fds(unit):
    try:
        return len(os.listdir(f"/proc/{shown(unit, 'MainPID')['MainPID']}/fd"))
    except OSError:
        return None

def read():
    unit = shown("sparkd.service", "MainPID", "NRestarts", "ActiveState")
    found = {"boot": text("/proc/sys/kernel/random/boot_id").strip(), "restarts": int(unit["NRestarts"] or 0)}
    if unit["MainPID"] != "0":
        try:
            found |= daemon(unit["MainPID"])
        except OSError:
            pass  # it ended since we asked
    found |= processes()
    found["state_bytes"], found["state_files"] = disk("/var/lib/sparkd")
    found["events_bytes"] = sum(size(file) for file in glob.glob("/var/lib/sparkd/events.jsonl*"))
    found["log_bytes"], found["log_files"] = disk("/var/log/sparkd")
    found["run_bytes"], found["run_files"] = disk("/run/sparkd")
    found["shm"] = sorted(os.listdir("/dev/shm"))
    found["containers"] = len(said("docker", "ps", "--all", "--quiet").split())
    found["dockerd_fds"] = fds("docker.service")
    told = said("journalctl", "--quiet", "--output=cat", f"--since={sys.argv[1]}", "--unit=sparkd", "--unit=sparkd-engine")
    found["journal_bytes"], found["journal_lines"] = len(told.encode()), told.count("\n")
    found["t"] = time.time()
    return found

print(json.dumps(read()))
"""

Reading = dict[str, Any]


def read(node: Node, *, since: float) -> Reading:
    """The node now; its journal since that moment (Unix time). Raises LabError where the node does not answer."""
    argv = ["/usr/bin/python3", "-IS", "-c", SCRIPT, f"@{since:.0f}"]
    reading: Reading = json.loads(node.run(argv, timeout_s=READ_MAX_S).stdout)
    return reading | {"node": node.name}


@dataclass(frozen=True)
class Point:
    """One value. `life` is whose: values of two lives of a daemon say nothing of growth."""

    t_s: float
    life: str
    value: float


@dataclass(frozen=True)
class Gauge:
    """One quantity, how it is got from readings, and how much of it may grow in an hour and still be called flat."""

    title: str
    unit: str
    per_hour_max: float
    key: str
    rate_of: str = ""  # "counter": the value is this counter's rate, per second, times `scale`
    scale: float = 1.0
    lives: str = "life"  # "life": of one daemon; "boot": of one boot; "": of the node


GAUGES = (
    Gauge("resident memory", "MiB", 2.0, "rss_kib", scale=1 / 1024),
    Gauge("proportional memory (PSS)", "MiB", 2.0, "pss_kib", scale=1 / 1024),
    Gauge("private memory", "MiB", 2.0, "private_kib", scale=1 / 1024),
    Gauge("file descriptors", "", 1.0, "fds"),
    Gauge("threads", "", 1.0, "threads"),
    Gauge("child processes", "", 0.5, "children"),
    Gauge("CPU share", "%", 0.3, "cpu_s", rate_of="counter", scale=100.0),
    Gauge("CPU share of its children", "%", 0.5, "children_cpu_s", rate_of="counter", scale=100.0),
    Gauge("wake-ups of its loop", "/s", 2.0, "switches", rate_of="counter"),
    Gauge("processes of sparkd", "", 0.5, "sparkd_processes", lives="boot"),
    Gauge("processes on the node", "", 2.0, "processes", lives="boot"),
    Gauge("zombies", "", 0.5, "zombies", lives="boot"),
    Gauge("file descriptors of dockerd", "", 2.0, "dockerd_fds", lives="boot"),
    Gauge("entries in /dev/shm", "", 1.0, "shm", lives="boot"),
    Gauge("containers", "", 0.1, "containers", lives=""),
    Gauge("state on disk, without the events", "KiB", 64.0, "state_without_events", scale=1 / 1024, lives=""),
    Gauge("files in the state directory", "", 1.0, "state_files", lives=""),
    Gauge("engine logs, files", "", 1.0, "log_files", lives=""),
    Gauge("engine logs, size", "KiB", 256.0, "log_bytes", scale=1 / 1024, lives=""),
    Gauge("files in /run/sparkd", "", 0.1, "run_files", lives="boot"),
)


def value(gauge: Gauge, reading: Reading) -> float | None:
    """What the gauge shows in one reading; None where there was nothing to read."""
    if gauge.key == "state_without_events":
        return float(reading["state_bytes"]) - float(reading["events_bytes"])
    found = reading.get(gauge.key)
    if found is None:
        return None
    return float(len(found) if isinstance(found, list) else found)


def points(gauge: Gauge, readings: Sequence[Reading]) -> list[Point]:
    """Of one node's readings, in order of time."""
    found: list[Point] = []
    before: tuple[float, str, float] | None = None
    for reading in readings:
        life = str(reading.get(gauge.lives, "")) if gauge.lives else "node"
        now = value(gauge, reading)
        if now is None or not life:
            before = None
            continue
        t_s = float(reading["t"])
        if not gauge.rate_of:
            found.append(Point(t_s, life, now * gauge.scale))
        elif before is not None and before[1] == life and t_s > before[0] and now >= before[2]:
            found.append(Point(t_s, life, (now - before[2]) / (t_s - before[0]) * gauge.scale))
        before = (t_s, life, now)
    return found
