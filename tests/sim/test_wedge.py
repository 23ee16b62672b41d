"""Hangs and what looks like one, with the real limits: nothing is ended that works, and nothing hangs for long."""

from __future__ import annotations

from sim.engines import COUNT_S
from sim.truth import WORKER_STOP_S
from sim.vitals import Pastime
from sim.walking import LIMITS, LOAD_S, PREPARING_S, all_on, epoch_of, serving_world, until_noted, until_serving
from sim.world import World

PREFILL_S = 238.0  # 190K tokens on a GB10
COMPILE_S = 300.0
DAY_S = 86_400.0
SOON_S = LIMITS.canary_interval_s + LIMITS.hang_max_s + 20  # idle, the canary comes first
SLACK_S = 30.0


def busy(world: World, kind: str, seconds: float, rank: int = 0) -> None:
    world.engines.began = Pastime(kind, world.now + seconds, rank)


def undisturbed(world: World, seconds: float) -> None:
    """It goes on in the same epoch, and answers afterwards."""
    engine = world.head.engine
    world.run(seconds)
    assert (world.serving(), epoch_of(world), world.noted("epoch.ended")) == (True, 1, []), world.reasons()
    world.run(LIMITS.canary_interval_s + 5)
    assert world.head.engine is engine and world.stops == {host.name: [] for host in world.hosts}
    assert "suspected" not in world.reasons()[0] and "busy" not in world.reasons()[0]


def until_ended(world: World, limit_s: float) -> tuple[str, float]:
    """The cause, and after how long."""
    began_at = world.now
    world.blame(epoch_of(world), "it hangs")
    said = until_noted(world, "epoch.ended", limit_s)
    return said, world.now - began_at


# --- must not fire ---------------------------------------------------------------------------------


def test_no_traffic_for_a_day() -> None:
    world = serving_world()
    undisturbed(world, DAY_S)


def test_a_long_prefill_in_chunks() -> None:
    """One request on an idle pair: no token is counted for 238 s, the KV cache fills."""
    for vitals in (True, False):
        world = serving_world()
        world.vitals = vitals
        world.run(20)
        busy(world, "prefill", PREFILL_S)
        world.run(PREFILL_S - 20)
        assert "busy: a long prefill, no token for" in world.reasons()[0]
        undisturbed(world, 20)


def test_a_long_prefill_in_one_step() -> None:
    """Not even the gauges move: what the nodes see of it counts, and where they see nothing the blind limit is beyond it."""
    for vitals in (True, False):
        for loaded in (True, False):
            world = serving_world()
            world.vitals, world.loaded = vitals, loaded
            world.run(20)
            busy(world, "whole prefill", PREFILL_S)
            undisturbed(world, PREFILL_S)


def test_a_long_prefill_in_one_step_where_the_link_cannot_be_counted() -> None:
    world = serving_world(1)
    world.run(20)
    busy(world, "whole prefill", 2 * PREFILL_S)
    world.run(PREFILL_S)
    assert "its GPU is 96 % busy at 46 W" in world.reasons()[0] or "cross the link" in world.reasons()[0]
    undisturbed(world, PREFILL_S)


def test_a_first_shape_compilation() -> None:
    """Ten minutes of it, on one rank, while the other spins at 20 W; the canary itself may have set it off."""
    for rank in (0, 1):
        for loaded in (True, False):
            world = serving_world()
            world.loaded = loaded
            world.run(20)
            busy(world, "compile", 2 * COMPILE_S, rank)
            world.run(COMPILE_S)
            assert f"but spark{rank + 1}: a compiler is at work (cicc)" in world.reasons()[0]
            undisturbed(world, COMPILE_S)


def test_a_compilation_that_nobody_sees_on_an_idle_engine() -> None:
    """vLLM itself gives a step up after 300 s; counted from the canary that waits, not from the answer before it."""
    world = serving_world()
    world.vitals = False
    world.run_until(lambda: world.head.state is not None and world.head.state.canary_at is not None, 100)
    busy(world, "compile", COMPILE_S + 20)
    undisturbed(world, COMPILE_S + 20)


def test_a_compilation_on_a_worker_whose_daemon_is_away() -> None:
    """The head sees its own rank spin, as it does while it waits for another's compiler."""
    world = serving_world()
    world.run(20)
    world.daemon_down(world.hosts[1])
    busy(world, "compile", COMPILE_S, rank=1)
    world.run(COMPILE_S + 10)
    world.daemon_up(world.hosts[1])
    undisturbed(world, 10)


