"""Walks in which a node or what joins them is lost: power, the link, the state of the daemon."""

from __future__ import annotations

from sim.truth import WORKER_STOP_S
from sim.walking import LIMITS, LOAD_S, PREPARING_S, all_on, epoch_of, serving_world, until_noted, until_serving
from sim.world import World
from sparkd.control.state import Silent, Told
from sparkd.model.report import Gate, Phase

# --- power -----------------------------------------------------------------------------------------------


def test_the_worker_loses_power() -> None:
    for loaded in (False, True):
        world = serving_world()
        world.loaded = loaded
        world.run(10)
        world.power_off(world.hosts[1])
        world.run(LIMITS.link_loss_max_s - 5)
        assert world.phases() == ["serving", "off"]
        assert world.reasons()[0].endswith("; spark2 silent, the engine is left alone")
        assert "spark2 is out of reach" in until_noted(world, "epoch.ended", 15)
        world.loaded = False
        world.run(20)
        assert world.reasons()[0].startswith("armed for epoch 2: waiting for spark2: silent for ")
        world.power_on(world.hosts[1])
        until_serving(world, LOAD_S + PREPARING_S + 8)
        assert world.starts["spark1"] == [1, 2]


def test_the_worker_loses_power_while_the_head_loads() -> None:
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    all_on(world)
    world.run_until(lambda: world.phases() == ["loading", "loading"], 60)
    world.power_off(world.hosts[1])
    said = until_noted(world, "epoch.ended", LIMITS.link_loss_max_s + 10)
    assert said.startswith(
        "epoch 1 ended everywhere: spark2 could not be reached for 45 s while the engine was starting"
    )


def test_one_of_three_loses_power_before_the_head_launches() -> None:
    """What spark2 reported is old by the time when spark3's engine appears."""
    world = World(3, limits=LIMITS, load_s=LOAD_S)
    world.hosts[2].slow = 150.0
    all_on(world)
    assert world.run_until(lambda: world.phases() == ["armed", "loading", "launching"], 900)
    world.run(0.5)
    world.power_off(world.hosts[1])
    until_noted(world, "epoch.ended", LIMITS.start_max_s + 10)
    assert world.starts["spark1"] == []


def test_one_of_three_falls_silent_before_the_head_launches() -> None:
    """What spark2 reported is young, but its daemon was found away since."""
    world = World(3, limits=LIMITS, load_s=LOAD_S)
    world.hosts[2].slow = 25.0
    all_on(world)
    assert world.run_until(lambda: world.phases() == ["armed", "loading", "launching"], 900)
    assert world.run_until(lambda: world.hosts[2].engine is not None, 10)
    world.daemon_down(world.hosts[1])
    world.deliver(world.head, Silent(1, "refused"))  # as the probe finds it, a moment before spark3 reports its engine
    world.run(1)
    assert world.phases() == ["armed", "no daemon", "loading"]
    assert world.starts["spark1"] == []
    world.daemon_up(world.hosts[1])
    until_serving(world, LOAD_S + 30)
    assert world.starts["spark1"] == [1]


def test_a_head_that_stood_still_does_not_launch_on_old_words() -> None:
    """While it is stopped, spark2's engine comes to life and dies; both words wait in its sockets."""
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    all_on(world)
    assert world.run_until(lambda: world.phases() == ["armed", "launching"], 60)
    world.freeze(world.head, 9.0)
    world.run(2)
    assert world.phases() == ["armed", "loading"]
    world.engines.kill(world.hosts[1], 1, "all", "is killed")
    until_noted(world, "epoch.ended", 30)
    assert world.starts["spark1"] == []
    until_serving(world, LOAD_S + 30)
    assert world.starts["spark1"] == [2]


def test_a_worker_that_lost_power_and_memory() -> None:
    world = serving_world()
    world.power_off(world.hosts[1])
    world.lose_state(world.hosts[1])
    world.power_on(world.hosts[1])
    assert "spark2 has no engine of epoch 1 any more" in until_noted(world, "epoch.ended", 10)
    until_serving(world, LOAD_S + PREPARING_S + 8)


def test_the_worker_is_back_before_anyone_missed_it() -> None:
    world = serving_world()
    world.power_off(world.hosts[1])
    world.run(5)
    world.power_on(world.hosts[1])
    assert "spark2 has booted since epoch 1: its engine is gone" in until_noted(world, "epoch.ended", 8)
    until_serving(world, LOAD_S + PREPARING_S + 8)


def test_the_head_loses_power() -> None:
    world = serving_world()
    world.power_off(world.head)
    world.run(LIMITS.link_loss_max_s - 5)
    assert world.phases() == ["off", "serving"]
    said = until_noted(world, "peer.unreachable", 12)
    assert "spark1 could not be reached for 45 s: this half of the engine is useless" in said
    world.run(20)
    assert world.reasons()[1].startswith("waiting for spark1 to hand out the next epoch")
    world.power_on(world.head)
    until_serving(world, LOAD_S + PREPARING_S + 8)
    assert epoch_of(world) == 2


