"""The boundary: everything around this node's engine that can change without a code change, as text, in groups.

Taken twice on an unchanged node it is equal: what moves by itself (counters, pids, dates, launch and container ids) is
not in it. Secrets are in it only as digests.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from sparkd import __version__
from sparkd.doctor import boundary_container as inside
from sparkd.doctor import boundary_host as files
from sparkd.doctor.boundary_container import hidden, variables
from sparkd.doctor.boundary_host import Group, digest, file_digest
from sparkd.doctor.checks import unit, weights
from sparkd.doctor.facts import DOOR_MAX_S, Facts, engine_processes, fact, launch_id, unit_state
from sparkd.engine.process import engine_argv
from sparkd.engine.weights import host_path
from sparkd.host import processes
from sparkd.host.clock import boot_id, monotonic
from sparkd.model.diagnosis import Boundary
from sparkd.model.errors import SparkdError, UnreachableError
from sparkd.model.redact import redact

VALUE_MAX_CHARS = 4096

_SECRET_FLAG = re.compile(r"-?(api|auth|hf|access)?-?(key|token|password|secret|credential)s?")


def take(facts: Facts, *, limit_s: float = DOOR_MAX_S) -> Boundary:
    """All groups, those of one door one after the other, the doors at once. What has not come by then is `unseen`."""
    groups: dict[str, Group] = {}
    unseen: dict[str, str] = {}

    def pass_through(readers: Mapping[str, Callable[[Facts], Group]]) -> None:
        for group, read in readers.items():
            try:
                groups[group] = {name: value[:VALUE_MAX_CHARS] for name, value in sorted(read(facts).items())}
            except (SparkdError, OSError) as error:
                unseen[group] = str(error)
            except Exception as error:  # the edge of one group: its fault must not take the others away
                unseen[group] = f"reading it failed: {type(error).__name__}: {error}"

    doors = [threading.Thread(target=pass_through, args=(readers,), daemon=True) for readers in DOORS]
    deadline = monotonic() + limit_s
    for door in doors:
        door.start()
    for door in doors:
        door.join(max(0.0, deadline - monotonic()))
    seen, not_seen = dict(groups), dict(unseen)
    every = [group for readers in DOORS for group in readers]
    late = {group: f"no answer in {limit_s:g} s" for group in every if group not in seen and group not in not_seen}
    return Boundary(
        node=facts.node or socket.gethostname(),
        at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        boot_id=boot_id(),
        groups={group: seen[group] for group in every if group in seen},
        unseen=not_seen | late,
    )


# --- what we are told to run ---------------------------------------------------------------------


def _sparkd(facts: Facts) -> Group:
    found = {"version": __version__}
    if facts.cluster_plan is not None:
        plan = facts.cluster_plan
        found |= {"plan": plan.digest, "recipe": plan.recipe, "profile": plan.profile or "none"}
    if facts.settings is not None:
        told = facts.settings.model_dump(mode="json")
        found["settings"] = digest(json.dumps(told, sort_keys=True))
        found["drop_caches"] = str(told["drop_caches"])
        found |= {f"limits.{name}": f"{value:g}" for name, value in told["limits"].items()}
    return found


def _argv(facts: Facts) -> Group:
    return argument_group(facts.plan.argv)


def argument_group(argv: tuple[str, ...]) -> Group:
    """Pure. Flag -> its values; a flag without one is "set". What stands before the first flag is the "command"."""
    found: dict[str, list[str]] = {"command": []}
    flag = "command"
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            flag, equals, value = word.partition("=")
            found.setdefault(flag, [])
            if equals:
                found[flag].append(value)
        else:
            found[flag].append(word)
    return {
        name: hidden(" ".join(values))
        if _SECRET_FLAG.fullmatch(name.lstrip("-"))
        else redact(" ".join(values)) or "set"
        for name, values in found.items()
    }


def _environment(facts: Facts) -> Group:
    found = variables(facts.plan.environment)
    if facts.plan.forbidden_environment:
        found["(forbidden)"] = ", ".join(facts.plan.forbidden_environment)
    return found


# --- what the living engine got ------------------------------------------------------------------


@fact
def _top(facts: Facts) -> int:
    """The pid of the launch's `vllm serve`. Raises UnreachableError where no launch of ours lives."""
    launch = launch_id(facts)
    tops = [one for one in engine_processes(facts) if launch and one.launch_id == launch and processes.is_top(one)]
    if not tops:
        raise UnreachableError("no engine of a launch of sparkd's lives here")
    return min(tops, key=lambda one: one.start_ticks).pid


def _engine_argv(facts: Facts) -> Group:
    argv = engine_argv(processes.command_line(_top(facts)))
    if argv is None:
        raise UnreachableError("the engine's command line is not that of vllm")
    return argument_group(argv)


def _engine_environment(facts: Facts) -> Group:
    return variables(processes.launch_environment(_top(facts)))


# --- units ---------------------------------------------------------------------------------------


def _units(facts: Facts) -> Group:
    found: Group = {}
    for name in unit.unit_names(facts):
        state = unit_state(facts, name)
        if state.load_state == "not-found":
            found[name] = "not-found"
            continue
        for what, path in (("file", state.fragment_path), *((f"drop-in {Path(p).name}", p) for p in state.drop_ins)):
            if path:
                found[f"{name} {what}"] = f"{path} {(file_digest(Path(path)) or 'unreadable')[:12]}"
        commands = [redact(shlex.join(argv)) for argv in state.exec_start]
        found |= {f"{name} ExecStart": "; ".join(commands), f"{name} Restart": state.restart or "no"}
        found |= {
            f"{name} script {word}": sha
            for argv in state.exec_start
            for word in argv
            if word.startswith("/") and (sha := _script_digest(Path(word)))
        }
    return found


def _script_digest(path: Path) -> str | None:
    """Of what a person can edit; a program's digest would read megabytes to say that a package was upgraded."""
    try:
        with path.open("rb") as file:
            return file_digest(path) if file.read(2) == b"#!" else None
    except OSError:
        return None


# --- weights and link ----------------------------------------------------------------------------


def _weights(facts: Facts) -> Group:
    found = weights.manifest(facts)
    directory = host_path(facts.plan.container.volumes, facts.plan.model)
    if found is None:
        raise UnreachableError(f"the weights {facts.plan.model} cannot be seen from the host")
    return {"directory": str(directory), "files": str(found.files), "bytes": str(found.bytes), "manifest": found.digest}


def _link(facts: Facts) -> Group:
    return files.link(facts.configured.cluster.link.interface)


# One pass (and one thread) for each door, so that a hung one costs only what lies behind it. Docker has two: its diff
# of the writable layer and its description of itself take as long as everything else together.
DOORS: tuple[Mapping[str, Callable[[Facts], Group]], ...] = (
    {
        "container": inside.made,
        "script": inside.script,
        "image": inside.image,
        "build": inside.built,
        "patches": inside.patches,
    },
    {"writable-layer": inside.writable_layer, "docker": inside.docker},
    {"units": _units},
    {"weights": _weights},
    {
        "sparkd": _sparkd,
        "argv": _argv,
        "environment": _environment,
        "engine-argv": _engine_argv,
        "engine-environment": _engine_environment,
        "link": _link,
        "driver": lambda _: files.driver(),
        "kernel": lambda _: files.kernel(),
        "host": lambda _: files.host(),
        "sysctls": lambda _: files.sysctls(),
    },
)
