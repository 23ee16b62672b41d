"""A whole node examined: every part keeps its limit, and what is missing is told; then the nodes seen together."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from sparkd.doctor import examine
from sparkd.doctor.facts import Facts
from sparkd.engine.container import Docker
from sparkd.host.clock import monotonic
from sparkd.host.paths import Paths
from sparkd.model.diagnosis import Boundary, Diagnosis, Incident, Kind
from sparkd.model.errors import ConfigError
from sparkd.model.finding import Cure, Verdict, bad, good

AT = "2026-11-21T10:00:00Z"
FATAL = (
    "ValueError: Free memory on device cuda:0 (4.75/119.67 GiB) on startup is less than desired GPU memory utilization "
    "(0.9, 107.7 GiB)."
)


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    paths = Paths(state=tmp_path / "state", runtime=tmp_path / "run", logs=tmp_path / "log")
    paths.engine_logs.mkdir(parents=True)
    return Facts(
        docker=Docker("unix:///nonexistent.sock", timeout_s=0.2), paths=paths, without_daemon="it does not run"
    )


def boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]


def test_without_anything_it_says_what_it_could_not_see(facts: Facts) -> None:
    facts.config_error = ConfigError("cannot be read: No such file or directory", where="/etc/sparkd/sparkd.yaml")
    found = examine.diagnose(facts)
    assert found.node == socket.gethostname() and found.boot_id and found.version
    assert any("no configuration" in why for why in found.unseen)
    assert any("it does not run" in why for why in found.unseen)
    assert all(finding.id != "config.invalid" for finding in found.findings)
    assert Diagnosis.model_validate_json(found.model_dump_json()) == found


def test_a_configuration_that_is_wrong_is_a_finding(facts: Facts) -> None:
    facts.config_error = ConfigError("unknown key", where="/etc/sparkd/sparkd.yaml:12: cluster", hint="known: nodes")
    first = examine.diagnose(facts, only=["logs"]).findings[0]
    assert (first.id, first.verdict, first.layer) == ("config.invalid", Verdict.BAD, "unit")
    assert "sparkd.yaml:12" in first.says and first.remedy == "known: nodes"


def test_what_a_failed_launch_said_is_current_and_what_older_ones_said_is_history(facts: Facts) -> None:
    for epoch, age in ((16, 500), (17, 100)):
        log = facts.paths.engine_log(f"{boot()}-{epoch}")
        log.write_text(f"INFO 11-21 10:00:00 [x.py:1] line\n{FATAL}\n")
        os.utime(log, (log.stat().st_mtime - age,) * 2)
    found = examine.diagnose(facts, only=["logs"]).incidents
    of_launches = [each for each in found if ".log:" in each.where]  # this machine's kernel log may tell something too
    assert {(each.where.rpartition("-")[2], each.current) for each in of_launches} == {
        ("17.log:2", True),
        ("16.log:2", False),
    }


def test_a_fresh_proof_makes_history_of_what_is_bad_in_the_log_of_the_living_launch(facts: Facts) -> None:
    id = f"{boot()}-17"
    facts.paths.engine_log(id).write_text("RuntimeError: Read error [10.0.0.2]:41811: Connection reset by peer\n")
    facts.status = {"node": "spark1", "serving": True, "launch_id": id, "proof_age_s": 3.0, "phase": "serving"}
    diagnosis = examine.diagnose(facts, only=["logs"])
    assert diagnosis.node == "spark1" and diagnosis.incidents
    assert not any(each.current for each in diagnosis.incidents)


def test_only_and_skip_choose_parts_too(facts: Facts) -> None:
    facts.paths.engine_log(f"{boot()}-17").write_text(f"{FATAL}\n")
    memory = examine.diagnose(facts, only=["memory.low-available"])
    assert {each.id for each in memory.findings} == {"memory.low-available"}
    assert not memory.incidents and memory.boundary is None
    assert not examine.diagnose(facts, skip=["logs"]).incidents
    assert examine.diagnose(facts, only=["drift"]).boundary is not None


def test_with_everything_hung_it_ends_in_time_and_says_so(
    tmp_path: Path, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Docker that accepts and never answers, tools that never end."""
    for tool in ("journalctl", "nvidia-smi", "systemctl", "ethtool", "ip", "dmesg"):
        fake = tmp_path / tool
        fake.write_text("#!/bin/sh\nsleep 60\n")
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        facts.docker = Docker(f"unix://{path}", timeout_s=2.5)
        began = monotonic()
        found = examine.diagnose(facts, limit_s=1.0)
        took_s = monotonic() - began
    assert took_s < 4, took_s  # 1.2 by itself; the rest is this machine's
    late = [finding for finding in found.findings if "no answer in 1 s" in finding.says]
    assert late and all(finding.verdict is Verdict.UNKNOWN for finding in late)
    assert any("the journal" in why or "the logs" in why for why in found.unseen)


