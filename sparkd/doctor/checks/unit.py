"""Layer unit: does systemd start what it should, and does nobody else start it too?"""

from __future__ import annotations

import pwd
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from sparkd.doctor.check import Answers, Gate, cannot_tell, check, doubtful, no, yes
from sparkd.doctor.checks import process
from sparkd.doctor.facts import AGENT, Facts, container, engine_processes, fact, launch_id, unit_state
from sparkd.doctor.last_boot import last_boot as last_boot  # declared beside what it reads; told with the units
from sparkd.host import execstart, supervisors, units
from sparkd.host.clock import monotonic
from sparkd.host.processes import is_engine_proper
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Layer, Who
from sparkd.model.redact import redact

ENGINE, READY = "sparkd-engine.service", "sparkd-ready.service"
OUR_UNITS = (AGENT, ENGINE)
OUR_DROP_INS = ("254-restart-steps.conf",)
COMPOSE_LABEL = "com.docker.compose.project"

START_SETTLES_S = 120  # from a unit's start until its engine must be seen
LOAD_MAX_S = 900  # a cold start takes 6 to 15 minutes on a GB10, the first after a change of topology 36
LOOPING_RESTARTS = 3
LOOPING_S = 60  # a unit that systemd has restarted several times and that has run no longer is in a loop
WAITING_KINDS = ("notify", "notify-reload", "forking", "oneshot")  # to systemd these start until they are ready

# What a drop-in changes about how a unit works. The rest (descriptions, links, order) is nobody's trouble.
_CHANGES = re.compile(
    r"^[ \t]*((?:Exec\w+|Restart\w*|Environment\w*|PassEnvironment|UnsetEnvironment|User|Group|DynamicUser|Type|KillMode|"
    r"KillSignal|Timeout\w+|Watchdog\w+|RuntimeMaxSec|Memory\w+|TasksMax|CPU\w+|Limit\w+|OOM\w+|Protect\w+|Private\w+|"
    r"Read\w+Paths|Inaccessible\w+|Capability\w+|Ambient\w+|SystemCall\w+|Restrict\w+|IPAddress\w+|Device\w+|"
    r"NoNewPrivileges|BindsTo|Requires|Requisite|PartOf|Conflicts|Condition\w+|Assert\w+|LoadCredential\w*)\s*=.*?)\s*$",
    re.MULTILINE,
)


# --- facts ----------------------------------------------------------------------------------------


def unit_names(facts: Facts) -> list[str]:
    """Ours and those of the operator's own that the configuration names for this node."""
    return [*OUR_UNITS, *facts.operator_units]


def _installed(facts: Facts) -> Iterator[units.UnitState]:
    for name in unit_names(facts):
        state = unit_state(facts, name)
        if state.load_state != "not-found":
            yield state


def _drivers(facts: Facts) -> Iterator[units.UnitState]:
    """Those of the operator's units that start the engine or drive its container."""
    for each in facts.operator_units:
        state, name = unit_state(facts, each), facts.plan.container.name
        if state.load_state == "loaded" and any(supervisors.drives(" ".join(argv), name) for argv in state.exec_start):
            yield state


def _age_s(state: units.UnitState) -> float | None:
    """How long it has been in its state."""
    return None if state.changed_at_s is None else max(0.0, monotonic() - state.changed_at_s)


# --- installed, and as it was installed -----------------------------------------------------------


@check(
    "unit.missing",
    layer=Layer.UNIT,
    question="Are sparkd's units and those that the configuration names installed?",
    how="asks systemd for each unit's LoadState",
    means="A unit that is not installed cannot be started; nothing will launch the engine.",
    remedy="run scripts/install again",
    sample="sparkd-engine.service is not installed",
    gate=Gate.HOST,
)
def missing(facts: Facts) -> Answers:
    names = unit_names(facts)
    absent = [name for name in names if unit_state(facts, name).load_state == "not-found"]
    for name in absent:
        if name in OUR_UNITS:
            yield no(f"{name} is not installed")
        else:
            yield no(
                f"{name} is named in the configuration but not installed on this node",
                remedy="remove it from operator_units, or install it",
            )
    if not absent:
        yield yes(f"{', '.join(names)} are installed")


