"""Checks of layer unit: what systemd would start, who else would, and whether anything is behind it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from checks_facts import asked, container, engine, facts, given, serving, unit, verdicts

from sparkd.doctor import facts as shared
from sparkd.doctor.checks import process
from sparkd.doctor.checks import unit as checks
from sparkd.doctor.facts import Facts
from sparkd.host import supervisors
from sparkd.host.clock import monotonic
from sparkd.host.processes import EngineProcess
from sparkd.host.units import UnitState, parse_state
from sparkd.model.finding import Who

HEAD = "vllm-ds4-head.service"
OPERATORS = {"operator_units": [{"name": HEAD}]}
EXEC = (("/usr/bin/docker", "exec", "vllm_ds4", "bash", "/workspace/vllm-head.sh"),)  # as in the field report


def node(
    tmp_path: Path,
    *others: UnitState,
    agent: Mapping[str, Any] | None = None,
    engine_unit: Mapping[str, Any] | None = None,
    engines: tuple[EngineProcess, ...] = (engine(),),
    status: Mapping[str, Any] | None = None,
    **more: Any,
) -> Facts:
    here = facts(tmp_path, status=serving() if status is None else status or None, **more)
    given(here, checks.unit_state, unit(**{"name": checks.AGENT, "file_state": "enabled"} | dict(agent or {})), checks.AGENT)
    given(here, checks.unit_state, unit(**{"name": checks.ENGINE} | dict(engine_unit or {})), checks.ENGINE)
    for other in others:
        given(here, checks.unit_state, other, other.name)
    given(here, shared.engine_processes, engines)
    given(here, shared.container, container())
    return here


def operators(**changes: Any) -> UnitState:
    fields: dict[str, Any] = {"exec_start": EXEC, "exec_stop": (("/usr/bin/docker", "restart", "vllm_ds4"),)}
    return unit(HEAD, **fields | changes)


def test_a_healthy_node_is_no_trouble(tmp_path: Path) -> None:
    here = node(tmp_path)
    for each in (checks.missing, checks.needs_reload, checks.drop_ins, checks.engine_gone, checks.not_running):
        assert verdicts(each, here) == ["good"], each.id
    for each in (checks.disabled, checks.start_limit, checks.failed, checks.restart_loop):
        assert verdicts(each, here) == ["good"], each.id


def test_files_that_systemd_has_not_read(tmp_path: Path) -> None:
    found = asked(checks.needs_reload, node(tmp_path, engine_unit={"needs_reload": True, "fragment_path": "/e"}))
    assert found.says == "sparkd-engine.service was changed on disk since systemd read it" and found.evidence == ("/e",)


def test_a_foreign_drop_in_is_told_without_its_secrets(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "254-restart-steps.conf", tmp_path / "override.conf"
    ours.write_text("[Service]\nRestartSteps=4\n")
    theirs.write_text("[Service]\n# Restart=no\nRestart=always\nEnvironment=TOKEN=hunter2 B=c\nDescription=x\n")
    here = node(tmp_path, agent={"drop_ins": (str(ours),)}, engine_unit={"drop_ins": (str(theirs),)})
    found = asked(checks.drop_ins, here)
    assert found.verdict.value == "warning"
    assert found.says == f"sparkd-engine.service: {theirs} sets Restart=always and 1 more"
    assert found.evidence[1] == f"{theirs}: Environment=TOKEN=... B=..." and "hunter2" not in repr(found)
    theirs.write_text("[Unit]\nDescription=mine\n")
    assert verdicts(checks.drop_ins, here) == ["good"]


def rival(kind: str = "unit", name: str = HEAD, **changes: Any) -> supervisors.Starter:
    fields: dict[str, Any] = {"path": Path("/etc/systemd/system") / name, "line": "ExecStart=docker start vllm_ds4"}
    return supervisors.Starter(kind, name, **fields | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "how"),
    [
        (operators(), "active"),
        (operators(active_state="inactive", sub_state="dead", file_state="enabled"), "enabled: started at each boot"),
        (operators(active_state="inactive", sub_state="dead", file_state="disabled"), None),
    ],
)
def test_a_unit_counts_as_a_rival_where_something_starts_it(tmp_path: Path, state: UnitState, how: str | None) -> None:
    timer = UnitState(name=HEAD.replace(".service", ".timer"), load_state="not-found", active_state="", sub_state="")
    assert checks.rivalry(node(tmp_path, state, timer), rival()) == how


def test_a_timer_a_cron_table_and_a_user_start_it_too(tmp_path: Path) -> None:
    idle = operators(active_state="inactive", sub_state="dead", file_state="static")
    here = node(tmp_path, idle, unit(HEAD.replace(".service", ".timer")))
    assert checks.rivalry(here, rival()) == "by its timer"
    assert checks.rivalry(here, rival("cron", "/etc/cron.d/vllm")) == "cron"
    assert checks.rivalry(here, rival("user unit", enabled=False)) is None


def test_another_supervisor_is_named_with_what_it_does(tmp_path: Path) -> None:
    here = node(tmp_path, operators())
    given(here, checks.starters, (rival(), rival(name=checks.ENGINE)))
    found = asked(checks.double_supervision, here)
    assert found.is_bad and found.remedy == f"systemctl disable --now {HEAD}"
    assert found.says == f"{HEAD} (active) drives container vllm_ds4 too: ExecStart=docker start vllm_ds4"
    listed = node(tmp_path, operators(), settings=OPERATORS)  # the configuration knows of it
    given(listed, checks.starters, (rival(),))
    assert verdicts(checks.double_supervision, listed) == ["warning"]


def test_a_compose_project_that_owns_the_container(tmp_path: Path) -> None:
    here = node(tmp_path)
    given(here, shared.container, container(labels={checks.COMPOSE_LABEL: "models"}))
    assert "compose project models" in " ".join(one.says for one in checks.double_supervision.asked(here))


def test_where_sparkd_is_not_in_charge_the_other_one_is_alone(tmp_path: Path) -> None:
    here = node(tmp_path, agent={"active_state": "inactive", "sub_state": "dead", "file_state": "disabled"})
    assert verdicts(checks.double_supervision, here) == []


@pytest.mark.parametrize(
    ("active", "age_s", "status", "expected"),
    [
        ("active", 5, {"phase": "loading"}, True),
        ("inactive", 5, {"phase": "serving"}, True),
        ("active", 500, {"phase": "launching"}, False),
        ("active", 500, {"phase": "backoff"}, False),
        ("active", 500, None, True),
        ("active", 5, None, False),
        ("inactive", 500, None, False),
    ],
)
def test_when_an_engine_must_be_there(
    active: str, age_s: float, status: Mapping[str, object] | None, expected: bool
) -> None:
    assert checks.believed(active, age_s, status) is expected


def test_an_engine_that_is_gone_under_its_unit(tmp_path: Path) -> None:
    found = asked(checks.engine_gone, node(tmp_path, engines=()))
    assert found.is_bad and found.symptom
    assert found.says == "phase serving, and no engine process of the launch lives on this node"


def test_a_oneshot_that_stays_active_over_a_dead_engine(tmp_path: Path) -> None:
    old = operators(sub_state="exited", changed_at_s=monotonic() - 3600)
    here = node(tmp_path, old, engines=(), status={"phase": "idle"}, settings=OPERATORS)
    assert (
        asked(checks.engine_gone, here).says == f"{HEAD} is active (exited), and no engine process lives on this node"
    )
    young = operators(sub_state="running", changed_at_s=monotonic() - 3)
    here = node(tmp_path, young, engines=(), status={"phase": "idle"}, settings=OPERATORS)
    assert verdicts(checks.engine_gone, here) == []


def test_a_node_without_its_agent(tmp_path: Path) -> None:
    stopped = {"active_state": "inactive", "sub_state": "dead"}
    assert (
        asked(checks.not_running, node(tmp_path, agent=stopped, status={})).says == "sparkd.service is inactive (dead)"
    )
    here = node(tmp_path, status={})
    assert asked(checks.not_running, here).verdict == "good", "one that runs and is silent is daemon.silent's"
    here.calm = True  # the daemon itself asks
    assert verdicts(checks.not_running, here) == []


def test_a_disabled_agent_does_not_come_back(tmp_path: Path) -> None:
    found = asked(checks.disabled, node(tmp_path, agent={"file_state": "disabled"}))
    assert found.says == "sparkd.service is disabled: a reboot leaves this node without it"


@pytest.mark.parametrize(
    ("kind", "given_s", "verdict"),
    [("simple", 90.0, "good"), ("notify", 90.0, "warning"), ("oneshot", None, "good"), ("oneshot", 900.0, "good")],
)
def test_the_time_that_a_start_is_given(tmp_path: Path, kind: str, given_s: float | None, verdict: str) -> None:
    state = operators(kind=kind, start_max_s=given_s)
    assert verdicts(checks.start_timeout, node(tmp_path, state, settings=OPERATORS)) == [verdict]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "warning"),
        ({"after": ("network-online.target",)}, "warning"),
        ({"after": ("network-online.target",), "restart": "on-failure"}, "good"),
        ({"exec_start_pre": (("/usr/local/bin/wait-for", "10.0.0.2"),)}, "good"),
        ({"after": ("sys-subsystem-net-devices-bond0.device",)}, "good"),
    ],
)
def test_waiting_for_the_link(tmp_path: Path, changes: dict[str, Any], verdict: str) -> None:
    here = node(tmp_path, operators(**changes), settings=OPERATORS)
    assert verdicts(checks.link_order, here) == [verdict]


def test_a_unit_whose_stop_leaves_the_engine(tmp_path: Path) -> None:
    here = node(tmp_path, operators(exec_stop=()), settings=OPERATORS)
    assert asked(checks.stop_incomplete, here).says == f"{HEAD} runs the engine by `docker exec` and has no ExecStop="
    assert verdicts(checks.stop_incomplete, node(tmp_path, operators(), settings=OPERATORS)) == ["good"]


def test_failures_are_symptoms_and_a_start_limit_is_sparkds_to_clear(tmp_path: Path) -> None:
    dead = {"active_state": "failed", "sub_state": "failed", "exec_main_code": 1, "exec_main_status": 127}
    found = asked(checks.failed, node(tmp_path, engine_unit=dead | {"result": "exit-code"}))
    assert found.symptom and found.says == "sparkd-engine.service is failed (failed), Result: exit-code, status=127"
    limited = asked(checks.start_limit, node(tmp_path, engine_unit=dead | {"result": "start-limit-hit"}))
    assert limited.symptom and limited.who is Who.SPARKD


@pytest.mark.parametrize(
    ("restarts", "sub", "age_s", "looping"),
    [(41, "auto-restart", 20, True), (41, "running", 5, True), (41, "running", 3600, False), (2, "running", 5, False)],
)
def test_a_loop_is_many_restarts_and_a_short_life(restarts: int, sub: str, age_s: float, looping: bool) -> None:
    assert checks.is_looping(unit(HEAD, sub_state=sub, n_restarts=restarts), age_s) is looping


def test_systemd_has_given_up_after_restarts_of_its_own(tmp_path: Path) -> None:
    """The result is then the last run's; a loop it is no more, and that it failed is told with it."""
    spent = {"active_state": "failed", "sub_state": "failed", "restart": "on-failure", "n_restarts": 5}
    here = node(tmp_path, operators(result="exit-code", **spent), settings=OPERATORS)
    found = asked(checks.start_limit, here)
    assert found.verdict == "bad" and "given up" in found.says and "restarted 5 times" in found.evidence[0]
    assert verdicts(checks.restart_loop, here) == ["good"]
    assert not checks.has_given_up(unit(HEAD, active_state="failed", restart="no", n_restarts=0))


