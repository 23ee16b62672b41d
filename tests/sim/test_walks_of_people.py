"""Walks that a person ends or begins: what has to be mended, crash loops, the operator's words."""

from __future__ import annotations

from sim.faults import BAD_RECIPE, SCRIPT_MISSING, mend_inputs
from sim.truth import INPUTS, WORKER_STOP_S
from sim.walking import LIMITS, LOAD_S, PREPARING_S, all_on, epoch_of, serving_world, until_noted, until_serving
from sim.world import World
from sparkd.control.backoff import LOOK_MAX_S, delay_s
from sparkd.model.finding import Cure, bad
from sparkd.model.report import Phase

# --- what a person must mend ---------------------------------------------------------------------------------


def test_a_missing_script_blocks_and_clears_by_itself() -> None:
    for rank in (0, 1):
        world = World(2, limits=LIMITS, load_s=LOAD_S)
        host = world.hosts[rank]
        host.bad_input = SCRIPT_MISSING
        all_on(world)
        world.run(10)
        assert world.reason(host) == "blocked: the launch script names a path that exists nowhere"
        other = "waiting for spark2, which is blocked: the launch script names a path that exists nowhere"
        assert (
            world.reasons()[1 - rank] == f"armed for epoch 1: {other if rank else 'spark1 holds the barrier (blocked)'}"
        )
        world.run(1000)
        assert world.starts == {"spark1": [], "spark2": []}
        assert len(world.noted("script.missing")) == 1
        mend_inputs(world, host)
        until_serving(world, LOAD_S + 2 * PREPARING_S + 5)
        assert world.noted("node.unblocked") == ["what blocked it is mended: trying again"]


def test_what_only_the_log_tells_blocks_after_one_start() -> None:
    for rank in (0, 1):
        world = World(2, limits=LIMITS, load_s=LOAD_S)
        host = world.hosts[rank]
        host.bad_engine = BAD_RECIPE
        all_on(world)
        world.run(600)
        assert world.reason(host) == f"blocked: {BAD_RECIPE.says}"
        assert world.starts[host.name] == [1]
        mend_inputs(world, host)
        until_serving(world, LOOK_MAX_S + LOAD_S + 2 * PREPARING_S + 5)
        assert world.noted("node.unblocked") == ["an input changed: trying again"]


def test_an_engine_that_is_not_what_the_plan_says() -> None:
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    wrong = bad("engine.argv-differs", "--max-num-seqs is 8, the plan says 16", cure=Cure.PERSON)
    world.hosts[1].failures["argv"] = [wrong]
    all_on(world)
    world.run(60)
    assert world.reasons()[1] == "blocked: --max-num-seqs is 8, the plan says 16"
    assert world.starts == {"spark1": [], "spark2": [1]}, "the head never started"


def test_a_worker_that_is_blocked_leaves_by_the_operators_start() -> None:
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    world.hosts[1].failures["argv"] = [BAD_RECIPE]
    all_on(world)
    world.run(60)
    assert world.phases()[1] == "blocked"
    world.operator("start")
    until_serving(world, LOAD_S + 2 * PREPARING_S)


def test_nodes_that_differ_wait_and_look_again() -> None:
    for rank in (0, 1):
        world = World(2, limits=LIMITS, load_s=LOAD_S)
        world.hosts[rank].digests = INPUTS.model_copy(update={"image": "sha256:another"})
        all_on(world)
        world.run(500)
        assert world.starts == {"spark1": [], "spark2": []}
        assert "the image differs: spark1 has " in world.reasons()[0] or world.phases()[0] != "armed"
        world.hosts[rank].digests = INPUTS
        until_serving(world, 40 + LOAD_S + 2 * PREPARING_S)


