"""Stage, start, stop, and look at what is left: the engine's unit and what it runs."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from sparkd.agent import ourselves
from sparkd.engine import scripts
from sparkd.engine.container import Docker
from sparkd.host import processes, shm, units
from sparkd.host.run import run
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Cure, Finding, FindingError, bad
from sparkd.model.plan import Plan

log = logging.getLogger(__name__)

ENGINE_UNIT = "sparkd-engine.service"
UNIT_JOB_MAX_S = 30.0
AUTOPSY_MAX_S = 10.0  # it takes half a second
LOG_SETTLES_S = 0.2

LOG_DIRECTORY_MODE, LOG_MODE = 0o750, 0o640  # `sparkd logs` is for members of the unit's group too


def api_key(plan: Plan) -> str | None:
    """The key that clients must show, from the node's own file; never from an argument."""
    if plan.api_key_file is None:
        return None
    path = Path(plan.api_key_file)
    try:
        key = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        says = f"the API key file {path} cannot be read: {error.strerror}"
        raise FindingError(
            bad("endpoint.key-file", says, cure=Cure.PERSON, remedy=f"create {path} (mode 0600)")
        ) from error
    if not key:
        raise FindingError(bad("endpoint.key-file", f"the API key file {path} is empty", cure=Cure.PERSON))
    return key


def stage(plan: Plan, docker: Docker) -> str:
    """The script from its file, read back and compared, and parsed by the container's own bash."""
    staged = scripts.stage(docker, plan.container.name, plan, api_key=api_key(plan))
    syntax = scripts.check_syntax(docker, plan.container.name, staged.path)
    if syntax is not None and syntax.is_bad:
        raise FindingError(syntax)
    how = "written" if staged.written else "already there"
    return f"{staged.path} {how}, read back equal (sha256 {staged.sha256[:12]})"


def start(plan: Plan, launch_id: str, launch_file: Path, log_file: Path) -> None:
    """Write what the unit reads, and start it. The launch id is an argument of the script, not a part of it."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    log_file.parent.chmod(LOG_DIRECTORY_MODE)
    log_file.write_bytes(b"")  # a node that lost its state may give a number again: no autopsy reads an older log
    log_file.chmod(LOG_MODE)
    variables = {
        "SPARKD_CONTAINER": plan.container.name,
        "SPARKD_SCRIPT": plan.script_path,
        "SPARKD_LAUNCH_ID": launch_id,
        "SPARKD_LOG": str(log_file),
    }
    launch_file.parent.mkdir(parents=True, exist_ok=True)
    beside = launch_file.with_suffix(".new")
    beside.write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items()))
    beside.replace(launch_file)
    units.reset_failed(ENGINE_UNIT)
    units.start_unit(ENGINE_UNIT, timeout_s=UNIT_JOB_MAX_S)


def stop(launch_id: str, *, container_ids: Collection[str], grace_s: float) -> str:
    """End every process of the launch, then its unit. Asked twice, waited for, then killed (FIELD.md 1.5)."""
    found = living(launch_id, container_ids)
    says = "no process of it was left"
    if found:
        ended = processes.end(found, grace_s=grace_s)
        says = f"{len(ended.terminated)} processes ended in {ended.seconds:.1f} s"
        if ended.killed:
            says += f", {len(ended.killed)} of them by SIGKILL"
        if ended.survivors:
            raise SparkdError(
                f"processes {ended.survivors} of launch {launch_id} survived SIGKILL", hint="reboot the node"
            )
    units.stop_unit(ENGINE_UNIT, timeout_s=UNIT_JOB_MAX_S + grace_s)
    late = living(launch_id, container_ids)  # a child that was born while the others were ended
    if late:
        processes.end(late, grace_s=1.0)
    removed = shm.remove(shm.leftovers(shm.segments(), older_than=time.time()))  # SIGKILL leaves what nobody unlinks
    if removed:
        says += f"; {len(removed)} segments that it left were removed"
    return f"launch {launch_id} ended: {says}"


def living(launch_id: str, container_ids: Collection[str] = ()) -> list[processes.EngineProcess]:
    """The launch's processes. One that took a title may have overwritten its environment, and an orphan has no parent
    to ask: in a container of ours it is still ours, for at most one launch lives on a node."""
    return [
        process
        for process in processes.engine_processes()
        if process.launch_id == launch_id
        or (process.launch_id is None and processes.is_titled(process) and process.container_id in container_ids)
    ]


def autopsy(log_file: Path, rank: int) -> Finding:
    """What the end of a launch means, from the tail of its log and the status of its unit.

    By a short-lived sparkd: the catalogue of incidents would stay in the daemon's memory, which a node under load lacks.
    """
    time.sleep(LOG_SETTLES_S)
    state = units.unit_state(ENGINE_UNIT)
    exited, killed = state.exec_main_code == 1, state.exec_main_code in (2, 3)  # CLD_EXITED; CLD_KILLED, CLD_DUMPED
    argv = [*ourselves.PROGRAM, "autopsy", str(log_file), "--rank", str(rank)]
    if exited or killed:
        argv += ["--status" if exited else "--signal", str(state.exec_main_status)]
    try:
        return Finding.model_validate_json(
            run(argv, timeout_s=AUTOPSY_MAX_S, check=True, env=ourselves.environment()).stdout
        )
    except (SparkdError, ValidationError) as error:
        log.warning("nobody could say what the engine died of: %s", error)
        says = f"the engine ended ({state.says}), and its log could not be read for a reason"
        return bad("engine.lost", says, cure=Cure.RELAUNCH, remedy="sparkd logs; journalctl -k")


def keep_newest(directory: Path, count: int) -> None:
    """One log file a launch; the oldest go."""
    files = sorted(directory.glob("*.log"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files[count:]:
        file.unlink(missing_ok=True)
