"""Stage, start, stop, and look at what is left: the engine's unit and what it runs."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import ValidationError

from sparkd.agent import ourselves
from sparkd.engine import scripts
from sparkd.engine.api_key import read as read_api_key
from sparkd.engine.container import Docker
from sparkd.host import processes, shm, units
from sparkd.host.files import write_atomically
from sparkd.host.run import run
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Cure, Finding, FindingError, bad
from sparkd.model.plan import Plan

log = logging.getLogger(__name__)

_PLAIN = re.compile(r"[A-Za-z0-9/_][A-Za-z0-9/_.:@+-]*")
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
        return read_api_key(path)
    except SparkdError as error:
        remedy = f"write the key into {path}, mode 0600: one word"
        raise FindingError(bad("endpoint.key-file", error.message, cure=Cure.PERSON, remedy=remedy)) from error


def stage(plan: Plan, docker: Docker) -> str:
    """The script from its file, read back and compared, and parsed by the container's own bash."""
    staged = scripts.stage(docker, plan.container.name, plan, api_key=api_key(plan))
    syntax = scripts.check_syntax(docker, plan.container.name, staged.path)
    if syntax is not None and syntax.is_bad:
        raise FindingError(syntax)
    how = "written" if staged.written else "already there"
    return f"{staged.path} {how}, read back equal (sha256 {staged.sha256[:12]})"


def start(plan: Plan, launch_id: str, launch_file: Path, log_file: Path) -> str:
    """Write what the unit reads, and start it. The launch id is an argument of the script, not a part of it.

    Returns what is wrong with the log: an engine that is not heard serves all the same.
    """
    trouble = _empty_log(log_file)
    variables = {
        "SPARKD_CONTAINER": plan.container.name,
        "SPARKD_SCRIPT": plan.script_path,
        "SPARKD_LAUNCH_ID": launch_id,
        "SPARKD_LOG": str(log_file),
    }
    try:
        write_atomically(launch_file, launch_text(variables))
    except OSError as error:
        raise SparkdError(f"cannot be written: {error.strerror}", where=str(launch_file), hint="df -h /run") from error
    units.reset_failed(ENGINE_UNIT)
    units.start_unit(ENGINE_UNIT, timeout_s=UNIT_JOB_MAX_S)
    return trouble


def launch_text(variables: Mapping[str, str]) -> str:
    """systemd, bash and ourselves read it, and quote differently: so nothing goes in that any of them would quote.

    Configuration gives no other characters; a directory of an administrator's own might. Raises SparkdError.
    """
    for name, value in variables.items():
        if not _PLAIN.fullmatch(value):
            raise SparkdError(f"{name}={value!r} has characters that the engine's unit cannot be told")
    return "".join(f"{name}={value}\n" for name, value in variables.items())


def _empty_log(log_file: Path) -> str:
    """A node that lost its state may give a number again: no autopsy reads an older log."""
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        log_file.parent.chmod(LOG_DIRECTORY_MODE)
        if not log_file.is_file():
            log_file.unlink(missing_ok=True)  # a FIFO, a link into nowhere: opening it would wait, or write elsewhere
        log_file.write_bytes(b"")
        log_file.chmod(LOG_MODE)
    except OSError as error:
        with contextlib.suppress(OSError):
            log_file.unlink(missing_ok=True)
        return f"its log {log_file} cannot be written: {error.strerror}"
    return ""


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
    removed = shm.remove(shm.leftovers(shm.segments()))  # SIGKILL leaves what nobody unlinks
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


def keep_newest(directory: Path, count: int, current: Path) -> None:
    """One log file a launch; the oldest go, never the one that is being written. Raises nothing: no launch fails for it."""
    with contextlib.suppress(OSError):
        others = [file for file in directory.glob("*.log") if file != current]
        for file in sorted(others, key=lambda file: _age(file, current), reverse=True)[max(0, count - 1) :]:
            file.unlink(missing_ok=True)
        for file in directory.glob("*.log.*"):  # what a log that grew too large was relieved of (engine_log.py)
            if not file.with_name(file.name.partition(".log.")[0] + ".log").exists():
                file.unlink(missing_ok=True)


def _age(log_file: Path, current: Path) -> tuple[int, float]:
    """Grows with the launches. Those of this boot by their numbers, for a clock may be set back; older ones by their times,
    for a node that lost its state begins to count anew."""
    boot, _, epoch = log_file.stem.rpartition("-")
    of_this_boot = boot == current.stem.rpartition("-")[0] and epoch.isdecimal()
    return (int(epoch) if of_this_boot else -1, log_file.stat().st_mtime)
