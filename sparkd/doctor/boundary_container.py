"""The part of a boundary that lies in Docker: the container as it was made, what was written into it, its image, patches."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparkd.doctor import boundary_host as files
from sparkd.doctor.boundary_host import Group, digest, file_digest
from sparkd.doctor.checks.docker import info
from sparkd.doctor.drift import SECRET_MARK
from sparkd.doctor.facts import Facts, container, fact
from sparkd.engine.build import read_build
from sparkd.engine.patches import count
from sparkd.engine.process import SECRET
from sparkd.engine.spec import ContainerState
from sparkd.host import procfs
from sparkd.host.files import text
from sparkd.model.errors import UnreachableError
from sparkd.model.outside import parsed
from sparkd.model.plan import LAUNCH_ID_VARIABLE
from sparkd.model.recipe import PatchInvariant
from sparkd.model.redact import redact

SCRIPT_MAX_BYTES = 1 << 20
LAYER_PATHS_MAX = 4000  # asked of Docker
LAYER_NAMES_MAX = 150  # kept
LAYER_DIGESTS_MAX = 40

# What a process has in its environment that is another one at each start, or says nothing.
_VOLATILE_VARIABLES = re.compile(rf"{LAUNCH_ID_VARIABLE}|HOSTNAME|PWD|OLDPWD|SHLVL|_|INVOCATION_ID|JOURNAL_STREAM|TERM")
# What running programs leave behind anywhere: of no use to know, and never twice the same.
_VOLATILE_PATHS = re.compile(
    r"/(tmp|run|var/(tmp|run|log|cache|lib/apt|lib/dpkg)|dev|proc|sys|root/\.(cache|triton|tilelang|nv|config|bash_history))(/.*)?"
    r"|.*/__pycache__(/.*)?|.*\.(pyc|lock|log|pid|sock)|/workspace/\.sparkd-api-key|/etc/(hosts|hostname|resolv\.conf|mtab)"
)  # fmt: skip
_OUR_LABELS = re.compile(r"io\.sparkd\.(epoch|plan)")  # another one for each container that sparkd makes


def variables(environment: Mapping[str, str]) -> Group:
    """Pure. Without what is another one at each start; a secret by its digest."""
    return {
        name: hidden(value) if SECRET.search(name) else redact(value)
        for name, value in environment.items()
        if not _VOLATILE_VARIABLES.fullmatch(name)
    }


def hidden(value: str) -> str:
    return f"{SECRET_MARK}{digest(value)[:12]}"


@fact
def _existing(facts: Facts) -> ContainerState:
    state = container(facts)
    if state is None:
        raise UnreachableError(f"there is no container {facts.plan.container.name}")
    return state


def script(facts: Facts) -> Group:
    plan = facts.plan
    found = {"of the plan": digest(plan.script), "path": plan.script_path}
    content = facts.docker.read_file(_existing(facts).name, plan.script_path, SCRIPT_MAX_BYTES)
    if content is not None:
        found["in the container"] = digest(content)
    return found


def made(facts: Facts) -> Group:
    return container_group(_existing(facts))


def container_group(state: ContainerState) -> Group:
    """Pure. How it was made: everything that another `docker run` line could have made otherwise."""
    config, host = state.raw.get("Config") or {}, state.raw.get("HostConfig") or {}
    found = {
        "image": state.image,
        "network": state.network,
        "ipc": state.ipc,
        "pid mode": state.pid_mode,
        "restart policy": state.restart_policy,
        "runtime": str(host.get("Runtime") or "default"),
        "privileged": str(bool(host.get("Privileged"))).lower(),
        "init": str(bool(host.get("Init"))).lower(),
        "command": redact(" ".join([*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())])),
        "user": config.get("User") or "root",
        "gpus": _json(host.get("DeviceRequests")),
        "devices": _json(host.get("Devices")),
        "capabilities": _json(host.get("CapAdd")),
        "security": _json(host.get("SecurityOpt")),
        "memory limit": str(host.get("Memory") or 0),
        "memory swap limit": str(host.get("MemorySwap") or 0),
        "shm size": str(host.get("ShmSize") or 0),
        "log driver": str((host.get("LogConfig") or {}).get("Type") or ""),
        "storage driver": str(state.raw.get("Driver") or ""),
    }
    found |= {
        f"ulimit {each.get('Name')}": f"{each.get('Soft')}:{each.get('Hard')}" for each in host.get("Ulimits") or ()
    }
    for mount in state.mounts:
        source, _, rest = mount.partition(":")
        found[f"mount {rest.partition(':')[0]}"] = source + (" read-only" if rest.endswith(":ro") else "")
    found |= {f"environment {name}": value for name, value in variables(state.env).items()}
    labels = state.labels.items()
    found |= {
        f"label {key}": value
        for key, value in labels
        if key.startswith("io.sparkd.") and not _OUR_LABELS.fullmatch(key)
    }
    return {name: value for name, value in found.items() if value}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True) if value else ""


def writable_layer(facts: Facts) -> Group:
    state = _existing(facts)
    changed = layer_group(facts.docker.writable_layer(state.name, paths_max=LAYER_PATHS_MAX))
    upper = str(((state.raw.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir") or "")
    if not upper:
        return changed
    looked = 0
    for path, kind in changed.items():
        if kind != "deleted" and looked < LAYER_DIGESTS_MAX and (sha := _inside(Path(upper), path)):
            looked += 1
            changed[path] = f"{kind} {sha[:12]}"
    return changed


def layer_group(lines: list[str]) -> Group:
    """Pure. `docker diff` without what programs leave behind; of an added directory only its own name."""
    found: Group = {}
    added = ""
    for path, kind in sorted((line[2:], line[0]) for line in lines if line[1:2] == " " and line[2:3] == "/"):
        if _VOLATILE_PATHS.fullmatch(path) or (added and path.startswith(added + "/")):
            continue
        if kind == "A":
            added = path
        found[path] = {"A": "added", "D": "deleted"}.get(kind, "changed")
    if len(found) > LAYER_NAMES_MAX:
        rest = list(found)[LAYER_NAMES_MAX:]
        found = {path: found[path] for path in list(found)[:LAYER_NAMES_MAX]}
        found["(more)"] = f"{len(rest)} paths {digest(chr(10).join(rest))[:12]}"
    return found


def _inside(root: Path, path: str) -> str | None:
    """The digest of a small file below `root`, never of what a symbolic link in there leads to outside."""
    file = root / path.lstrip("/")
    try:
        is_inside = file.resolve().is_relative_to(root.resolve())
    except OSError:
        return None
    return file_digest(file) if is_inside and not file.is_symlink() else None


def image(facts: Facts) -> Group:
    """What the plan's name means on this node now, and what it says of itself."""
    found = {"name": facts.plan.container.image}
    image = facts.docker.image(facts.plan.container.image)
    found["id"] = image.id if image else "missing"
    if image is not None:
        found |= {"created": image.created_at, "architecture": image.architecture}
        found |= {f"label {key}": value for key, value in image.labels.items()}
        found |= {"digest": ", ".join(sorted(image.digests))} if image.digests else {}
    return found


