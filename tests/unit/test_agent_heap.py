"""What a launch leaves is given back phase by phase; what lives when it first serves is counted no more."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest

from sparkd.agent.heap import give_back
from sparkd.control.node import begin
from sparkd.control.state import Me, NodeState
from sparkd.model.cluster import Limits
from sparkd.model.report import Phase

STATE = begin(Me("spark1", 0, ("spark1",), "boot-1", "0.1.0", Limits()))


def at(phase: Phase) -> NodeState:
    return replace(STATE, phase=phase)


class Left:
    def __init__(self) -> None:
        self.cycle = self


@pytest.fixture(autouse=True)
def by_ours_alone() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.unfreeze()
    gc.enable()


@pytest.fixture
def uncollected() -> weakref.ref[Left]:
    return weakref.ref(Left())


@pytest.mark.parametrize("phase", list(Phase))
def test_a_phase_that_ends_gives_back_what_it_left(uncollected: weakref.ref[Left], phase: Phase) -> None:
    after = Phase.IDLE if phase is Phase.SERVING else Phase.SERVING
    give_back(at(phase), at(after))
    assert uncollected() is None


@pytest.mark.parametrize("phase", list(Phase))
def test_within_a_phase_nothing_is_held_up(uncollected: weakref.ref[Left], phase: Phase) -> None:
    give_back(at(phase), at(phase))
    assert uncollected() is not None


def test_only_what_lives_when_it_first_serves_is_counted_no_more() -> None:
    """What came later can still be collected: nothing grows by being frozen again."""
    give_back(at(Phase.ARMED), at(Phase.LAUNCHING))
    assert gc.get_freeze_count() == 0
    give_back(at(Phase.PROVING), at(Phase.SERVING))
    frozen = gc.get_freeze_count()
    assert frozen > 0
    later = Left()
    gone = weakref.ref(later)
    give_back(at(Phase.PROVING), at(Phase.SERVING))
    assert gc.get_freeze_count() <= frozen  # fewer where one of them went by itself
    del later
    give_back(at(Phase.SERVING), at(Phase.STOPPING))
    assert gone() is None
