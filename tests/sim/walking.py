"""A world in which the pair serves, and ways to go on from there: what the walks begin with."""

from __future__ import annotations

from sim.world import World
from sparkd.model.cluster import Limits

LOAD_S = 60.0
PREPARING_S = 5.0  # every step before the barrier, and the launches, in this world
LIMITS = Limits()  # the real ones


def all_on(world: World) -> None:
    for host in world.hosts:
        world.power_on(host)


def serving_world(size: int = 2, **options: object) -> World:
    world = World(size, limits=LIMITS, load_s=LOAD_S, **options)  # type: ignore[arg-type]
    all_on(world)
    until_serving(world, LOAD_S + 20)
    return world


def until_serving(world: World, limit_s: float) -> float:
    """Seconds until every node serves."""
    began_at = world.now
    if not world.run_until(world.serving, limit_s):
        world.fail(0, f"not serving after {limit_s:.0f} s")
    return world.now - began_at


def epoch_of(world: World) -> int:
    assert world.head.state is not None
    return world.head.state.epoch


def until_noted(world: World, id: str, limit_s: float) -> str:
    """Go on to the next event of this kind; its sentence."""
    known = len(world.noted(id))
    if not world.run_until(lambda: len(world.noted(id)) > known, limit_s):
        world.fail(0, f"no {id} within {limit_s:.0f} s")
    return world.noted(id)[-1]
