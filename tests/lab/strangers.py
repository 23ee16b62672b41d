"""What belongs to somebody else on the nodes, and must be there and untouched whatever breaks beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from .host import LabError
from .pair import Pair

CONTAINER = "somebodys-own"
UNIT = "somebodys-engine"
OPEN_SEGMENT = "/dev/shm/psm_57a46e12"  # named as an engine's, old, and in use by a process of somebody else
OWN_SEGMENT = "/dev/shm/somebodys-own"

# A process with an engine's title, of another user, that holds none of our ports, and keeps a segment open.
PROCESS = (
    "import os, sys, time\n"
    f"held = open('{OPEN_SEGMENT}', 'rb')\n"
    "time.sleep(86400)\n"
)  # fmt: skip

PLANT = f"""
set -eu
systemctl stop {UNIT} 2>/dev/null || :
rm -f {OPEN_SEGMENT} {OWN_SEGMENT}  # not even root may write to another's file here
head -c 65536 /dev/zero >{OPEN_SEGMENT}; touch --date='2 hours ago' {OPEN_SEGMENT}; chown nobody {OPEN_SEGMENT}
head -c 1000 /dev/zero >{OWN_SEGMENT}; touch --date='2 hours ago' {OWN_SEGMENT}
systemd-run --collect --quiet --unit={UNIT} --uid=nobody bash -c 'exec -a VLLM::Worker_TP7 /usr/bin/python3 -c "$0"' "$(cat)"
docker inspect {CONTAINER} >/dev/null 2>&1 ||
    docker run -d --name {CONTAINER} --restart always --init $(docker image ls -q | head -1) sleep 1000000 >/dev/null
"""

LOOK = f"""
import json, os, subprocess
def said(*argv):
    return subprocess.run(argv, capture_output=True, text=True, timeout=30).stdout.strip()
def stamp(path):
    try:
        about = os.stat(path)
        return [about.st_ino, about.st_size, about.st_mtime]
    except OSError:
        return None
state = said("docker", "inspect", "--format", "{{{{.Id}}}} {{{{.Created}}}}", "{CONTAINER}")
print(json.dumps({{
    "boot": open("/proc/sys/kernel/random/boot_id").read().strip(),
    "the container {CONTAINER}": state,
    "the process of {UNIT}": said("systemctl", "show", "{UNIT}", "-p", "MainPID", "--value"),
    "{OPEN_SEGMENT}": stamp("{OPEN_SEGMENT}"), "{OWN_SEGMENT}": stamp("{OWN_SEGMENT}"),
}}))
"""
LASTS = (f"the container {CONTAINER}",)  # over a boot too


@dataclass(frozen=True)
class Strangers:
    """As they were seen on one node."""

    node: str
    seen: dict[str, object]


def plant(pair: Pair, node: str) -> Strangers:
    """Raises LabError where that cannot be done."""
    pair.lab.node(node).run(["bash", "-c", PLANT], input=PROCESS)
    planted = look(pair, node)
    missing = [what for what, seen in planted.seen.items() if not seen or seen == "0"]
    if missing:
        raise LabError(f"{node}: {', '.join(missing)} could not be planted")
    return planted


def take_away(pair: Pair, node: str) -> None:
    """Whoever counts the processes of a node later would find one that is no engine of ours."""
    script = f"systemctl stop {UNIT}; docker rm -f {CONTAINER}; rm -f {OPEN_SEGMENT} {OWN_SEGMENT}"
    pair.lab.node(node).run(script, check=False)


def look(pair: Pair, node: str) -> Strangers:
    return Strangers(node, json.loads(pair.lab.node(node).run(["/usr/bin/python3", "-IS", "-c", LOOK]).stdout))


def touched(before: Strangers, after: Strangers) -> list[str]:
    """What is not as it was. A boot ends processes and clears /dev/shm by itself."""
    same_boot = before.seen["boot"] == after.seen["boot"]
    kept = [what for what in before.seen if what != "boot" and (same_boot or what in LASTS)]
    return [
        f"{before.node}: {what} was {before.seen[what]}, is {after.seen[what]}"
        for what in kept
        if before.seen[what] != after.seen[what]
    ]
