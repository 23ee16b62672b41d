"""The walks of DESIGN.md section 4, each a short script: what is done to the world, and what the nodes say and do."""

from __future__ import annotations

from sim.faults import BAD_RECIPE, SCRIPT_MISSING, mend_inputs
from sim.truth import INPUTS, WORKER_STOP_S
from sim.world import World
from sparkd.control.backoff import delay_s
from sparkd.control.state import Silent, Told
from sparkd.model.cluster import Limits
from sparkd.model.finding import Cure, bad
from sparkd.model.report import Gate, Phase, Saved

LOAD_S = 60.0
PREPARING_S = 5.0  # every step before the barrier, and the launches, in this world
LIMITS = Limits()  # the real ones


def serving_world(size: int = 2, **options: object) -> World:
    world = World(size, limits=LIMITS, load_s=LOAD_S, **options)  # type: ignore[arg-type]
    for host in world.hosts:
        world.power_on(host)
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


# --- both boot -------------------------------------------------------------------------------------


def test_both_boot_and_the_link_comes_late() -> None:
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    for host in world.hosts:
        host.disk = Saved(boot_id="an earlier boot", epoch=17)
        world.set_link(host, False)
        world.power_on(host, docker_s=0)
    world.run(10)
    assert world.reasons()[0].startswith("preflight: waiting for 8 s: bond0 has no carrier")
    assert world.reasons()[1] == "waiting for spark1's word"
    for host in world.hosts:
        world.set_link(host, True)
    took_s = until_serving(world, 200)
    assert epoch_of(world) == 18
    assert took_s < LOAD_S + PREPARING_S + 3.0  # the exchange that failed last has to time out
    assert world.starts == {"spark1": [18], "spark2": [18]}
    spawns = world.epoch(18).spawns
    assert spawns[1] < spawns[0], "the worker launches first"
    assert world.noted("barrier.opened") == [
        "epoch 18: every rank is armed: workers launch",
        "epoch 18: every worker's engine lives: the head launches",
    ]
    assert world.reasons() == ["serving epoch 18: a real answer 0 s ago", "serving epoch 18: proven by spark1"]


def test_one_node_and_three_nodes_serve_the_same_way() -> None:
    for size in (1, 3):
        world = serving_world(size)
        assert world.now < 2 + LOAD_S + PREPARING_S
        assert all(starts == [1] for starts in world.starts.values())


def test_a_link_that_never_comes_is_an_alarm_after_its_grace() -> None:
    world = World(2, limits=LIMITS)
    for host in world.hosts:
        world.set_link(host, False)
        world.power_on(host)
    world.run(LIMITS.link_grace_s + 10)
    assert "(longer than it should take): bond0 has no carrier" in world.reasons()[0]
    assert len(world.noted("link.down")) == 1, "waiting is noted once, not once a second"


def test_docker_that_comes_late_is_noted_once() -> None:
    world = World(1, limits=LIMITS, load_s=LOAD_S)
    world.power_on(world.head, docker_s=40)
    until_serving(world, 40 + LOAD_S + PREPARING_S + 5)
    assert len(world.noted("docker.absent")) == 1


# --- a rank dies -------------------------------------------------------------------------------------


def test_a_rank_dies_idle_on_the_worker() -> None:
    world = serving_world()
    worker = world.hosts[1]
    world.engines.kill(worker, 1, "rank", "is killed")
    died_at = world.now
    said = until_noted(world, "epoch.ended", 1.0)
    assert world.now - died_at < 0.1, "no request was needed to notice"
    assert said == "epoch 1 ended everywhere: the engine's rank was killed by signal 9"
    world.run(0.1)
    assert world.phases() == ["stopping", "stopping"]
    assert world.reasons()[0] == "stopping epoch 1: the engine's rank was killed by signal 9"
    took_s = until_serving(world, 120)
    assert took_s < WORKER_STOP_S + LOAD_S + PREPARING_S, "nothing but the engine's own teardown delays the relaunch"
    assert epoch_of(world) == 2


def test_a_rank_dies_idle_on_the_head() -> None:
    world = serving_world()
    world.engines.kill(world.head, 1, "rank", "is killed")
    world.run(0.1)
    assert world.phases() == ["stopping", "stopping"]
    until_serving(world, WORKER_STOP_S + LOAD_S + PREPARING_S)


