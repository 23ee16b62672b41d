"""What goes wrong, at random: one line of `FAULTS` for each kind, and the mending of everything at the end."""

from __future__ import annotations

import random
from collections.abc import Callable

from sim.truth import INPUTS, QUICK, Host
from sim.world import World
from sparkd.model.cluster import Limits
from sparkd.model.finding import Cure, bad
from sparkd.model.report import Phase

SCRIPT_MISSING = bad("script.missing", "the launch script names a path that exists nowhere", cure=Cure.PERSON)
BAD_RECIPE = bad("engine.bad-argument", "vllm: error: unrecognized arguments: --tensor-paralel", cure=Cure.PERSON)
TRANSIENT = {
    Cure.WAIT: bad("step.waits", "something comes up soon", cure=Cure.WAIT),
    Cure.RELAUNCH: bad("step.failed", "the step failed", cure=Cure.RELAUNCH),
    Cure.PERSON: bad("step.wrong", "a check is not satisfied", cure=Cure.PERSON),
}


def random_world(seed: int) -> World:
    """One to three nodes, TCP or RoCE, with or without lost messages, a generous or the usual budget."""
    rng = random.Random(seed)
    limits: Limits = QUICK if rng.random() < 0.8 else QUICK.model_copy(update={"restarts_max": 4})
    world = World(
        rng.choice((1, 2, 2, 2, 2, 3)),
        seed=seed,
        limits=limits,
        load_s=rng.choice((3.0, 15.0, 30.0)),
        survives_s=rng.choice((4.0, 75.0, 75.0)),
        lost=rng.choice((0.0, 0.0, 0.05, 0.3)),
    )
    for host in world.hosts:
        world.after(rng.choice((0.0, 1.0, 20.0, 70.0)) * rng.random(), _powered(world, host))
    return world


def _powered(world: World, host: Host) -> Callable[[], None]:
    return lambda: world.power_on(host, docker_s=world.between(0, 8))


def disturb(world: World, faults: int) -> None:
    """Let `faults` faults happen, some right after each other, some after a calm."""
    at_s = world.between(5, 60)
    for _ in range(faults):
        kind = world.rng.choice(KINDS)
        host = world.rng.choice(world.hosts)
        world.after(at_s, lambda kind=kind, host=host: kind(world, host))  # type: ignore[misc]
        at_s += world.rng.choice((0.05, 1.0, 5.0, 30.0, 90.0)) * 2 * world.rng.random()
    world.run(at_s + 1)


def mend(world: World) -> None:
    """Everything that can go wrong is right again, except what the daemons have yet to find out."""
    world.log("--- everything is mended ---")
    world.lost = 0.0
    for host in world.hosts:
        host.failures.clear()
        host.digests, host.slow = INPUTS, 1.0
        host.docker_at = min(host.docker_at, world.now)
        host.memory_at = min(host.memory_at, world.now + 5)
        mend_inputs(world, host)
        world.set_link(host, True)
        world.power_on(host)
        world.daemon_up(host)
        world.after(20, lambda host=host: mend_inputs(world, host))  # type: ignore[misc]  # nobody is too quick
    world.run(5)
    if world.head.state is not None and not world.head.state.intent.run:
        world.operator("start")


def mend_inputs(world: World, host: Host) -> None:
    host.inputs += 1
    host.bad_input = host.bad_engine = None
    world.invariants.inputs_changed(host)


# --- the faults ----------------------------------------------------------------------------------


def kill(world: World, host: Host) -> None:
    if host.engine is not None:
        what = world.rng.choice(("rank", "rank", "top", "all"))
        if world.rng.random() < 0.3:
            host.memory_at = world.now + world.between(1, 60)
        world.engines.kill(host, host.engine.epoch, what, "is killed")


def hang(world: World, host: Host) -> None:
    if host.engine is not None:
        world.log("the engine hangs", host)
        host.engine.hung = True
        world.blame(host.engine.epoch, f"{host.name} hangs")


def crash_daemon(world: World, host: Host) -> None:
    world.daemon_down(host)
    if world.rng.random() < 0.2:
        world.lose_state(host)
    life_s = world.rng.choice((0.5, 2.0, 30.0))
    world.after(life_s * world.rng.random(), lambda: world.daemon_up(host))


def reboot(world: World, host: Host) -> None:
    world.power_off(host)
    if world.rng.random() < 0.1:
        world.lose_state(host)
    world.after(world.rng.choice((4.0, 20.0, 60.0)) * world.between(0.5, 1), _powered(world, host))


def reboot_all(world: World, host: Host) -> None:
    for each in world.hosts:
        reboot(world, each)


def cut_link(world: World, host: Host) -> None:
    world.set_link(host, False)
    down_s = world.rng.choice((1.0, 5.0, 15.0, 45.0)) * world.between(0.3, 1)
    world.after(down_s, lambda: world.set_link(host, True))


def fail_step(world: World, host: Host) -> None:
    cure = world.rng.choice(list(Cure))
    step = world.rng.choice(
        (Phase.PREFLIGHT, Phase.CLEAN, Phase.CONTAINER, Phase.STAGE, "start", "argv", "prove", "stop")
    )
    host.failures.setdefault(step, []).extend([TRANSIENT[cure]] * world.rng.choice((1, 1, 3)))
    if cure is Cure.PERSON and step in ("start", "argv", "prove"):
        world.after(world.between(5, 40), lambda: mend_inputs(world, host))


def break_input(world: World, host: Host) -> None:
    if world.rng.random() < 0.5:
        host.bad_input = SCRIPT_MISSING
    else:
        host.bad_engine = BAD_RECIPE
    host.inputs += 1
    world.invariants.inputs_changed(host)
    world.log("an input is bad", host)
    world.after(world.between(5, 90), lambda: mend_inputs(world, host))


def differ(world: World, host: Host) -> None:
    what = world.rng.choice(("plan", "image", "weights", "driver"))
    host.digests = INPUTS.model_copy(update={what: "other"})
    world.log(f"its {what} differs", host)

    def same() -> None:
        host.digests = INPUTS

    world.after(world.between(5, 60), same)


def slow_down(world: World, host: Host) -> None:
    host.slow = world.rng.choice((1.0, 5.0, 20.0))


def operate(world: World, host: Host) -> None:
    world.operator(world.rng.choice(("start", "stop", "restart", "restart")))
    if world.rng.random() < 0.7:
        world.after(world.between(0.01, 20), lambda: world.operator("start"))


def load(world: World, host: Host) -> None:
    world.loaded = not world.loaded


KINDS: tuple[Callable[[World, Host], None], ...] = (
    kill,
    kill,
    kill,
    hang,
    crash_daemon,
    crash_daemon,
    crash_daemon,
    reboot,
    reboot_all,
    cut_link,
    cut_link,
    fail_step,
    fail_step,
    break_input,
    differ,
    slow_down,
    operate,
    load,
)