@check(
    "unit.execstart-path",
    layer=Layer.UNIT,
    question="Does every program and script that the units start exist on this host?",
    how="reads ExecStart and ExecStartPre as systemd has loaded them, drop-ins included, and looks for each path",
    means="A path that exists nowhere is exit status 127 in a loop with an empty engine log: vLLM never started.",
    remedy="systemctl cat the unit; correct the path by a drop-in, then systemctl daemon-reload",
    sample="vllm-ds4-head.service: ExecStart runs /workspace/vllm-tp2-head.sh, which does not exist",
    gate=Gate.HOST,
    after=("unit.missing",),
)
def execstart_path(facts: Facts) -> Answers:
    for state in _installed(facts):
        yield from execstart.check_exec_paths(state, in_container=lambda container, path: None)


@check(
    "unit.execstart-container",
    layer=Layer.UNIT,
    question="Does every script that the units run by `docker exec` exist inside its container?",
    how="looks for the paths of `docker exec CONTAINER ...` commands in the running container",
    means="The script lived in the writable layer of a container that was made anew: exit status 127 in a loop.",
    remedy="put the script back, or let the unit run one that lies on the host",
    sample="vllm-ds4-head.service: ExecStart runs /workspace/vllm-tp2-head.sh, which is not in container vllm_ds4",
    gate=Gate.CONTAINER,
    after=("unit.missing", "unit.execstart-path", "docker.unreachable"),
)
def execstart_container(facts: Facts) -> Answers:
    """Its answers are called unit.execstart-path too: for a person it is one question, only asked at two times."""
    for state in _installed(facts):
        commands = (*state.exec_start_pre, *state.exec_start)
        if any(wanted.container for command in commands for wanted in execstart.wanted_paths(command)):
            yield from execstart.check_exec_paths(state, in_container=facts.docker.path_exists)


@check(
    "unit.needs-reload",
    layer=Layer.UNIT,
    question="Does systemd know the unit files as they are on disk?",
    how="NeedDaemonReload of each unit",
    means="Its files were changed and systemd was not told: it goes on with what it read, until a reload or a reboot brings the "
    "change into effect when nobody thinks of it.",
    remedy="systemctl daemon-reload",
    sample="vllm-ds4-head.service was changed on disk since systemd read it",
    after=("unit.missing",),
)
def needs_reload(facts: Facts) -> Answers:
    states = list(_installed(facts))
    changed = [state for state in states if state.needs_reload]
    for state in changed:
        evidence = tuple(path for path in (state.fragment_path, *state.drop_ins) if path)
        yield doubtful(f"{state.name} was changed on disk since systemd read it", evidence=evidence)
    if states and not changed:
        yield yes("systemd has read the units as they are on disk")


@check(
    "unit.drop-ins",
    layer=Layer.UNIT,
    question="Do sparkd's units work as sparkd installed them?",
    how="DropInPaths of sparkd.service and sparkd-engine.service, and what the files set",
    means="A drop-in that sparkd did not install changes what is run, whether it is restarted, or what it may do.",
    remedy="systemctl cat the unit; remove the drop-in with `systemctl revert`, where nobody can say why it is there",
    sample="sparkd-engine.service: /etc/systemd/system/sparkd-engine.service.d/override.conf sets Restart=always",
    after=("unit.missing",),
)
def drop_ins(facts: Facts) -> Answers:
    found = False
    for name in OUR_UNITS:
        for path in unit_state(facts, name).drop_ins:
            if Path(path).name in OUR_DROP_INS:
                continue
            changes = changed_settings(Path(path).read_text(encoding="utf-8", errors="replace"))
            if changes:
                found = True
                more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
                evidence = tuple(f"{path}: {change}" for change in changes)
                remedy = f"systemctl cat {name}; where nobody can say why it is there: systemctl revert {name}"
                says = f"{name}: {path} sets {changes[0]}{more}"
                stranger = next(filter(None, map(_unknown_user, changes)), None)
                if stranger:
                    yield no(f"{says}, and there is no {stranger}", evidence=evidence, remedy=remedy)
                else:
                    yield doubtful(says, evidence=evidence, remedy=remedy)
    if not found and any(unit_state(facts, name).exists for name in OUR_UNITS):
        yield yes("no drop-in changes how sparkd's units work")


