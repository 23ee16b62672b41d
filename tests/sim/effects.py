"""Actions carried out on a simulated host: one after the other on its lane, requests beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sim.truth import MEMORY_WAIT_MAX_S, Host, Task
from sparkd.control.state import (
    Action,
    Canary,
    CanaryBack,
    Done,
    EngineSeen,
    Event,
    Failed,
    Inputs,
    Look,
    Prepare,
    Prove,
    Reload,
    Start,
    Stop,
)
from sparkd.model.finding import Cure, Finding, bad
from sparkd.model.report import Digests, Phase, Proof

if TYPE_CHECKING:
    from sim.world import World

PORT_TAKEN = bad("port.taken", "held by someone else: port 8000 by nginx (pid 4711)", cure=Cure.PERSON)
DURATION_S = {
    Phase.PREFLIGHT: (0.2, 1.0),
    Phase.CLEAN: (0.3, 1.5),
    Phase.CONTAINER: (0.1, 0.6),
    Phase.STAGE: (0.1, 0.3),
}


def carry_out(world: World, host: Host, action: Action) -> None:
    match action:
        case Prepare(phase=Phase.CLEAN):
            _enqueue(world, host, _clean(world, host, action))
        case Prepare():
            _enqueue(world, host, _prepare(world, host, action))
        case Start():
            world.starts[host.name].append(action.epoch)
            host.launched.add(action.epoch)
            world.invariants.is_staged(host, action.epoch)
            if host.rank == 0:
                world.epoch(action.epoch).ordered_at = world.now
            _enqueue(world, host, _start(world, host, action))
        case Stop():
            world.stops[host.name].append(action.epoch)
            _enqueue(world, host, _stop(world, host, action))
        case Prove():
            _prove(world, host, action)
        case Canary():
            _canary(world, host, action)
        case Look():
            _look(world, host)
        case Reload():
            host.loaded = host.digests.plan


def _look(world: World, host: Host) -> None:
    """A configuration that was mended is taken: nothing runs that it could surprise."""
    host.loaded = host.digests.plan
    finding = host.bad_input or (PORT_TAKEN if host.port_taken else None)
    world.later(host, host.rng.uniform(0.05, 0.3), Inputs(f"inputs-{host.inputs}", finding))


def _plan(plan: str, profile: str | None) -> str:
    return f"{plan}+{profile}" if profile else plan


def _enqueue(world: World, host: Host, task: Task) -> None:
    host.lane.append(task)
    if not host.lane_busy:
        _next(world, host)


def _next(world: World, host: Host) -> None:
    if not host.lane:
        return
    host.lane_busy = True
    task, life = host.lane.popleft(), host.life
    world.after(task.begin(), lambda: _finish(world, host, task, life))


def _finish(world: World, host: Host, task: Task, life: int) -> None:
    if host.life != life:
        return
    if host.inbox is not None:
        host.inbox.append(lambda: _finish(world, host, task, life))
        return
    outcome = task.end()
    if isinstance(outcome, float):
        world.after(outcome, lambda: _finish(world, host, task, life))
        return
    host.lane_busy = False
    if host.slow > 1 and world.half_open():
        world.blame(world.epoch_wanted(), f"{host.name} is too slow to start in time")
    if world.half_open():  # looked at again after the barrier opened: others may run
        _blame_second_look(world, outcome)
    world.deliver(host, outcome)
    if host.life == life and not host.lane_busy:
        _next(world, host)


def _blame_second_look(world: World, outcome: Event) -> None:
    """A worker that was armed for long looks again behind the barrier: a person may have changed something meanwhile."""
    if isinstance(outcome, Failed):
        world.blame(world.epoch_wanted(), outcome.finding.says)
    elif isinstance(outcome, Done) and outcome.digests is not None and outcome.digests != world.head.prepared:
        world.blame(world.epoch_wanted(), "a worker that looked again differs from the head")


def _planted(host: Host, step: str) -> Finding | None:
    failures = host.failures.get(step)
    return failures.pop(0) if failures else None


def _duration(world: World, host: Host, phase: Phase) -> Callable[[], float]:
    return lambda: host.rng.uniform(*DURATION_S[phase]) * host.slow


def _prepare(world: World, host: Host, action: Prepare) -> Task:
    def end() -> Event:
        finding = _planted(host, action.phase) or _unfit(world, host, action.phase)
        if finding is not None:
            return Failed(action.ticket, finding)
        if action.phase is Phase.STAGE:
            host.staged, host.kept_plan = action.epoch, (host.loaded, host.profile)
        if action.phase is Phase.PREFLIGHT:
            host.prepared = _read_inputs(host, action)
            return Done(action.ticket, "every check is good", digests=host.prepared)
        return Done(action.ticket)

    return Task(action.phase, _duration(world, host, action.phase), end)


def _read_inputs(host: Host, action: Prepare) -> Digests:
    """As agent/effects.py takes plans: the asked profile, and a changed file where it gives what another node has."""
    host.profile = action.profile
    pending = host.digests.plan != host.loaded
    differs = not set(action.others) <= {_plan(host.loaded, host.profile)}
    if pending and differs and _plan(host.digests.plan, host.profile) in action.others:
        host.loaded = host.digests.plan
    return host.digests.model_copy(update={"plan": _plan(host.loaded, host.profile)})


def _unfit(world: World, host: Host, phase: Phase) -> Finding | None:
    if phase is Phase.PREFLIGHT and host.bad_input is not None:
        return host.bad_input
    if phase is Phase.PREFLIGHT and not host.link and len(world.hosts) > 1:
        return bad("link.down", "bond0 has no carrier", cure=Cure.WAIT)
    if phase is Phase.CONTAINER and world.now < host.docker_at:
        return bad("docker.absent", "Docker does not answer", cure=Cure.WAIT)
    return None


def _clean(world: World, host: Host, action: Prepare) -> Task:
    """Whatever engine lives on a host that holds no launch is stale. It is stopped, then memory is measured."""
    began_at = 0.0

    def begin() -> float:
        nonlocal began_at
        began_at = world.now
        took_s = _duration(world, host, Phase.CLEAN)()
        if host.engine is None and host.spawning is None and not host.stale:
            return took_s
        boot, stop_s, strangers = host.boot, host.stop_s(), host.strangers
        world.invariants.stale_killed(host)

        def ended() -> None:
            if host.boot == boot:
                world.engines.end_engine(host, None)
                world.invariants.strangers_live(host, strangers)

        world.after(stop_s, ended)
        return took_s + stop_s

    def end() -> Event | float:
        finding = _planted(host, Phase.CLEAN)
        if finding is not None:
            return Failed(action.ticket, finding)
        if host.port_taken:
            return Failed(action.ticket, PORT_TAKEN)
        if world.now >= host.memory_at:
            return Done(action.ticket)
        if world.now - began_at < MEMORY_WAIT_MAX_S:
            return 1.0
        return Failed(action.ticket, bad("memory.short", "memory has not come back", cure=Cure.RELAUNCH))

    return Task(Phase.CLEAN, begin, end)


def _start(world: World, host: Host, action: Start) -> Task:
    def begin() -> float:
        return 0.1 * host.slow

    def end() -> Event:
        finding = _planted(host, "start")
        if finding is not None:
            world.blame(action.epoch, finding.says)
            return Failed(action.ticket, finding)
        boot, appears_s = host.boot, host.rng.uniform(0.2, 0.4)
        host.spawning = action.epoch
        world.after(appears_s, lambda: world.engines.spawn(host, action.epoch) if host.boot == boot else None)
        wrong = _planted(host, "argv")
        life = host.life
        world.after(appears_s + 0.2, lambda: _seen(world, host, action.epoch, life, wrong))
        return Done(action.ticket, "the unit is started")

    return Task("start", begin, end)


def _seen(world: World, host: Host, epoch: int, life: int, wrong: Finding | None) -> None:
    engine = host.engine
    if host.inbox is not None and host.life == life:
        host.inbox.append(lambda: _seen(world, host, epoch, life, wrong))
    elif host.life == life and engine is not None and engine.epoch == epoch and engine.top:
        if wrong is not None:
            world.blame(epoch, wrong.says)
        world.deliver(host, EngineSeen(epoch, (wrong,) if wrong else ()))


def _stop(world: World, host: Host, action: Stop) -> Task:
    def begin() -> float:
        boot, stop_s = host.boot, host.stop_s()
        world.after(stop_s, lambda: world.engines.end_engine(host, action.epoch) if host.boot == boot else None)
        return stop_s + 0.05

    def end() -> Event:
        finding = _planted(host, "stop")
        if finding is not None:
            return Failed(action.ticket, finding)
        return Done(action.ticket, finding=host.autopsy.get(action.epoch))

    return Task("stop", begin, end)


def _prove(world: World, host: Host, action: Prove) -> None:
    life = host.life

    def done(met: str) -> None:
        if host.life != life:
            return
        if host.inbox is not None:
            host.inbox.append(lambda: done(met))
            return
        planted = _planted(host, "prove")
        if planted is not None:
            world.blame(action.epoch, planted.says)
        finding = planted or _unanswered(met)
        proof = Proof(epoch=action.epoch, at=world.clock(host), content_chars=12, says="12 characters in 0.3 s")
        world.deliver(host, Failed(action.ticket, finding) if finding else Done(action.ticket, proof=proof))

    world.engines.ask(action.epoch, world.limits.prove_max_s, done)


def _canary(world: World, host: Host, action: Canary) -> None:
    life = host.life

    def done(met: str) -> None:
        if host.life == life and host.inbox is not None:
            host.inbox.append(lambda: done(met))
        elif host.life == life:
            finding = _unanswered(met)
            proof = None if finding else Proof(epoch=action.epoch, at=world.clock(host), says="a canary answered")
            world.deliver(host, CanaryBack(action.ticket, proof, finding))

    world.engines.ask(action.epoch, world.limits.canary_max_s, done)


def _unanswered(met: str) -> Finding | None:
    if met == "ok":
        return None
    if met == "timeout":
        return bad("endpoint.timeout", "no answer within the limit", cure=Cure.RELAUNCH)
    return bad("endpoint.error", "the endpoint answered 500", cure=Cure.RELAUNCH)