def test_both_lose_power() -> None:
    world = serving_world()
    for host in world.hosts:
        world.power_off(host)
    world.run(30)
    all_on(world)
    assert until_serving(world, 100) < 2 + LOAD_S + PREPARING_S + 3
    assert epoch_of(world) == 2
    assert len(world.noted("node.booted")) == 2
    assert world.head.state is not None and world.head.state.restarts_used == 0, "a boot is no crash"


# --- the link ----------------------------------------------------------------------------------------------


def test_the_link_drops_for_five_seconds() -> None:
    """At any moment of a canary's interval: it rests, it is sent, it is answered."""
    world = serving_world()
    for _ in range(20):
        world.set_link(world.hosts[1], False)
        world.run(5)
        assert world.phases() == ["serving", "serving"]
        world.set_link(world.hosts[1], True)
        world.run(world.between(10, 90))
        for epoch in world.epochs.values():
            epoch.link_down_s = 0.0
    assert world.stops == {"spark1": [], "spark2": []}


def test_the_link_drops_and_the_engines_connections_do_not_survive() -> None:
    world = serving_world(survives_s=2.0)
    world.set_link(world.hosts[1], False)
    world.run(5)
    world.set_link(world.hosts[1], True)
    until_noted(world, "epoch.ended", LIMITS.canary_interval_s + 10)
    until_serving(world, WORKER_STOP_S + LOAD_S + PREPARING_S)


def test_the_link_drops_while_the_engine_loads() -> None:
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    all_on(world)
    world.run_until(lambda: world.phases() == ["loading", "loading"], 60)
    world.run(10)
    world.set_link(world.head, False)
    world.run(10)
    world.set_link(world.head, True)
    until_serving(world, LOAD_S)
    assert epoch_of(world) == 1


# --- lost state ------------------------------------------------------------------------------------------------------


def test_a_lost_state_file_costs_one_restart() -> None:
    for ranks in ((0,), (1,), (0, 1)):
        world = serving_world()
        for rank in ranks:
            world.daemon_down(world.hosts[rank])
            world.lose_state(world.hosts[rank])
        for rank in ranks:
            world.daemon_up(world.hosts[rank])
        assert "does not remember" in world.noted("state.forgotten")[-1]
        until_serving(world, 2 * WORKER_STOP_S + LOAD_S + PREPARING_S)
        assert epoch_of(world) == 2, "the living engine told its number"


def test_a_head_that_lost_state_and_engine_learns_the_number_from_the_worker() -> None:
    world = serving_world()
    world.power_off(world.head)
    world.lose_state(world.head)
    world.run(5)
    world.power_on(world.head)
    until_noted(world, "state.epoch-reused", 10)
    until_serving(world, WORKER_STOP_S + LOAD_S + PREPARING_S + 5)
    assert epoch_of(world) == 2


def test_a_stale_engine_is_stopped_even_where_nothing_is_wanted() -> None:
    world = serving_world()
    world.daemon_down(world.hosts[1])
    world.lose_state(world.hosts[1])
    world.operator("stop")
    world.run(30)
    assert world.hosts[1].engine is not None
    world.daemon_up(world.hosts[1])
    world.run(20)
    assert world.hosts[1].engine is None
    assert world.reasons() == ["stopped by the operator", "stopped by the operator"]


def test_of_several_leftovers_each_is_stopped() -> None:
    """Orphans of two epochs, where nothing is wanted that would clean them away."""
    world = serving_world(1)
    world.engines.kill(world.head, 1, "all", "is killed")
    world.run_until(lambda: world.serving() and epoch_of(world) == 2, 200)
    world.operator("stop")
    world.run(10)
    world.daemon_down(world.head)
    world.head.stale = {1, 2}
    world.daemon_up(world.head)
    world.run(10)
    assert world.head.stale == set()
    assert world.reasons() == ["stopped by the operator"]


def test_a_boot_during_a_start_costs_one_of_the_budget() -> None:
    """It may have been the start that took the host down."""
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    all_on(world)
    world.run_until(lambda: world.phases()[0] == "loading", 60)
    world.power_off(world.head)
    world.power_on(world.head)
    until_serving(world, LOAD_S + 60)
    assert world.head.state is not None
    assert (epoch_of(world), world.head.state.restarts_used) == (2, 1)


def test_a_head_without_memory_is_not_followed_back() -> None:
    """Whatever lets its word arrive before it has heard our report."""
    world = serving_world()
    world.operator("restart")
    world.run_until(lambda: world.serving() and epoch_of(world) == 2, 200)
    world.operator("stop")
    world.run(WORKER_STOP_S + 2)
    worker = world.hosts[1]
    assert worker.state is not None and worker.state.phase is Phase.IDLE
    update = {"run": True, "epoch": 1, "gate": Gate.CLOSED, "head_boot_id": "another boot", "at": 1.0}
    world.deliver(worker, Told(worker.state.intent.model_copy(update=update)))
    assert (worker.state.phase, worker.state.epoch) == (Phase.IDLE, 2)
