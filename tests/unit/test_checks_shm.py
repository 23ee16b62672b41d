"""Checks of layer shm: leftovers, room, and who may take the engine's segments away."""

from __future__ import annotations

import time
from pathlib import Path

from checks_facts import asked, container, engine, facts, given, serving, usage, verdicts

from sparkd.doctor import facts as shared
from sparkd.doctor.checks import process, shm
from sparkd.host import login
from sparkd.host.room import Room
from sparkd.host.shm import Segment
from sparkd.model.finding import Who

GIB, MIB = 2**30, 2**20


def segment(name: str, size: int = MIB, users: tuple[int, ...] = (), age_s: float = 3600, **changes: object) -> Segment:
    fields = {"path": Path("/dev/shm") / name, "bytes": size, "modified_at": time.time() - age_s, "inode": 1}
    return Segment(**fields | {"users": users, "certain": True} | changes)  # type: ignore[arg-type]


def test_segments_of_dead_engines_are_told_and_sparkd_removes_them(tmp_path: Path) -> None:
    here = facts(tmp_path)
    left = (segment("psm_1abde4d0"), segment("sem.mp-1abde4d0", 32), segment("psm_1abde4d1", users=(4711,)))
    given(here, shm.segments, left)
    found = asked(shm.leftovers, here)
    assert (found.verdict.value, found.who) == ("warning", Who.SPARKD)
    assert found.says == "2 segments of dead engines in /dev/shm hold 1.0 MiB: psm_1abde4d0, sem.mp-1abde4d0"


def test_leftovers_that_the_next_launch_will_miss_are_bad(tmp_path: Path) -> None:
    here = facts(tmp_path)
    given(here, shm.segments, (segment("psm_1abde4d0", 5 * GIB),))
    assert verdicts(shm.leftovers, here) == ["bad"]


def test_used_new_and_uncertain_segments_are_nobodys_leftovers(tmp_path: Path) -> None:
    here = facts(tmp_path)
    given(here, shm.segments, (segment("psm_1abde4d0", users=(1,)), segment("psm_1abde4d1", age_s=0)))
    assert asked(shm.leftovers, here).says == "2 segments, all in use"
    given(here, shm.segments, (segment("psm_1abde4d0", certain=False),))
    assert verdicts(shm.leftovers, here) == ["unknown"]


def test_dockers_default_is_too_small(tmp_path: Path) -> None:
    here = facts(tmp_path)
    given(here, shared.container, container(host={"IpcMode": "private", "ShmSize": 64 * MIB}))
    assert asked(shm.size, here).says == "container vllm_ds4 has a /dev/shm of its own of 64 MiB"
    given(here, shared.container, container(host={"IpcMode": "private", "ShmSize": 16 * GIB}))
    assert verdicts(shm.size, here) == ["good"]
    given(here, shared.container, container())
    assert verdicts(shm.size, here) == ["good"]
    given(here, shared.container, None)
    assert verdicts(shm.size, here) == []


def test_a_full_one_is_bad_and_a_small_empty_one_is_not(tmp_path: Path) -> None:
    here = facts(tmp_path)
    given(here, shm.rooms, (Room(tmp_path, 60 * GIB, GIB // 8), Room(tmp_path, 2 * GIB, 2 * GIB)))
    assert verdicts(shm.full, here) == ["bad", "good"]


def test_the_hosts_room_is_known_without_docker(tmp_path: Path) -> None:
    here = facts(tmp_path)
    assert verdicts(shm.full, here) == ["good"]


def test_logind_takes_only_a_users_segments(tmp_path: Path) -> None:
    here = facts(tmp_path, status=serving())
    given(here, shared.engine_processes, (engine(),))
    given(here, process.everybody, (usage(uid=0),))
    assert verdicts(shm.removeipc, here) == ["good"]
    here = facts(tmp_path, status=serving())
    given(here, shared.engine_processes, (engine(),))
    given(here, process.everybody, (usage(uid=54321),))
    found = asked(shm.removeipc, here)
    assert found.verdict.value == ("warning" if login.removes_ipc() else "good")
    if found.verdict.value == "warning":
        assert found.says.startswith("the engine runs as 54321 (uid 54321)")
