"""Every `vllm serve` that is about this node's plan: the living ones, and those in scripts that the operator's units run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from sparkd.doctor.checks.container import try_container
from sparkd.doctor.facts import Facts, engine_processes, fact, unit_state
from sparkd.engine import process
from sparkd.engine.arguments import Script, read_script
from sparkd.host import execstart, marks
from sparkd.host.processes import EngineProcess, launch_environment
from sparkd.model.errors import SparkdError
from sparkd.model.plan import Plan

SCRIPT_MAX_BYTES = 256 * 1024


@dataclass(frozen=True)
class Command:
    """A `vllm serve` with its environment: of a living process, or of a script that a unit runs."""

    where: str  # for a person: "process 4711", "/workspace/vllm-head.sh in container vllm_ds4"
    argv: tuple[str, ...]  # begins with "vllm"
    environment: Mapping[str, str] | None  # None: not ours to read
    launch_id: str | None = None
    pid: int = 0


@fact
def living(facts: Facts) -> tuple[Command, ...]:
    """The engine's top processes on this node that are about this plan, whoever started them."""
    return tuple(_living(facts))


def _living(facts: Facts) -> Iterator[Command]:
    state = try_container(facts)
    for each in engine_processes(facts):
        argv = process.engine_argv(each.argv) if marks.is_serve_command(each.argv) else None
        if argv is None or not _concerns(facts.plan, each, state.id if state else ""):
            continue
        try:
            environment: Mapping[str, str] | None = launch_environment(each.pid)
        except SparkdError:
            environment = None
        yield Command(f"process {each.pid}", argv, environment, each.launch_id, each.pid)


def _concerns(plan: Plan, each: EngineProcess, container_id: str) -> bool:
    """A vLLM of somebody else's is nobody's business here."""
    ours = container_id and each.container_id == container_id
    return bool(each.launch_id or ours or plan.model in each.argv)


@fact
def operator_scripts(facts: Facts) -> tuple[Command, ...]:
    """The `vllm serve` commands of the operator's own units: in ExecStart itself, in scripts on the host and in the container."""
    return tuple(command for where, script in _operator_scripts(facts) for command in _commands(where, script))


def _commands(where: str, script: Script) -> Iterator[Command]:
    for argv in script.commands:
        yield Command(where, ("vllm", *argv[1:]), script.environment)


def _operator_scripts(facts: Facts) -> Iterator[tuple[str, Script]]:
    for name in facts.operator_units:
        for command in unit_state(facts, name).exec_start:
            for told in inline(command):
                yield f"ExecStart of {name}", told
            for wanted in execstart.wanted_paths(command):
                if wanted.path.endswith((".sh", ".bash")) and (text := _text(facts, wanted)) is not None:
                    where = f"{wanted.path}{f' in container {wanted.container}' if wanted.container else ''} ({name})"
                    yield where, read_script(text.decode("utf-8", "replace"))


def _text(facts: Facts, wanted: execstart.Wanted) -> bytes | None:
    """A script's text; None where it is not there, which unit.execstart-path tells."""
    if wanted.container:
        return facts.docker.read_file(wanted.container, wanted.path, SCRIPT_MAX_BYTES)
    try:
        with Path(wanted.path).open("rb") as file:
            return file.read(SCRIPT_MAX_BYTES)
    except OSError:
        return None


def inline(command: Sequence[str]) -> Iterator[Script]:
    """Pure. `vllm serve` in the command line itself, or in the text that a shell in it is given; with the `docker exec -e`."""
    given = dict(value.split("=", 1) for flag, value in pairwise(command) if flag in ("-e", "--env") and "=" in value)
    texts = [shlex.join(command), *(value for flag, value in pairwise(command) if re.fullmatch(r"-[a-z]*c", flag))]
    for script in map(read_script, texts):
        if script.commands:
            yield Script(script.commands, given | dict(script.environment))


def commands(facts: Facts) -> tuple[Command, ...]:
    """What runs, and what would run. In a launch's preflight nothing does."""
    if facts.calm:
        return ()
    try:
        return (*living(facts), *operator_scripts(facts))
    except SparkdError:  # without Docker or systemd the living ones are all that can be seen
        return living(facts)