def test_a_full_cache_with_progress() -> None:
    """The canary waits in the queue for a quarter of an hour; every gauge is at its end, tokens are made."""
    for vitals in (True, False):
        world = serving_world()
        world.vitals = vitals
        world.run(20)
        busy(world, "full cache", 900)
        undisturbed(world, 900)


def test_work_between_two_looks() -> None:
    """Compilers come one after the other, and now and then a look falls between two of them."""
    world = serving_world()
    world.loaded = True
    world.run(20)
    busy(world, "compile", 260, rank=1)
    world.run(80)
    busy(world, "between compilers", 75)
    undisturbed(world, 75)


def test_a_compilation_that_the_proof_sets_off() -> None:
    """The first request of all is the proof: it takes longer than a proof may, and a compiler is seen at work."""
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    all_on(world)
    world.run_until(lambda: world.phases() == ["proving", "proving"], LOAD_S + 20)
    busy(world, "compile", COMPILE_S, rank=1)
    world.run(COMPILE_S - 5)
    assert world.phases() == ["proving", "proving"]
    until_serving(world, LIMITS.prove_max_s)
    assert (epoch_of(world), world.noted("epoch.ended")) == (1, [])


def test_sparkd_restarts_while_the_engine_is_busy() -> None:
    """An adopted engine is asked for a proof, and answers after minutes: it is left alone, seen or not."""
    for vitals in (True, False):
        for kind in ("prefill", "whole prefill", "compile"):
            world = serving_world()
            world.vitals = vitals
            world.run(20)
            busy(world, kind, COMPILE_S)
            engine = world.head.engine
            world.daemon_down(world.head)
            world.run(2)
            world.daemon_up(world.head)
            world.run(COMPILE_S)
            until_serving(world, LIMITS.prove_max_s)
            assert world.head.engine is engine and world.noted("epoch.ended") == []


# --- must fire -------------------------------------------------------------------------------------


def test_a_hang_is_found_soon() -> None:
    """On the head or the worker, idle or under load, while /health answers."""
    for rank in (0, 1):
        for loaded in (True, False):
            world = serving_world()
            world.loaded = loaded
            world.run(20)
            assert world.hosts[rank].engine is not None
            world.hosts[rank].engine.hung = True  # type: ignore[union-attr]
            said, took_s = until_ended(world, SOON_S)
            assert "a silent spin" in said and took_s > LIMITS.hang_max_s - COUNT_S
            world.loaded = False
            until_serving(world, WORKER_STOP_S + LOAD_S + PREPARING_S + 5)


def test_a_single_node_that_hangs() -> None:
    world = serving_world(1)
    world.run(20)
    assert world.head.engine is not None
    world.head.engine.hung = True
    said, _ = until_ended(world, SOON_S)
    assert "no node computes" in said
    until_serving(world, LOAD_S + PREPARING_S + 5)


def test_a_hang_that_nobody_sees() -> None:
    for loaded in (True, False):
        world = serving_world()
        world.vitals, world.loaded = False, loaded
        world.run(20)
        assert world.hosts[1].engine is not None
        world.hosts[1].engine.hung = True
        said, took_s = until_ended(world, LIMITS.canary_interval_s + LIMITS.hang_blind_max_s + SLACK_S)
        assert "tells nothing of its part of the engine" in said and took_s > LIMITS.hang_blind_max_s - COUNT_S
        world.loaded = False
        until_serving(world, WORKER_STOP_S + LOAD_S + PREPARING_S + 5)


def test_a_rank_that_dies_unseen_as_under_nccl() -> None:
    """Its daemon is away, and the head's rank waits for it for ever. The worker tells of it as soon as its daemon is back;
    where it stays away, the head decides alone, after longer."""
    for back in (True, False):
        world = serving_world()
        world.run(20)
        worker = world.hosts[1]
        world.daemon_down(worker)
        assert worker.engine is not None
        worker.engine.hung = True
        if back:
            world.after(100, lambda worker=worker, world=world: world.daemon_up(worker))  # type: ignore[misc]
        limit_s = 100 + SOON_S if back else LIMITS.canary_interval_s + LIMITS.hang_blind_max_s + SLACK_S
        said, _ = until_ended(world, limit_s)
        assert "spark1: its GPU is 95 % busy at 20 W, a silent spin" in said
        world.daemon_up(worker)
        until_serving(world, 2 * WORKER_STOP_S + LOAD_S + PREPARING_S + 5)


def test_a_compilation_without_end() -> None:
    world = serving_world()
    world.loaded = True
    world.run(20)
    busy(world, "compile", 1e6)
    said, _ = until_ended(world, LIMITS.work_max_s + SLACK_S)
    assert "although spark1: a compiler is at work (cicc)" in said
    world.engines.began = None