def _unknown_user(change: str) -> str | None:
    """ "user tom" where the unit is to run as somebody who does not exist: it then ends with 217/USER."""
    key, _, name = change.partition("=")
    try:
        if key == "User" and name and not name.isdecimal():
            pwd.getpwnam(name)
    except KeyError:
        return f"user {name}"
    return None


def changed_settings(text: str) -> list[str]:
    """Pure. The settings of a drop-in that change how the unit works; of an environment the names alone."""
    found = []
    for setting in _CHANGES.findall(text):
        key, _, value = setting.partition("=")
        if key.strip() == "Environment":
            value = " ".join(f"{word.partition('=')[0].strip(chr(34))}=..." for word in value.split() if "=" in word)
        found.append(f"{key.strip()}={value.strip()}")
    return found


# --- who else, and whether at all -----------------------------------------------------------------


@check(
    "unit.double-supervision",
    layer=Layer.UNIT,
    question="Does sparkd alone start and stop the engine?",
    how="unit files, users' units and cron tables that name the container or run `vllm serve`; compose labels of the container",
    means="Two supervisors start two engines, or one ends what the other has started: EADDRINUSE, a rank of another launch, a "
    "restart of one node alone.",
    remedy="systemctl disable --now the other one",
    sample="vllm-ds4-head.service (active) drives container vllm_ds4 too: ExecStart=/usr/bin/docker exec vllm_ds4 ...",
    after=("unit.missing",),
)
def double_supervision(facts: Facts) -> Answers:
    if not _in_charge(facts):
        return
    name = facts.plan.container.name
    known = {*OUR_UNITS, READY}
    rivals = 0
    for one in starters(facts):
        how = rivalry(facts, one) if one.name not in known else None
        if how is None:
            continue
        rivals += 1
        remedy = f"systemctl disable --now {one.name}" if one.kind == "unit" else f"take it out of {one.path}"
        says = f"{one.name} ({how}) drives container {name} too: {redact(one.line)}"
        listed = one.name in facts.operator_units
        yield (doubtful if listed or one.kind != "unit" else no)(says, evidence=(str(one.path),), remedy=remedy)
    project = _compose_project(facts)
    if project:
        rivals += 1
        remedy = f"docker compose -p {project} down; sparkd makes its own container from the plan"
        yield doubtful(f"container {name} belongs to the compose project {project}", remedy=remedy)
    if not rivals:
        yield yes("nothing else drives the engine's container")


@fact
def starters(facts: Facts) -> tuple[supervisors.Starter, ...]:
    """Everything on this host whose files say that it drives the container."""
    return tuple(supervisors.starters(facts.plan.container.name))


def _in_charge(facts: Facts) -> bool:
    """Whether sparkd starts the engine here at all, now or after a boot: else another one is the only one."""
    agent = unit_state(facts, AGENT)
    return agent.exists and (agent.active_state in ("active", "activating") or agent.file_state == "enabled")


