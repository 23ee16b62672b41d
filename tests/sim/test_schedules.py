"""Schedules are data: they read back as they were written, keep their faults apart, replay exactly, and shrink."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings

import sparkd
from sim.converge import begin, live, run
from sim.faults import KINDS
from sim.schedule import Fault, Schedule, Setup, draw, from_text, to_text
from sim.shrink import shrink
from sim.strategies import schedules
from sim.truth import Violation

QUICKLY = settings(
    max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], print_blob=True
)
KILLED = Fault(40.0, "kill", 0, (("what", "rank"), ("memory_s", 0.0)))
FROZEN = Fault(41.0, "freeze", 1, (("seconds", 5.0),))


def trace_of(schedule: Schedule) -> str:
    world = begin(schedule)
    run(world)
    return hashlib.sha256("\n".join(world.lines()).encode()).hexdigest()


@QUICKLY
@given(schedules())
def test_whatever_happens_the_invariants_hold(schedule: Schedule) -> None:
    live(schedule)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(schedules())
def test_a_schedule_reads_back_from_its_text(schedule: Schedule) -> None:
    assert from_text(to_text(schedule)) == schedule


def test_a_drawn_schedule_reads_back_and_uses_every_kind() -> None:
    kinds: Counter[str] = Counter()
    sizes: Counter[int] = Counter()
    for seed in range(400):
        schedule = draw(seed)
        assert from_text(to_text(schedule)) == schedule == draw(seed)
        kinds.update(fault.kind for fault in schedule.faults)
        sizes[schedule.setup.nodes] += 1
    assert set(kinds) == set(KINDS)
    assert set(sizes) == {1, 2, 3, 4}


def test_a_text_that_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no fault 'meteor'"):
        from_text("nodes=2 boots=0/0\n 1.0 meteor 0\n")
    with pytest.raises(ValueError, match="a setup has no moons"):
        from_text("nodes=2 moons=3 boots=0/0\n")


def test_dropping_a_fault_leaves_the_others_as_they_were() -> None:
    schedule = draw(3)
    assert schedule.without(4).faults == schedule.faults[:4] + schedule.faults[5:]
    assert schedule.without(4).setup == schedule.setup


def test_a_schedule_replays_exactly() -> None:
    for seed in (7, 8, 9):
        assert trace_of(draw(seed)) == trace_of(draw(seed))
    assert trace_of(draw(7)) != trace_of(draw(8))


def test_a_schedule_replays_exactly_in_another_process() -> None:
    """Whatever order Python gives to sets and dictionaries of words."""
    code = "import sys; from sim.test_schedules import *; print(*[trace_of(draw(seed)) for seed in range(20, 28)])"
    seen = set()
    for hash_seed in ("1", "2"):
        environment = {
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": ":".join(path for path in sys.path if path),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=300
        )
        seen.add(done.stdout)
    assert len(seen) == 1


def test_a_failure_names_the_invariant_and_shows_trace_and_schedule() -> None:
    schedule = Schedule(Setup(), (KILLED,))
    world = begin(schedule)
    world.run(30)
    with pytest.raises(Violation) as broken:
        world.fail(7, "a test says so")
    text = str(broken.value)
    assert broken.value.invariant == 7
    assert "invariant 7 (sparkd never signals a process" in text
    assert "* engine.proven: 12 characters in 0.3 s" in text
    assert text.splitlines()[0] == text.splitlines()[-1]


# --- shrinking -------------------------------------------------------------------------------------------------------


def test_shrinking_leaves_what_is_needed() -> None:
    """The faults that matter, in the plainest world that shows it."""

    def breaks(schedule: Schedule) -> Violation | None:
        kinds = {fault.kind for fault in schedule.faults}
        return Violation(3, "", "") if {"kill", "freeze"} <= kinds else None

    drawn = draw(11, nodes=3)
    noisy = replace(drawn, setup=replace(drawn.setup, lost=0.3, harsh=0.2))
    faults = (*noisy.faults[:5], KILLED, *noisy.faults[5:], FROZEN)
    small = shrink(replace(noisy, faults=faults), breaks)
    assert sorted(fault.kind for fault in small.faults) == ["freeze", "kill"]
    assert (small.setup.lost, small.setup.harsh, small.setup.nodes) == (0.0, 0.0, 2)
    with pytest.raises(ValueError, match="nothing is wrong"):
        shrink(Schedule(Setup()), breaks)


def test_hypothesis_shrinks_a_schedule() -> None:
    """To few faults on one node, in a world without noise."""

    def costs_an_epoch(schedule: Schedule) -> bool:
        return bool(live(schedule).noted("epoch.ended"))

    quick = settings(
        max_examples=150, database=None, derandomize=True, phases=(Phase.generate, Phase.shrink), deadline=None
    )
    small = find(schedules(most=6), costs_an_epoch, settings=quick)
    assert (small.setup.nodes, small.setup.lost, small.setup.harsh) == (1, 0.0, 0.0)
    assert 1 <= len(small.faults) <= 3


# --- clocks ----------------------------------------------------------------------------------------------------------


def test_control_can_read_no_clock() -> None:
    """Its imports: itself, the model, and what of Python's library has neither clock, chance nor input."""
    allowed = {"__future__", "collections.abc", "dataclasses", "typing", "enum", "hashlib", "operator"}
    for file in (Path(sparkd.__file__).parent / "control").glob("*.py"):
        for each in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in each.names] if isinstance(each, ast.Import) else []
            names += [each.module or ""] if isinstance(each, ast.ImportFrom) else []
            strange = {name for name in names if not name.startswith(("sparkd.control", "sparkd.model"))} - allowed
            assert not strange, f"{file.name} imports {strange}"


def test_nothing_follows_from_a_jump_of_the_wall_clock() -> None:
    """No data of control carries wall time: the history with the jumps is the history without them."""
    jumps = (
        Fault(20.0, "jump-clock", 0, (("seconds", 3600.0),)),
        Fault(30.0, "jump-clock", 1, (("seconds", -3600.0),)),
    )
    for seed in range(40, 46):
        schedule = draw(seed, nodes=2)
        assert trace_of(schedule) == trace_of(replace(schedule, faults=(*schedule.faults, *jumps)))
