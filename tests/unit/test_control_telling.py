"""What a turn compares before it makes a report or a state to save: it must name everything that those are made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from typing import Any

import pytest

from sparkd.control import node, telling
from sparkd.control.state import Launch, Me, NodeState
from sparkd.model.cluster import Limits
from sparkd.model.report import Phase

NEVER_CHANGES = {"me"}


class Watched:
    """A state that remembers what was read of it."""

    def __init__(self, state: NodeState) -> None:
        self._state, self.read = state, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self._state, name)


@pytest.mark.parametrize(
    ("make", "compared"), [(telling.saved, telling.SAVED_FROM), (telling.report, telling.REPORTED_FROM)]
)
def test_nothing_that_is_told_or_kept_changes_unseen(make: Callable[[Any], object], compared: attrgetter[Any]) -> None:
    begun = node.begin(Me("spark2", 1, ("spark1", "spark2"), "b" * 32, "0.1.0", Limits()))
    loading = replace(begun, phase=Phase.LOADING, epoch=7, launch=Launch(7, seen=True))
    read: set[str] = set()
    for state in (begun, loading):
        watched = Watched(state)
        make(watched)
        read |= watched.read
    assert len(read) > 5
    named = compared.__reduce__()[1]
    assert read - NEVER_CHANGES <= set(named)