def rivalry(facts: Facts, one: supervisors.Starter) -> str | None:
    """How it would come to act: it runs, it is started at boot, a timer does. None: it lies there and nobody starts it."""
    if one.kind == "cron":
        return "cron"
    if one.kind == "user unit":
        return "a user's unit" if one.enabled else None
    if "@" in one.name:
        return None  # a template: its instances are units of their own
    state = unit_state(facts, one.name)
    if state.active_state in ("active", "activating", "reloading"):
        return state.active_state
    if state.file_state.startswith("enabled"):
        return "enabled: started at each boot"
    timer = unit_state(facts, one.name.removesuffix(".service") + ".timer")
    return "by its timer" if timer.active_state == "active" else None


def _compose_project(facts: Facts) -> str | None:
    try:
        state = container(facts)
    except SparkdError:
        return None
    return state.labels.get(COMPOSE_LABEL) if state is not None else None


@check(
    "unit.engine-gone",
    layer=Layer.UNIT,
    question="Is there an engine behind every unit that says so?",
    how="units that are active against the engine processes in /proc",
    means="The engine died and its unit does not know: a oneshot stays `active (exited)`, a client hangs, an agent "
    "still believes in it. Nothing will start it again.",
    remedy="sparkd restart; for a unit of your own: systemctl restart it",
    sample="vllm-ds4-head.service is active (exited), and no engine process lives on this node",
    symptom=True,
    after=("unit.missing", "unit.execstart-path", "docker.unreachable"),
)
def engine_gone(facts: Facts) -> Answers:
    engines = [one for one in engine_processes(facts) if is_engine_proper(one)]
    ours, state = process.living(facts), unit_state(facts, ENGINE)
    wrong = False
    if believed(state.active_state, _age_s(state), facts.status) and not ours:
        if any(one.launch_id is None for one in engines) and not process.is_root():
            yield cannot_tell(
                "whether the engine is of the living launch: only root may read it", remedy="sudo sparkd doctor"
            )
            return
        wrong = True
        said = f"phase {facts.phase}" if facts.status else f"{ENGINE} is {state.says}"
        yield no(f"{said}, and no engine process of the launch lives on this node")
    for rival in _drivers(facts):
        if rival.active_state == "active" and (_age_s(rival) or 0) > START_SETTLES_S and not engines:
            wrong = True
            remedy = f"systemctl restart {rival.name}"
            yield no(f"{rival.name} is {rival.says}, and no engine process lives on this node", remedy=remedy)
    if not wrong and ours:
        yield yes(f"{len(ours)} engine processes behind {ENGINE}")


def believed(active_state: str, age_s: float | None, status: Mapping[str, object] | None) -> bool:
    """Pure. Whether an engine must be there: by the daemon's word, by the unit's state where there is no daemon."""
    if status is not None:
        return status.get("phase") in process.SETTLED
    return active_state == "active" and (age_s or 0) > START_SETTLES_S


@check(
    "unit.not-running",
    layer=Layer.UNIT,
    question="Does sparkd run on this node?",
    how="ActiveState of sparkd.service, and whether an engine lives without it",
    means="Nothing starts the engine, watches it or relaunches it; the other node waits for this one.",
    remedy="systemctl start sparkd",
    sample="sparkd.service is inactive (dead)",
    after=("unit.missing", "unit.failed", "unit.restart-loop"),
)
def not_running(facts: Facts) -> Answers:
    agent = unit_state(facts, AGENT)
    if facts.calm or not agent.exists:
        return
    if facts.status is not None or agent.active_state != "inactive":  # active and silent, or failed: other checks tell
        yield yes(f"{AGENT} is {agent.says}")
    elif any(one.launch_id == launch_id(facts) for one in engine_processes(facts) if one.launch_id):
        yield doubtful(f"{AGENT} is {agent.says}; the engine lives on without its supervisor")
    else:
        yield no(f"{AGENT} is {agent.says}")


