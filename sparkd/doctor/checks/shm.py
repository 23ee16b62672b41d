"""Layer shm: the shared memory through which the engine's processes talk."""

from __future__ import annotations

import os
import time
from pathlib import Path

from sparkd.doctor.check import Answers, cannot_tell, check, doubtful, no, yes
from sparkd.doctor.checks import process
from sparkd.doctor.facts import Facts, container, fact
from sparkd.host import login, room, shm
from sparkd.host.memory import GIB, MIB
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Cure, Layer, Who

SETTLED_S = 10  # a segment younger than this may be in the making
HEAVY_BYTES = 4 * GIB  # leftovers of this size are what the next launch will miss
ROOM_MIN_BYTES = GIB  # psm_* are 25 to 250 MB each, NCCL's 10 MB for each pair of ranks
DOCKER_DEFAULT_BYTES = 64 * MIB


@fact
def segments(facts: Facts) -> tuple[shm.Segment, ...]:
    """Every engine segment in this host's /dev/shm, with its users."""
    return tuple(shm.segments())


@check(
    "shm.leftovers",
    layer=Layer.SHM,
    question="Is every engine segment in /dev/shm used by somebody?",
    how="/dev/shm/{psm_*,sem.mp-*} against /proc/*/{maps,fd}, by device and inode",
    means="A killed engine cannot remove its shared memory. It counts against the GPU's memory, and no page cache drop gives it "
    "back.",
    remedy="sparkd doctor --fix  (or `sparkd clean`; looks again at the moment of removal)",
    sample="3 segments of dead engines in /dev/shm hold 241.0 MiB: psm_1abde4d0, ...",
    who=Who.SPARKD,
    cure=Cure.RELAUNCH,
)
def leftovers(facts: Facts) -> Answers:
    found = segments(facts)
    left = shm.leftovers(found, older_than=time.time() - SETTLED_S)
    if left:
        size = sum(one.bytes for one in left)
        names = ", ".join(one.path.name for one in left[:3]) + (", ..." if len(left) > 3 else "")
        one = len(left) == 1
        says = f"{len(left)} segment{'' if one else 's'} of dead engines in /dev/shm hold{'s' if one else ''}"
        says += f" {size / MIB:.1f} MiB: {names}"
        evidence = tuple(f"{each.path}: {each.bytes / MIB:.1f} MiB, nobody maps or opens it" for each in left[:20])
        yield (no if size >= HEAVY_BYTES else doubtful)(says, evidence=evidence)
        return
    blind = [one for one in found if not one.certain and not one.users]
    if blind:
        yield cannot_tell(
            f"who uses {len(blind)} segments: not every process may be looked into", remedy="sudo sparkd doctor"
        )
    else:
        yield yes(f"{len(found)} segments, all in use" if found else "no segment of an engine in /dev/shm")


@check(
    "shm.size",
    layer=Layer.SHM,
    question="Is the engine's /dev/shm large enough for several ranks' processes?",
    how="the container's IPC mode and HostConfig.ShmSize; the plan's where there is no container",
    means="Docker gives a container of its own IPC 64 MiB. vLLM's ring buffers and NCCL need hundreds: the start fails with "
    "`Error while creating shared memory segment`, or a bus error.",
    remedy="`ipc: host` in the recipe, then docker rm -f the container: sparkd makes it anew",
    sample="container vllm_ds4 has a /dev/shm of its own of 64 MiB",
    after=("docker.unreachable",),
)
def size(facts: Facts) -> Answers:
    spec, state = facts.plan.container, container(facts)
    if state is None:
        if spec.ipc != "host":
            yield no(
                f"the recipe's `ipc: {spec.ipc}` gives the container a /dev/shm of {DOCKER_DEFAULT_BYTES // MIB} MiB"
            )
        return
    host = state.raw.get("HostConfig") or {}
    own = int(host.get("ShmSize") or DOCKER_DEFAULT_BYTES)
    if state.ipc == "host" or state.ipc.startswith("container:"):
        yield yes(f"container {state.name} shares the /dev/shm of {state.ipc.replace('container:', 'container ')}")
    elif own < ROOM_MIN_BYTES:
        yield no(f"container {state.name} has a /dev/shm of its own of {own // MIB} MiB")
    else:
        yield yes(f"container {state.name} has a /dev/shm of its own of {own / GIB:.1f} GiB")


@fact
def rooms(facts: Facts) -> tuple[room.Room, ...]:
    """The host's /dev/shm, and the container's where it has one of its own."""
    found = [room.room(shm.SHM)]
    try:
        state = container(facts)
    except SparkdError:
        state = None  # the host's is to be seen without Docker
    if state is not None and state.running and state.pid and state.ipc != "host":
        found.append(room.room(Path(f"/proc/{state.pid}/root/dev/shm")))
    return tuple(found)


@check(
    "shm.full",
    layer=Layer.SHM,
    question="Is there room in /dev/shm?",
    how="statvfs of /dev/shm, the host's and the container's",
    means="The engine's next segment fails with `No space left on device`, or its process with a bus error.",
    remedy="du -ah /dev/shm | sort -h | tail; `sparkd clean` removes what dead engines left",
    sample="/dev/shm is full: 0.1 GiB of 60.0 free",
    after=("shm.size",),
)
def full(facts: Facts) -> Answers:
    for one in rooms(facts):
        says = f"{one.free_bytes / GIB:.1f} GiB of {one.total_bytes / GIB:.1f} free"
        if one.free_bytes < min(ROOM_MIN_BYTES, one.total_bytes // 4) and one.total_bytes > 0:
            yield no(f"{one.path} is full: {says}", evidence=_heaviest(one.path))
        else:
            yield yes(f"{one.path}: {says}")


def _heaviest(directory: Path, count: int = 5) -> tuple[str, ...]:
    try:
        found = [
            (one.stat().st_blocks * 512, one) for one in os.scandir(directory) if one.is_file(follow_symlinks=False)
        ]
    except OSError:
        return ()
    return tuple(f"{one.path}: {bytes_ / MIB:.1f} MiB" for bytes_, one in sorted(found, key=lambda f: -f[0])[:count])


@check(
    "shm.removeipc",
    layer=Layer.SHM,
    question="Will nobody's logout take the engine's shared memory away?",
    how="RemoveIPC= of logind.conf and its drop-ins, the uid of the engine's processes, /var/lib/systemd/linger",
    means="systemd-logind removes all shared memory of a user when his last session ends, a running engine's too: it dies with "
    "FileNotFoundError: /psm_*. Root and system users are spared (vllm#54259).",
    remedy="RemoveIPC=no in /etc/systemd/logind.conf.d/vllm.conf and systemctl restart systemd-logind, or loginctl enable-linger "
    "the user",
    sample="the engine runs as milo (uid 1000), and logind removes a user's shared memory at his logout",
)
def removeipc(facts: Facts) -> Answers:
    if facts.plan.container.ipc != "host":
        return  # logind sees the host's IPC alone
    users = {one.uid for one in process.engine_usage(facts) if one.uid > login.SYSTEM_UID_MAX}
    exposed = [uid for uid in sorted(users) if not login.lingers(login.user_name(uid))]
    if not exposed:
        yield yes("no engine process is of a user whom logind cleans up after")
    elif not login.removes_ipc():
        yield yes("logind leaves shared memory alone (RemoveIPC=no)")
    else:
        who = ", ".join(f"{login.user_name(uid)} (uid {uid})" for uid in exposed)
        yield doubtful(f"the engine runs as {who}, and logind removes a user's shared memory at his logout")
