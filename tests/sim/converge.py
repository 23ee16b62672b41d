"""One history: faults, then mending, then what invariant 9 promises."""

from __future__ import annotations

from sim.faults import KINDS, mend
from sim.schedule import Fault, Schedule, to_text
from sim.truth import QUICK, Violation
from sim.world import World
from sparkd.model.report import Phase

CALM_S = 70.0  # the hold, several canaries, and every limit of a message
CALM_EVERY = 4  # seeds: a calm in each would cost half as much again
CONVERGED_S = 500.0  # every limit of QUICK one after the other, twice
CALMS = 3  # what was on its way when the faults ended may disturb two
HOW_TO_KEEP = "The schedule, to be kept in tests/sim/regressions/WHAT-IT-FOUND.txt:"


def live(schedule: Schedule) -> World:
    """A whole history. Raises Violation where an invariant does not hold, with the trace and the schedule."""
    world = begin(schedule)
    try:
        run(world)
    except Violation as broken:
        raise Violation(broken.invariant, broken.what, f"{broken}\n\n{HOW_TO_KEEP}\n{to_text(schedule)}") from None
    except Exception as error:  # control is to decide whatever happens: an exception is as bad as a wrong act
        message = "\n".join([*world.lines(), f"{type(error).__name__}: {error}", "", HOW_TO_KEEP, to_text(schedule)])
        raise Violation(0, f"{type(error).__name__}: {error}", message) from error
    return world


def begin(schedule: Schedule) -> World:
    """The world at its first moment; `run` lets it go on. Apart, so that the trace can be had of a history that fails."""
    setup = schedule.setup
    limits = QUICK.model_copy(update={"restarts_max": setup.budget})
    world = World(setup.nodes, seed=setup.seed, limits=limits, load_s=setup.load_s, survives_s=setup.survives_s)
    for kind in world.messages.disturbed:
        world.messages.disturb(kind, getattr(setup, kind))
    for host, at_s in zip(world.hosts, setup.boots, strict=True):
        world.after(at_s, lambda host=host: world.power_on(host, docker_s=host.rng.uniform(0, 8)))  # type: ignore[misc]
    for fault in schedule.faults:
        world.after(fault.at, lambda fault=fault: _happens(world, fault))  # type: ignore[misc]
    world.faults_end_at = max([*setup.boots, *(fault.at for fault in schedule.faults)]) + 1.0
    return world


def _happens(world: World, fault: Fault) -> None:
    KINDS[fault.kind].do(world, world.hosts[fault.host % len(world.hosts)], **dict(fault.parameters))


def run(world: World) -> None:
    world.run(world.faults_end_at)
    mend(world)
    for _ in range(CALMS):
        if not world.run_until(lambda: at_rest(world) is not None, CONVERGED_S):
            world.fail(9, f"the faults ended, and after {CONVERGED_S:.0f} s the nodes do not serve")
        if at_rest(world) != "serving" or world.seed % CALM_EVERY or _stays_calm(world):
            return


def _stays_calm(world: World) -> bool:
    """Whether nothing happened for long: what may end the epoch counts anew from here, so a stop without a new cause is a
    violation. A fault that comes late (an engine that was doomed before, an operator who said `restart` after a while) has its
    cause, and is followed by serving again."""
    assert world.head.state is not None
    number = world.head.state.epoch
    causes = world.epoch(number).blames
    causes.clear()
    world.run(CALM_S)
    if causes:
        return False
    if not world.serving() or world.epoch_wanted() != number or world.engines.answer(number) != "ok":
        world.fail(9, f"epoch {number} served, nothing happened to it, and {CALM_S:.0f} s later it does not serve")
    return True


def at_rest(world: World) -> str | None:
    """Where the history may end: serving and answering on every node, or blocked because the budget is spent."""
    head = world.head.state
    if head is None:
        return None
    if head.phase is Phase.SERVING:
        return "serving" if world.serving() and world.engines.answer(head.epoch) == "ok" else None
    spent = head.phase is Phase.BLOCKED and head.restarts_used > world.limits.restarts_max
    return "budget spent" if spent else None