@check(
    "unit.disabled",
    layer=Layer.UNIT,
    question="Will sparkd come back after a reboot?",
    how="UnitFileState of sparkd.service",
    means="After a power cut this node stays silent, and the pair waits for it.",
    remedy="systemctl enable sparkd.service",
    sample="sparkd.service is disabled: a reboot leaves this node without it",
    after=("unit.missing",),
)
def disabled(facts: Facts) -> Answers:
    agent = unit_state(facts, AGENT)
    if not agent.exists:
        return
    if agent.file_state in ("disabled", "masked", "masked-runtime", "enabled-runtime"):
        yield doubtful(f"{AGENT} is {agent.file_state}: a reboot leaves this node without it")
    else:
        yield yes(f"{AGENT} is {agent.file_state or 'started by what made it'}")


# --- units of the operator's own ------------------------------------------------------------------


@check(
    "unit.start-timeout",
    layer=Layer.UNIT,
    question="Does systemd give the operator's units as long as a cold start takes?",
    how="Type and TimeoutStartSec of the units that the configuration names and that start the engine",
    means="systemd ends a healthy start that is still loading (`start operation timed out. Terminating.`), and begins it anew.",
    remedy="systemctl edit the unit: TimeoutStartSec=infinity",
    sample="vllm-ds4-head.service (Type=notify) is given 90 s to start, a cold start takes up to 15 minutes",
    after=("unit.missing",),
)
def start_timeout(facts: Facts) -> Answers:
    for state in _drivers(facts):
        given = state.start_max_s
        if state.kind in WAITING_KINDS and given is not None and given < LOAD_MAX_S:
            says = (
                f"{state.name} (Type={state.kind}) is given {given:.0f} s to start, a cold start takes up to 15 minutes"
            )
            yield doubtful(says, remedy=f"systemctl edit {state.name}: TimeoutStartSec=infinity")
        else:
            yield yes(f"{state.name} is given {'as long as it takes' if given is None else f'{given:.0f} s'} to start")


@check(
    "unit.link-order",
    layer=Layer.UNIT,
    question="Do the operator's units wait for the link before they start the engine?",
    how="After= and ExecStartPre= of the units that the configuration names and that start the engine",
    means="network-online.target is reached without the address of the link: after a boot the engine binds to nothing.",
    remedy="systemctl edit the unit: After=network-online.target, and an ExecStartPre= that waits for the link's address",
    sample="vllm-ds4-head.service does not wait for bond0",
    after=("unit.missing",),
)
def link_order(facts: Facts) -> Answers:
    if facts.plan.size == 1:
        return
    cluster = facts.configured.cluster
    words = (cluster.link.interface, *(str(node.link_address) for node in cluster.nodes), "sparkd", "wait-online")
    for state in _drivers(facts):
        waits = any(word in " ".join(argv) for argv in state.exec_start_pre for word in words)
        ordered = any(f"-{cluster.link.interface}.device" in unit or unit.startswith("sparkd") for unit in state.after)
        again = state.restart not in ("", "no") and "network-online.target" in state.after
        if waits or ordered or again:
            yield yes(
                f"{state.name} {'waits for the link' if waits or ordered else 'tries again until the link is there'}"
            )
        else:
            yield doubtful(f"{state.name} does not wait for {cluster.link.interface}")


@check(
    "unit.stop-incomplete",
    layer=Layer.UNIT,
    question="Does stopping the operator's units stop the engine?",
    how="ExecStart= with `docker exec`, and ExecStop=, of the units that the configuration names",
    means="systemd ends the Docker client alone: the engine goes on in its container, holds memory and port, and meets the next "
    "start.",
    remedy="systemctl edit the unit: ExecStop= that ends every engine process, VLLM::* too (docker restart the container does)",
    sample="vllm-ds4-head.service runs the engine by `docker exec` and has no ExecStop=",
    after=("unit.missing",),
)
def stop_incomplete(facts: Facts) -> Answers:
    for state in _drivers(facts):
        execs = any("exec" in argv and argv[0].endswith("docker") for argv in state.exec_start)
        if execs and not state.exec_stop:
            yield doubtful(f"{state.name} runs the engine by `docker exec` and has no ExecStop=")
        else:
            yield yes(f"{state.name} has an ExecStop=" if state.exec_stop else f"{state.name} runs the engine itself")