def test_what_was_armed_long_ago_is_checked_again() -> None:
    """The worker waits for a head that is ready late; meanwhile its image is replaced."""
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    world.power_on(world.head, docker_s=100)
    world.power_on(world.hosts[1])
    world.run_until(lambda: world.phases()[1] == "armed", 60)
    world.run(30)
    world.hosts[1].digests = INPUTS.model_copy(update={"image": "sha256:another"})
    world.run(120)
    assert world.starts == {"spark1": [], "spark2": []}
    world.hosts[1].digests = INPUTS
    until_serving(world, 40 + LOAD_S + 2 * PREPARING_S)


def test_a_worker_launches_nothing_for_a_head_that_is_silent() -> None:
    """It looks again behind the barrier, which takes long, and meanwhile the link is cut for long."""
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    world.power_on(world.head, docker_s=100)
    world.power_on(world.hosts[1])
    world.run_until(world.half_open, 150)
    world.hosts[1].slow = 20
    world.run(0.1)
    assert world.phases() == ["armed", "preflight"]
    world.set_link(world.head, False)
    world.hosts[1].slow, world.hosts[1].memory_at = 1, world.now + LIMITS.link_loss_max_s + 10
    world.run(LIMITS.link_loss_max_s + 30)
    assert world.phases()[1] == "armed"
    assert world.reasons()[1] == (
        "armed for epoch 1: the barrier is open, but spark1 is silent: its next word is waited for"
    )
    assert world.starts == world.stops == {"spark1": [], "spark2": []}
    world.set_link(world.head, True)
    until_serving(world, LOAD_S + 6 * PREPARING_S)
    assert world.starts == {"spark1": [2], "spark2": [2]}, "the head had ended the first, of which nothing lived"


def test_memory_that_does_not_come_back_is_waited_for() -> None:
    world = serving_world()
    world.head.memory_at = world.now + 400
    world.engines.kill(world.head, 1, "all", "is killed")
    until_noted(world, "memory.short", 300)
    assert world.phases()[0] == "backoff"
    assert world.reasons()[0].endswith("memory has not come back")
    until_serving(world, 600)
    assert world.starts["spark1"] == [1, 2], "one relaunch, when there was room for it"


def stopping_for_a_person() -> World:
    """The head's engine runs with what a person has to mend, is being stopped, and the next epoch is handed out already."""
    world = World(1, limits=LIMITS, load_s=LOAD_S)
    world.head.failures["argv"] = [bad("engine.argv", "the engine runs with another argument", cure=Cure.PERSON)]
    world.power_on(world.head)
    assert world.run_until(lambda: world.phases() == ["stopping"], 30)
    assert world.epoch_wanted() == 2
    return world


def test_a_stop_that_is_cut_short_still_asks_for_a_person() -> None:
    world = stopping_for_a_person()
    world.end_daemon(world.head, 2)
    world.run(60)
    assert world.reasons() == ["blocked: the engine runs with another argument"]
    assert world.starts["spark1"] == [1]


def test_a_boot_mends_nothing_that_a_person_has_to() -> None:
    world = stopping_for_a_person()
    world.power_off(world.head)
    world.power_on(world.head)
    world.run(60)
    assert world.reasons() == ["blocked: the engine runs with another argument"]
    assert world.starts["spark1"] == [1]
    mend_inputs(world, world.head)
    until_serving(world, LOAD_S + 2 * PREPARING_S)


# --- crash loop ------------------------------------------------------------------------------------------------


def test_crash_loop() -> None:
    """Restarts of the daemon and of the host do not refill the budget."""
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    crash = bad("engine.out-of-memory", "CUDA out of memory", cure=Cure.RELAUNCH)
    world.head.bad_engine = crash
    all_on(world)
    begun: list[float] = []
    for _ in range(LIMITS.restarts_max):
        until_noted(world, "epoch.ended", 60)
        begun.append(world.now)
        until_noted(world, "epoch.begun", LIMITS.backoff_max_s + 1) if begun[1:] else None
        if len(begun) == 3:
            world.daemon_down(world.head)
            world.run(1)
            world.daemon_up(world.head)
        if len(begun) == 4:
            world.power_off(world.head)
            world.run(5)
            world.power_on(world.head)
    world.run(2000)
    assert world.head.state is not None and world.head.state.phase is Phase.BLOCKED
    assert "7 epochs in a row were lost; the last one: CUDA out of memory" in world.reasons()[0]
    assert len(world.starts["spark1"]) == LIMITS.restarts_max + 1
    assert world.reasons()[1] == "waiting for spark1 to hand out the next epoch (blocked)"
    mend_inputs(world, world.head)
    until_serving(world, LOAD_S + PREPARING_S + 5)


