"""One random history: faults, then mending, then what invariant 9 promises."""

from __future__ import annotations

from sim.faults import disturb, mend, random_world
from sim.world import World
from sparkd.model.report import Phase

CONVERGED_S = 500.0  # every limit of QUICK one after the other, twice
CALM_S = 70.0  # then serving must hold: longer than a canary's interval and its answer together


def live(seed: int, faults: int = 12) -> World:
    """A whole history. Raises Violation where an invariant does not hold."""
    world = random_world(seed)
    disturb(world, faults)
    mend(world)
    if not world.run_until(lambda: at_rest(world) is not None, CONVERGED_S):
        world.fail(f"the faults ended, and after {CONVERGED_S:.0f} s the nodes do not serve")
    return world


def at_rest(world: World) -> str | None:
    """Where the history may end: serving and answering on every node, or blocked because the budget is spent."""
    head = world.head.state
    if world.serving() and head is not None and world.engines.answer(head.epoch) == "ok":
        return "serving"
    spent = head is not None and head.phase is Phase.BLOCKED and head.restarts_used > world.limits.restarts_max
    return "budget spent" if spent else None