def test_the_worker_dies_while_the_head_loads() -> None:
    """A head whose peer vanished during init hangs silently: only the worker can tell."""
    world = serving_world()
    world.operator("restart")
    world.run_until(lambda: world.phases() == ["loading", "loading"], 60)
    world.run(10)
    world.engines.kill(world.hosts[1], 2, "all", "is killed")
    world.run(0.1)
    assert world.phases() == ["stopping", "stopping"]
    until_serving(world, 10 + LOAD_S + PREPARING_S)
    assert epoch_of(world) == 3


def test_a_rank_dies_while_its_daemon_is_away() -> None:
    world = serving_world()
    worker = world.hosts[1]
    world.daemon_down(worker)
    world.engines.kill(worker, 1, "top", "is killed")
    world.run(10)
    assert world.phases() == ["serving", "no daemon"]
    world.daemon_up(worker)
    said = until_noted(world, "epoch.ended", 2)
    assert said.endswith("died while sparkd was away: only a part of it still lives")
    until_serving(world, WORKER_STOP_S + LOAD_S + PREPARING_S)


def test_the_engine_hangs() -> None:
    for loaded in (False, True):
        world = serving_world()
        world.loaded = loaded
        world.run(30)
        assert world.hosts[1].engine is not None
        world.hosts[1].engine.hung = True
        world.blame(1, "it hangs")
        said = until_noted(world, "epoch.ended", LIMITS.canary_interval_s + LIMITS.hang_max_s + 8)
        assert f"{'1 request is waiting' if loaded else 'a canary is unanswered'} and no counter has moved for" in said
        world.loaded = False
        until_serving(world, WORKER_STOP_S + LOAD_S + PREPARING_S)


def test_an_engine_that_never_appears() -> None:
    for rank in (0, 1):
        world = World(2, limits=LIMITS, load_s=LOAD_S)
        host = world.hosts[rank]
        host.stillborn = True
        for each in world.hosts:
            world.power_on(each)
        world.blame(1, "it is stillborn")
        assert "did not " in until_noted(world, "epoch.ended", LIMITS.start_max_s + 10)
        host.stillborn = False
        until_serving(world, WORKER_STOP_S + LOAD_S + PREPARING_S + 5)


def test_an_engine_that_never_listens() -> None:
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    for host in world.hosts:
        world.power_on(host)
    world.run_until(lambda: world.phases() == ["loading", "loading"], 60)
    world.epoch(1).torn_in_init = True
    world.run(LIMITS.load_max_s - 10)
    assert world.phases() == ["loading", "loading"]
    world.blame(1, "it hangs silently")
    assert "the endpoint did not listen within 1800 s" in until_noted(world, "epoch.ended", 20)
    until_serving(world, WORKER_STOP_S + LOAD_S + PREPARING_S)


def test_a_proof_that_fails() -> None:
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    world.head.failures["prove"] = [bad("proof.reasoning-empty", "the answer had no reasoning", cure=Cure.RELAUNCH)]
    for host in world.hosts:
        world.power_on(host)
    assert "the answer had no reasoning" in until_noted(world, "epoch.ended", LOAD_S + 20)
    until_serving(world, WORKER_STOP_S + LOAD_S + PREPARING_S)


def test_a_stop_that_fails_is_asked_again() -> None:
    world = serving_world()
    world.hosts[1].failures["stop"] = [bad("docker.silent", "Docker does not answer", cure=Cure.RELAUNCH)] * 3
    world.operator("restart")
    until_serving(world, 2 * WORKER_STOP_S + LOAD_S + PREPARING_S + 5)
    assert world.stops["spark2"] == [1, 1, 1, 1]


# --- sparkd restarts -----------------------------------------------------------------------------------


def test_sparkd_restarts_while_serving() -> None:
    for rank in (0, 1):
        world = serving_world()
        host = world.hosts[rank]
        engine = host.engine
        world.daemon_down(host)
        world.run(2)
        world.daemon_up(host)
        assert world.noted("engine.adopted") == ["the engine of epoch 1 is alive and whole: adopted, not disturbed"]
        assert until_serving(world, 5) < 3, "proven by one answer, then on"
        world.run(100)
        assert host.engine is engine
        assert world.stops == {"spark1": [], "spark2": []}