def built(facts: Facts) -> Group:
    """What the container was made from, whatever the image's name means today."""
    state = _existing(facts)
    build = read_build(facts.docker, state.name)
    return {"image id": state.image_id} | {key: redact(value) for key, value in build.items()}


def patches(facts: Facts) -> Group:
    """Read through the running container's own root directory: no program has to be run in it."""
    plan = facts.plan
    if not plan.patches:
        return {}
    state = _existing(facts)
    if not state.running or not state.pid:
        raise UnreachableError(f"container {state.name} does not run")
    found: Group = {}
    for invariant in plan.patches:
        found |= patch_group(Path(f"{procfs.PROC}/{state.pid}/root"), invariant)
    return found


def patch_group(root: Path, invariant: PatchInvariant) -> Group:
    """How often the patch's mark stands in its file, and what the files are."""
    found: Group = {}
    for glob in dict.fromkeys(filter(None, (invariant.file, invariant.superseded_in))):
        for file in sorted(root.glob(glob.lstrip("/"))):
            path = "/" + str(file.relative_to(root))
            if sha := _inside(root, path):
                found[path] = sha
                if glob == invariant.file:
                    found[f"{invariant.id} count"] = str(count(invariant, text(file)))
    if f"{invariant.id} count" not in found:
        os.stat(root)  # noqa: PTH116  # raises where we may not look at all
        found[f"{invariant.id} count"] = "no file"
    return found


def docker(facts: Facts) -> Group:
    daemon = info(facts)
    found = files.packages(files.DOCKER_PACKAGES) | {
        "version": daemon.version,
        "runtimes": ", ".join(sorted(daemon.runtimes)),
        "cgroup driver": daemon.cgroup_driver,
        "root": daemon.root,
        "live restore": str(daemon.live_restore).lower(),
    }
    settings = text(Path("/etc/docker/daemon.json"))
    if settings:
        found |= daemon_settings(settings)
    for drop_in in files.entries(Path("/etc/systemd/system/docker.service.d")):
        found[f"drop-in {drop_in.name}"] = file_digest(drop_in) or "unreadable"
    return found


def daemon_settings(content: str) -> Group:
    """Pure. /etc/docker/daemon.json, a line for each of its keys."""
    try:
        told = parsed(content)
        return {f"daemon.json {key}": redact(json.dumps(value, sort_keys=True)) for key, value in told.items()}
    except (ValueError, AttributeError):
        return {"daemon.json": f"not JSON, {digest(content)[:12]}"}
