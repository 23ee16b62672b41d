"""What a launch leaves is given back when it serves, and at no other time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest

from sparkd.agent.heap import give_back
from sparkd.control.node import begin
from sparkd.control.state import Me
from sparkd.model.cluster import Limits
from sparkd.model.report import Phase

STATE = begin(Me("spark1", 0, ("spark1",), "boot-1", "0.1.0", Limits()))


class Left:
    def __init__(self) -> None:
        self.cycle = self


@pytest.fixture
def uncollected() -> Iterator[weakref.ref[Left]]:
    gc.collect()
    gc.disable()  # what is collected is by ours
    yield weakref.ref(Left())
    gc.enable()


@pytest.mark.parametrize("phase", [each for each in Phase if each is not Phase.SERVING])
def test_a_launch_that_serves_gives_back_what_it_left(uncollected: weakref.ref[Left], phase: Phase) -> None:
    give_back(replace(STATE, phase=phase), replace(STATE, phase=Phase.SERVING))
    assert uncollected() is None


@pytest.mark.parametrize(
    ("before", "after"), [(Phase.SERVING, Phase.SERVING), (Phase.SERVING, Phase.STOPPING), (Phase.ARMED, Phase.LAUNCHING)]
)
def test_nothing_is_held_up_where_it_matters(uncollected: weakref.ref[Left], before: Phase, after: Phase) -> None:
    give_back(replace(STATE, phase=before), replace(STATE, phase=after))
    assert uncollected() is not None