def test_a_daemon_that_stays_away_leaves_the_engine_alone() -> None:
    for rank in (0, 1):
        world = serving_world()
        world.daemon_down(world.hosts[rank])
        world.run(3600)
        assert world.stops == {"spark1": [], "spark2": []}
        world.daemon_up(world.hosts[rank])
        assert until_serving(world, 5) < 3
        assert epoch_of(world) == 1


def test_the_heads_sparkd_restarts_between_the_barrier_and_its_launch() -> None:
    """What the barrier was opened with is not remembered: nobody launches on it."""
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    for host in world.hosts:
        world.power_on(host)
    world.run_until(lambda: world.phases() == ["armed", "launching"], 60)
    world.daemon_down(world.head)
    world.head.digests = INPUTS.model_copy(update={"plan": "plan-2"})
    world.run(1)
    world.daemon_up(world.head)
    world.run(60)
    assert "the plan differs: spark1 has plan-2, spark2 has plan-1" in world.reasons()[0]
    assert world.starts["spark1"] == []


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
    for host in world.hosts:
        world.power_on(host)
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
    for host in world.hosts:
        world.power_on(host)
    assert world.run_until(lambda: world.phases() == ["armed", "loading", "launching"], 900)
    world.run(0.5)
    world.power_off(world.hosts[1])
    until_noted(world, "epoch.ended", LIMITS.start_max_s + 10)
    assert world.starts["spark1"] == []


def test_one_of_three_falls_silent_before_the_head_launches() -> None:
    """What spark2 reported is young, but its daemon was found away since."""
    world = World(3, limits=LIMITS, load_s=LOAD_S)
    world.hosts[2].slow = 25.0
    for host in world.hosts:
        world.power_on(host)
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
    for host in world.hosts:
        world.power_on(host)
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
    for host in world.hosts:
        world.power_on(host)
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
    for host in world.hosts:
        world.power_on(host)
    world.run_until(lambda: world.phases() == ["loading", "loading"], 60)
    world.run(10)
    world.set_link(world.head, False)
    world.run(10)
    world.set_link(world.head, True)
    until_serving(world, LOAD_S)
    assert epoch_of(world) == 1


# --- what a person must mend ---------------------------------------------------------------------------------


def test_a_missing_script_blocks_and_clears_by_itself() -> None:
    for rank in (0, 1):
        world = World(2, limits=LIMITS, load_s=LOAD_S)
        host = world.hosts[rank]
        host.bad_input = SCRIPT_MISSING
        for each in world.hosts:
            world.power_on(each)
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
        for each in world.hosts:
            world.power_on(each)
        world.run(600)
        assert world.reason(host) == f"blocked: {BAD_RECIPE.says}"
        assert world.starts[host.name] == [1]
        mend_inputs(world, host)
        until_serving(world, LOAD_S + 2 * PREPARING_S + 5)
        assert world.noted("node.unblocked") == ["an input changed: trying again"]


def test_an_engine_that_is_not_what_the_plan_says() -> None:
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    wrong = bad("engine.argv-differs", "--max-num-seqs is 8, the plan says 16", cure=Cure.PERSON)
    world.hosts[1].failures["argv"] = [wrong]
    for host in world.hosts:
        world.power_on(host)
    world.run(60)
    assert world.reasons()[1] == "blocked: --max-num-seqs is 8, the plan says 16"
    assert world.starts == {"spark1": [], "spark2": [1]}, "the head never started"


def test_a_worker_that_is_blocked_leaves_by_the_operators_start() -> None:
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    world.hosts[1].failures["argv"] = [BAD_RECIPE]
    for host in world.hosts:
        world.power_on(host)
    world.run(60)
    assert world.phases()[1] == "blocked"
    world.operator("start")
    until_serving(world, LOAD_S + 2 * PREPARING_S)


def test_nodes_that_differ_wait_and_look_again() -> None:
    for rank in (0, 1):
        world = World(2, limits=LIMITS, load_s=LOAD_S)
        world.hosts[rank].digests = INPUTS.model_copy(update={"image": "sha256:another"})
        for host in world.hosts:
            world.power_on(host)
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
    for host in world.hosts:
        world.power_on(host)
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
    for host in world.hosts:
        world.power_on(host)
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
    for host in world.hosts:
        world.power_on(host)
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
    for host in world.hosts:
        world.power_on(host)
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