def test_a_drop_in_with_a_user_who_does_not_exist(tmp_path: Path) -> None:
    own = tmp_path / "own.conf"
    for user, verdict in (("root", "warning"), ("nobody-of-here", "bad"), ("1000", "warning")):
        own.write_text(f"[Service]\nUser={user}\n")
        found = asked(checks.drop_ins, node(tmp_path, engine_unit={"drop_ins": (str(own),)}))
        assert found.verdict == verdict, user
    own.write_text("[Service]\nUser=nobody-of-here\n")
    assert (
        "there is no user nobody-of-here"
        in asked(checks.drop_ins, node(tmp_path, engine_unit={"drop_ins": (str(own),)})).says
    )


def test_what_systemd_tells_of_a_start(tmp_path: Path) -> None:
    state = parse_state(
        HEAD,
        {b"UnitFileState": b"enabled", b"StateChangeTimestampMonotonic": 5_000_000, b"After": [b"docker.service"]},
        {
            b"Type": b"notify",
            b"TimeoutStartUSec": 90_000_000,
            b"RemainAfterExit": True,
            b"ExecStop": [(b"/bin/true", [b"/bin/true", b"x"], False, 0, 0, 0, 0, 0, 0, 0)],
        },
    )
    assert (state.file_state, state.kind, state.start_max_s, state.remains) == ("enabled", "notify", 90.0, True)
    assert (state.changed_at_s, state.after, state.exec_stop) == (5.0, ("docker.service",), (("/bin/true", "x"),))
    endless = parse_state(HEAD, {}, {b"TimeoutStartUSec": 2**64 - 1})
    assert (endless.start_max_s, endless.changed_at_s) == (None, None)


def test_the_living_launch_is_what_the_daemon_names(tmp_path: Path) -> None:
    here = node(tmp_path, engines=(engine(1), engine(2, launch_id="0f0f0f0f-1"), engine(3, "python3")))
    assert [one.pid for one in process.living(here)] == [1]
