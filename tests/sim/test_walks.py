"""The walks of DESIGN.md section 4, each a short script: what is done to the world, and what the nodes say and do.

Here: both boot, something dies, sparkd restarts.
"""

from __future__ import annotations

from sim.truth import INPUTS, WORKER_STOP_S
from sim.walking import LIMITS, LOAD_S, PREPARING_S, all_on, epoch_of, serving_world, until_noted, until_serving
from sim.world import World
from sparkd.model.finding import Cure, bad
from sparkd.model.report import Saved

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
        all_on(world)
        world.blame(1, "it is stillborn")
        assert "did not " in until_noted(world, "epoch.ended", LIMITS.start_max_s + 10)
        host.stillborn = False
        until_serving(world, WORKER_STOP_S + LOAD_S + PREPARING_S + 5)


def test_an_engine_that_never_listens() -> None:
    world = World(2, limits=LIMITS, load_s=LOAD_S)
    all_on(world)
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
    all_on(world)
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
    all_on(world)
    world.run_until(lambda: world.phases() == ["armed", "launching"], 60)
    world.daemon_down(world.head)
    world.head.digests = INPUTS.model_copy(update={"plan": "plan-2"})
    world.run(1)
    world.daemon_up(world.head)
    world.run(60)
    assert "the plan differs: spark1 has plan-2, spark2 has plan-1" in world.reasons()[0]
    assert world.starts["spark1"] == []
