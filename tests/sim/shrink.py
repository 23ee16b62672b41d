"""The smallest schedule that still breaks the same invariant: faults are dropped, then the setup is made plainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from sim.converge import live
from sim.schedule import Schedule
from sim.truth import Violation

TRIES_MAX = 400


def breaks(schedule: Schedule) -> Violation | None:
    try:
        live(schedule)
    except Violation as broken:
        return broken
    return None


def shrink(schedule: Schedule, breaks: Callable[[Schedule], Violation | None] = breaks) -> Schedule:
    """`schedule` must break an invariant. At most TRIES_MAX histories are lived for it."""
    first = breaks(schedule)
    if first is None:
        raise ValueError("nothing is wrong with this schedule")
    left = TRIES_MAX
    smaller = True
    while smaller and left > 0:
        smaller = False
        for candidate in _smaller(schedule):
            left -= 1
            broken = breaks(candidate)
            if broken is not None and broken.invariant == first.invariant:
                schedule, smaller = candidate, True
                break
            if left <= 0:
                break
    return schedule


def _smaller(schedule: Schedule) -> Iterator[Schedule]:
    """Large steps first."""
    count = len(schedule.faults)
    size = count // 2
    while size >= 1:
        for first in range(0, count, size):
            yield schedule.without(*range(first, min(first + size, count)))
        size //= 2
    setup = schedule.setup
    for name in ("lost", "late", "twice", "harsh"):
        if getattr(setup, name):
            yield replace(schedule, setup=replace(setup, **{name: 0.0}))
    if any(setup.boots):
        yield replace(schedule, setup=replace(setup, boots=(0.0,) * setup.nodes))
    used = max([fault.host for fault in schedule.faults], default=0) + 1
    for nodes in range(max(used, 1), setup.nodes):
        yield replace(schedule, setup=replace(setup, nodes=nodes, boots=setup.boots[:nodes]))