# --- symptoms -------------------------------------------------------------------------------------


@check(
    "unit.start-limit",
    layer=Layer.UNIT,
    question="Does systemd still try to start the units?",
    how="Result of each unit: start-limit-hit, or failed for good after several restarts",
    means="It failed so often in a row that systemd gave up. The first failure is the cause, this is what came of it.",
    remedy="mend the first failure (journalctl -u the unit), then systemctl reset-failed and start it, the worker's first",
    sample="vllm-ds4-worker.service was started too often in a row, systemd has given up",
    who=Who.SPARKD,
    symptom=True,
    after=("unit.missing",),
)
def start_limit(facts: Facts) -> Answers:
    states = list(_installed(facts))
    given_up = [state for state in states if has_given_up(state)]
    for state in given_up:
        remedy = (
            f"journalctl -u {state.name} -n 50; then systemctl reset-failed {state.name}; systemctl start {state.name}"
        )
        says = f"{state.name} was started too often in a row, systemd has given up"
        yield no(says, evidence=(f"{state.name} is {state.says}, restarted {state.n_restarts} times",), remedy=remedy)
    if states and not given_up:
        yield yes("systemd has given up no unit")


def has_given_up(state: units.UnitState) -> bool:
    """Pure. After restarts of its own systemd keeps the result of the last run, and the count tells."""
    if state.result == "start-limit-hit":
        return True
    return state.active_state == "failed" and state.restart not in ("", "no") and state.n_restarts >= LOOPING_RESTARTS


@check(
    "unit.failed",
    layer=Layer.UNIT,
    question="Has no unit failed?",
    how="ActiveState and Result of each unit",
    means="Its last run ended badly. Exit status 127 is a missing file, 137 a SIGKILL, 203 a program that cannot be executed.",
    remedy="journalctl -u the unit -n 50; mend it, then systemctl reset-failed and start it",
    sample="vllm-ds4-head.service is failed (failed), Result: exit-code, status=127",
    symptom=True,
    after=("unit.missing", "unit.start-limit"),
)
def failed(facts: Facts) -> Answers:
    states = list(_installed(facts))
    bad = [state for state in states if state.active_state == "failed"]
    for state in bad:
        remedy = f"journalctl -u {state.name} -n 50; then systemctl reset-failed {state.name}"
        yield no(f"{state.name} is {state.says}", remedy=remedy)
    if states and not bad:
        yield yes("no unit has failed")


@check(
    "unit.restart-loop",
    layer=Layer.UNIT,
    question="Does no unit start again and again?",
    how="NRestarts of each unit, and how long it has been in its state",
    means="It ends soon after each start, and systemd starts it again: the reason stands in its journal, each time.",
    remedy="journalctl -u the unit -n 50",
    sample="vllm-ds4-head.service has been restarted 41 times, and waits for the next",
    symptom=True,
    after=("unit.missing", "unit.execstart-path"),
)
def restart_loop(facts: Facts) -> Answers:
    states = list(_installed(facts))
    loops = [state for state in states if is_looping(state, _age_s(state))]
    for state in loops:
        now = "waits for the next" if state.sub_state == "auto-restart" else f"has run for {_age_s(state) or 0:.0f} s"
        says = f"{state.name} has been restarted {state.n_restarts} times, and {now}"
        yield no(says, remedy=f"journalctl -u {state.name} -n 50")
    if states and not loops:
        yield yes("no unit is in a loop of restarts")


def is_looping(state: units.UnitState, age_s: float | None) -> bool:
    """Pure. systemd counts restarts since a person last started it, so that many alone may be spread over months."""
    if state.n_restarts < LOOPING_RESTARTS or state.active_state == "failed":
        return False
    return state.sub_state == "auto-restart" or (age_s is not None and age_s < LOOPING_S)
