"""Layer unit: does systemd start what it should, and does nobody else start it too?"""

from __future__ import annotations

from collections.abc import Iterator

from sparkd.doctor.check import Answers, Gate, check, no, yes
from sparkd.doctor.facts import Facts, fact
from sparkd.host import execstart, units
from sparkd.model.finding import Layer

OUR_UNITS = ("sparkd.service", "sparkd-engine.service")


@fact
def unit(facts: Facts, name: str) -> units.UnitState:
    """The unit as systemd has it. UnreachableError where systemd does not answer."""
    return units.unit_state(name)


def unit_names(facts: Facts) -> list[str]:
    """Ours and those of the operator's own that the configuration names for this node."""
    if facts.settings is None:
        return [*OUR_UNITS]
    node = facts.node
    return [*OUR_UNITS, *(each.name for each in facts.settings.operator_units if not each.nodes or node in each.nodes)]


def _installed(facts: Facts) -> Iterator[units.UnitState]:
    for name in unit_names(facts):
        state = unit(facts, name)
        if state.load_state != "not-found":
            yield state


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
    absent = [name for name in names if unit(facts, name).load_state == "not-found"]
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
        yield from execstart.check_exec_paths(state, in_container=facts.docker.path_exists)