def test_a_part_that_fails_is_told(facts: Facts) -> None:
    facts.paths.state.parent.mkdir(exist_ok=True)
    (facts.paths.state).mkdir()
    (facts.paths.state / "baselines").write_text("a file where a directory should be")
    found = examine.diagnose(facts, only=["drift"])
    assert found.boundary is not None or any(why.startswith("what changed: ") for why in found.unseen)


# --- together --------------------------------------------------------------------------------------


def node(name: str, rank: int, *incidents: Incident, **more: Any) -> Diagnosis:
    return Diagnosis(node=name, rank=rank, at=AT, incidents=incidents, **more)


def incident(where: str, id: str = "engine-x") -> Incident:
    return Incident(id=id, layer="engine", kind=Kind.ROOT, verdict=Verdict.BAD, says="broke", where=where)


def test_nodes_come_in_rank_order() -> None:
    found = examine.settle([node("b", 1), node("a", 0), Diagnosis(node="c", at=AT)])
    assert [each.node for each in found] == ["a", "b", "c"]


def test_only_logs_of_the_latest_epoch_speak_for_the_present() -> None:
    old = node("spark2", 1, incident("/var/log/sparkd/engine/ab12cd34-16.log:9"), incident("kernel log", "driver-x"))
    new = node("spark1", 0, incident("/var/log/sparkd/engine/ab12cd34-17.log:9"))
    first, second = examine.settle([old, new])
    assert [each.current for each in first.incidents] == [True]
    assert [each.current for each in second.incidents] == [False, True]


def test_what_nodes_differ_in_is_found_from_their_boundaries() -> None:
    """And left out where a fault on one of them explains it, or where there is nobody to compare with."""
    sick = {"sparkd": {"version": "1"}, "driver": {"module": "580.1"}}
    one = node("spark1", 0, boundary=Boundary(node="spark1", at=AT, groups=sick))
    assert examine.compare([one]) == ()
    both = examine.compare(
        [one, one.model_copy(update={"node": "spark2", "boundary": Boundary(node="spark2", at=AT, groups=sick)})]
    )
    assert all(each.verdict is not Verdict.BAD for each in both)


def test_the_whole_is_judged() -> None:
    finding = bad("link.missing", "the link bond0 does not exist", cure=Cure.WAIT).model_copy(update={"layer": "link"})
    found = examine.together([node("spark1", 0, findings=(finding,))], {"spark2": "off"}, node="spark1")
    assert found.verdict is Verdict.BAD and found.headline is not None and found.headline.id == "link.missing"
    assert found.absent == {"spark2": "off"}


def test_threads_that_hang_are_left_behind() -> None:
    """Nothing of an examination may keep the process from its end: all its threads are daemons."""
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("doctor: "))


def test_one_end_of_the_link_explains_the_other() -> None:
    """spark2's MTU is why spark1's large frames do not arrive; a node's own Docker says nothing of another's."""
    one = Diagnosis(node="spark1", rank=0, at=AT, findings=(
        bad("link.mtu-path", "large frames do not arrive", cure=Cure.PERSON),
        bad("container.differs", "it differs", cure=Cure.PERSON),
    ))  # fmt: skip
    two = Diagnosis(node="spark2", rank=1, at=AT, findings=(
        bad("link.mtu", "bond0 has MTU 1500", cure=Cure.PERSON),
        bad("docker.unreachable", "no answer", cure=Cure.PERSON),
    ))  # fmt: skip
    found = examine.explained((one, two))
    assert [finding.id for finding in found[0].findings] == ["container.differs"]
    assert found[0].hidden == {"link.mtu-path": "link.mtu"}
    assert found[1] == two


def test_what_the_journal_says_of_units_is_history_once_they_are_well() -> None:
    told = Incident(
        id="unit-exec-failed", layer="unit", kind=Kind.ROOT, verdict=Verdict.BAD, says="217", where="journal"
    )
    well = good("unit.failed", "no unit has failed")
    ill = bad("unit.failed", "it has", cure=Cure.PERSON)
    for findings, current in (((well,), False), ((ill,), True), ((), True)):
        (found,) = examine._while_units_fail((told,), findings)
        assert found.current is current