def test_the_workers_crash_loop_is_blocked_on_the_head_with_the_diagnosis() -> None:
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    failure = bad("unit.failed", "sparkd-engine.service could not be started", cure=Cure.RELAUNCH)
    world.hosts[1].failures["start"] = [failure] * 20
    all_on(world)
    world.run(2000)
    assert world.reasons()[0].startswith(
        "blocked: 7 epochs in a row were lost; the last one: sparkd-engine.service could"
    )
    assert world.starts["spark1"] == []


def test_delays_grow_and_serving_refills_the_budget() -> None:
    """What never proved itself is followed after a growing delay; what did is followed at once."""
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    failure = bad("unit.failed", "sparkd-engine.service could not be started", cure=Cure.RELAUNCH)
    world.hosts[1].failures["start"] = [failure] * 3
    all_on(world)
    until_serving(world, 300)
    assert world.head.state is not None and world.head.state.restarts_used == 3
    ended = world.noted("epoch.ended")
    assert "the next one in" not in ended[0], "the first relaunch is immediate"
    assert f"the next one in {delay_s(2, LIMITS, 'spark1/2'):.0f} s" in ended[1]
    assert delay_s(3, LIMITS, "spark1/3") > delay_s(2, LIMITS, "spark1/2") > 0
    world.engines.kill(world.head, 4, "all", "is killed")
    world.run_until(lambda: epoch_of(world) > 4, 60)
    assert "the next one in" not in world.noted("epoch.ended")[-1], "it had proven itself"
    until_serving(world, 200)
    assert world.head.state.restarts_used == 4
    world.run(LIMITS.hold_s + 2)
    assert world.head.state.restarts_used == 0


# --- the operator ------------------------------------------------------------------------------------------------


def test_stop_and_start() -> None:
    world = serving_world()
    world.operator("stop")
    world.run(20)
    assert world.reasons() == ["stopped by the operator", "stopped by the operator"]
    assert all(host.engine is None for host in world.hosts)
    for host in world.hosts:  # a stop outlives every restart
        world.power_off(host)
        world.power_on(host)
    world.run(60)
    assert world.reasons() == ["stopped by the operator", "stopped by the operator"]
    world.operator("start")
    assert until_serving(world, 100) < LOAD_S + PREPARING_S
    assert epoch_of(world) == 2


def test_restart_while_preparing() -> None:
    """The steps that are no longer wanted answer late, and are not taken for the new ones."""
    for wait_s in range(2, 16):
        world = World(2, limits=LIMITS, load_s=LOAD_S)
        for host in world.hosts:
            host.slow = 5.0
            world.power_on(host)
        world.run(wait_s)
        started = list(world.starts["spark1"])  # the last ones have already launched
        world.operator("restart")
        until_serving(world, LOAD_S + 15 * PREPARING_S)
        assert world.starts["spark1"] == [*started, 2]


def test_restart_takes_the_files_anew() -> None:
    world = serving_world()
    for host in world.hosts:
        host.digests = INPUTS.model_copy(update={"plan": "plan-2"})
    world.run(200)
    assert epoch_of(world) == 1, "a changed file changes nothing by itself"
    world.operator("restart")
    until_serving(world, WORKER_STOP_S + LOAD_S + PREPARING_S)
    assert all(host.prepared is not None and host.prepared.plan == "plan-2" for host in world.hosts)
    assert [host.state.generation for host in world.hosts if host.state] == [1, 1]
