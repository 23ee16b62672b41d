"""What goes wrong: one entry of `KINDS` for each kind of fault with the domains of its parameters, and the mending of
everything at the end. A fault draws nothing while it happens: all it needs is in the schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sim.statefile import FATES
from sim.truth import INPUTS, Host, Trip
from sim.world import World
from sparkd.model.finding import Cure, bad
from sparkd.model.report import Phase

Value = str | int | float

SCRIPT_MISSING = bad("script.missing", "the launch script names a path that exists nowhere", cure=Cure.PERSON)
BAD_RECIPE = bad("engine.bad-argument", "vllm: error: unrecognized arguments: --tensor-paralel", cure=Cure.PERSON)
TRANSIENT = {
    Cure.WAIT: bad("step.waits", "something comes up soon", cure=Cure.WAIT),
    Cure.RELAUNCH: bad("step.failed", "the step failed", cure=Cure.RELAUNCH),
    Cure.PERSON: bad("step.wrong", "a check is not satisfied", cure=Cure.PERSON),
}
STEPS = (
    *(str(p) for p in (Phase.PREFLIGHT, Phase.CLEAN, Phase.CONTAINER, Phase.STAGE)),
    "start",
    "argv",
    "prove",
    "stop",
)
ACTIONS = ("any", "any", "Save", "Tell", "Prepare", "Start", "Start", "Stop", "Prove", "Canary")
TRIP_MAX_S = 120.0
HEARD_MAX_S = 30.0
PERSON_S = 20.0  # how long a person takes to mend what no check sees


@dataclass(frozen=True)
class Span:
    """Seconds: one of the tops, times something between `least` and 1."""

    tops_s: tuple[float, ...]
    least: float = 0.0


@dataclass(frozen=True)
class Kind:
    weight: int
    do: Callable[..., None]
    parameters: dict[str, Span | tuple[Value, ...]] = field(default_factory=dict)


# --- engines -----------------------------------------------------------------------------------------------------


def kill(world: World, host: Host, what: str, memory_s: float) -> None:
    if host.engine is not None:
        host.memory_at = max(host.memory_at, world.now + memory_s)
        world.engines.kill(host, host.engine.epoch, what, "is killed")


def hang(world: World, host: Host) -> None:
    if host.engine is not None:
        world.log("the engine hangs", host)
        host.engine.hung = True
        world.blame(host.engine.epoch, f"{host.name} hangs")


def doom(world: World, host: Host, part: float, times: int) -> None:
    """The next engines die in the middle of their start: at any of its phases."""
    world.log(f"the next {times} engines die at {part:.0%} of their start", host)
    host.doomed.extend([part * (world.load_s + 1)] * times)


def leave_stale(world: World, host: Host) -> None:
    """Orphans of an earlier launch of this boot, as when a stop was cut short: the daemon is told of them as it starts."""
    started = sorted(host.launched - ({host.engine.epoch} if host.engine else set()))
    if started and host.up and host.state is None and host.spawning is None:
        world.log(f"an orphan of epoch {started[-1]} lives", host)
        host.stale.add(started[-1])


def stranger(world: World, host: Host, port: int, stays_s: float) -> None:
    """Somebody else's engine processes, with or without our port. They are never touched."""
    if not host.up:
        return
    world.log(f"a stranger comes{' and takes the port' if port else ''}", host)
    boot = host.boot
    host.strangers += 1
    if port and not _is_checked(host):
        host.port_taken = True

    def leave() -> None:
        if host.boot == boot:
            host.strangers, host.port_taken = host.strangers - 1, False
            world.invariants.inputs_changed(host)

    world.after(stays_s, leave)


def fill_memory(world: World, host: Host, full_s: float) -> None:
    if not _is_checked(host):
        world.log(f"memory is full for {full_s:.0f} s", host)
        host.memory_at = max(host.memory_at, world.now + full_s)


def _is_checked(host: Host) -> bool:
    """What is taken away between the check and the launch is nobody's mistake: the engine dies of it, which is `doom`."""
    checked = (
        Phase.CLEAN,
        Phase.CONTAINER,
        Phase.STAGE,
        Phase.ARMED,
        Phase.LAUNCHING,
        Phase.STOPPING,
    )  # a start goes first
    launching = host.state is not None and host.state.phase in checked
    return launching or host.engine is not None or host.spawning is not None


# --- daemons and hosts -------------------------------------------------------------------------------------------


def crash_daemon(world: World, host: Host, away_s: float, state: str) -> None:
    if host.state is not None:
        world.end_daemon(host, 1.0 + away_s)  # RestartSec=1
        _state(world, host, state)


def trip(world: World, host: Host, on: str, left: int, side: str, takes: str, away_s: float) -> None:
    """The daemon, or its host, ends between two actions of one step."""
    world.log(f"will end {side} {left} x {on} ({takes})", host)
    host.trip = Trip(on, left, side == "after", takes == "power", 1.0 + away_s, world.now + TRIP_MAX_S)


def freeze(world: World, host: Host, seconds: float) -> None:
    world.freeze(host, seconds)


def reboot(world: World, host: Host, off_s: float, state: str, docker_s: float) -> None:
    if host.up:
        world.power_off(host)
        _state(world, host, state)
        world.after(1.0 + off_s, lambda: world.power_on(host, docker_s=docker_s))


def reboot_all(world: World, host: Host, off_s: float, docker_s: float) -> None:
    for each in world.hosts:
        reboot(world, each, off_s * (1 + each.rank) / 4, "kept", docker_s)


def replace_node(world: World, host: Host, off_s: float, mended_s: float) -> None:
    """Another machine of that name: no state file, another boot, another image until a person pulls it."""
    reboot(world, host, off_s, "lost", 1.0)
    host.saves.clear()
    host.kept_plan = None
    differ(world, host, "image", off_s + mended_s)


def _state(world: World, host: Host, fate: str) -> None:
    if fate != "kept":
        world.lose_state(host, fate)


def slow_down(world: World, host: Host, factor: float) -> None:
    host.slow = factor


def jump_clock(world: World, host: Host, seconds: float) -> None:
    """The wall clock. Nothing in control reads it, no data of control carries it: nothing at all may follow."""
    host.wall_offset_s += seconds


# --- the link ----------------------------------------------------------------------------------------------------


def cut_link(world: World, host: Host, down_s: float) -> None:
    _link_for(world, host, down_s, up=False)


def one_way(world: World, host: Host, way: str, down_s: float) -> None:
    """deaf: what others send is lost. mute: what it sends is lost."""
    _link_for(world, host, down_s, hears=way != "deaf", is_heard=way != "mute")


def _link_for(
    world: World, host: Host, down_s: float, *, up: bool = True, hears: bool = True, is_heard: bool = True
) -> None:
    world.set_link(host, up, hears=hears, is_heard=is_heard)
    since = host.link_changed_at
    world.after(down_s, lambda: world.set_link(host, True) if host.link_changed_at == since else None)


def noise(world: World, host: Host, kind: str, share: float, lasts_s: float) -> None:
    """Messages get lost, come late, or come twice, for a while."""
    world.log(f"{share:.0%} of the messages are {kind}")
    world.messages.disturb(kind, share)
    world.after(lasts_s, lambda: world.messages.calm(kind, share))


def reject(world: World, host: Host, lasts_s: float) -> None:
    """The keys differ: the head refuses what this worker says."""
    world.log(f"its word is rejected for {lasts_s:.0f} s", host)
    host.refused_until = world.now + lasts_s


# --- inputs and people -------------------------------------------------------------------------------------------


def fail_step(world: World, host: Host, step: str, cure: str, times: int, mended_s: float) -> None:
    host.failures.setdefault(step, []).extend([TRANSIENT[Cure(cure)]] * times)
    if cure == Cure.PERSON and step in ("start", "argv", "prove"):
        world.after(mended_s, lambda: mend_inputs(world, host))


def break_input(world: World, host: Host, seen: str, mended_s: float) -> None:
    """By a check, or by nobody before the engine dies of it."""
    if seen == "check":
        host.bad_input = SCRIPT_MISSING
    else:
        host.bad_engine = BAD_RECIPE
    host.inputs += 1
    world.invariants.inputs_changed(host)
    world.log("an input is bad", host)
    world.after(mended_s, lambda: mend_inputs(world, host))


def differ(world: World, host: Host, what: str, mended_s: float) -> None:
    host.digests = host.digests.model_copy(update={what: "other"})
    world.log(f"its {what} differs", host)

    def same() -> None:
        host.digests = host.digests.model_copy(update={what: getattr(INPUTS, what)})

    world.after(mended_s, same)


def change_plan(world: World, host: Host, where: str, restart_s: float) -> None:
    """A person edits the files, under a running epoch, and says `sparkd restart` then or never (0)."""
    world.log(f"the files change ({where})", host)
    plan = f"plan-{world.now:.0f}"
    for each in world.hosts if where == "all" else [host]:
        each.digests = each.digests.model_copy(update={"plan": plan})
    if restart_s:
        world.after(restart_s, lambda: world.operator("restart"))


def operate(world: World, host: Host, verb: str, profile: str, start_s: float) -> None:
    """`start_s`: `sparkd start` follows after so long (0: it does not)."""
    world.operator(verb, None if profile == "-" else profile)
    if start_s:
        world.after(start_s, lambda: world.operator("start"))


def load(world: World, host: Host) -> None:
    world.loaded = not world.loaded


AWAY, STAYS = Span((0.5, 2.0, 30.0)), Span((5.0, 15.0, 60.0))
STATES = ("kept", "kept", "kept", "kept", "kept", "kept", *FATES)
KINDS: dict[str, Kind] = {
    "kill": Kind(6, kill, {"what": ("rank", "rank", "top", "all"), "memory_s": Span((0.0, 0.0, 60.0))}),
    "hang": Kind(2, hang),
    "doom": Kind(3, doom, {"part": (0.0, 0.1, 0.3, 0.6, 0.95, 1.1), "times": (1, 1, 3)}),
    "leave-stale": Kind(1, leave_stale),
    "stranger": Kind(1, stranger, {"port": (0, 1), "stays_s": STAYS}),
    "fill-memory": Kind(1, fill_memory, {"full_s": STAYS}),
    "crash-daemon": Kind(6, crash_daemon, {"away_s": AWAY, "state": STATES}),
    "trip": Kind(
        7,
        trip,
        {
            "on": ACTIONS,
            "left": (0, 0, 0, 1, 3, 10),
            "side": ("before", "after"),
            "takes": ("daemon", "daemon", "power"),
            "away_s": AWAY,
        },
    ),
    "freeze": Kind(3, freeze, {"seconds": Span((2.0, 10.0, 20.0))}),
    "reboot": Kind(2, reboot, {"off_s": Span((3.0, 20.0, 60.0)), "state": STATES, "docker_s": Span((8.0,))}),
    "reboot-all": Kind(2, reboot_all, {"off_s": Span((3.0, 20.0, 60.0)), "docker_s": Span((8.0,))}),
    "replace-node": Kind(1, replace_node, {"off_s": Span((20.0,)), "mended_s": STAYS}),
    "slow-down": Kind(2, slow_down, {"factor": (1.0, 5.0, 20.0)}),
    "jump-clock": Kind(1, jump_clock, {"seconds": (-3600.0, 3600.0)}),
    "cut-link": Kind(4, cut_link, {"down_s": Span((1.0, 5.0, 15.0, 45.0), 0.3)}),
    "one-way": Kind(3, one_way, {"way": ("deaf", "mute"), "down_s": Span((1.0, 5.0, 15.0, 45.0), 0.3)}),
    "noise": Kind(2, noise, {"kind": ("lost", "late", "twice"), "share": (0.1, 0.5), "lasts_s": STAYS}),
    "reject": Kind(1, reject, {"lasts_s": STAYS}),
    "fail-step": Kind(
        4,
        fail_step,
        {"step": STEPS, "cure": tuple(str(c) for c in Cure), "times": (1, 1, 3), "mended_s": Span((40.0,), 0.2)},
    ),
    "break-input": Kind(2, break_input, {"seen": ("check", "engine"), "mended_s": Span((90.0,), 0.1)}),
    "differ": Kind(2, differ, {"what": ("image", "weights", "driver"), "mended_s": Span((60.0,), 0.1)}),
    "change-plan": Kind(3, change_plan, {"where": ("one", "all"), "restart_s": (0, 0, 0.5, 10.0)}),
    "operate": Kind(
        3,
        operate,
        {
            "verb": ("start", "stop", "restart", "restart"),
            "profile": ("-", "-", "-", "latency", "throughput"),
            "start_s": (0, 0.05, 1.0, 5.0, 20.0),
        },
    ),
    "load": Kind(2, load),
}
WEIGHTS = {name: kind.weight for name, kind in KINDS.items()}


# --- the end of all faults ---------------------------------------------------------------------------------------


def mend(world: World) -> None:
    """Everything that can go wrong is right again, except what the daemons have yet to find out."""
    world.log("--- everything is mended ---")
    for kind, shares in world.messages.disturbed.items():
        for share in tuple(shares):
            world.messages.calm(kind, share)
    for host in world.hosts:
        host.failures.clear()
        host.doomed.clear()
        host.digests, host.slow, host.trip, host.refused_until = INPUTS, 1.0, None, 0.0
        host.docker_at = min(host.docker_at, world.now)
        host.memory_at = min(host.memory_at, world.now + 5)
        host.strangers, host.port_taken = 0, False
        mend_inputs(world, host)
        world.set_link(host, True)
        world.power_on(host)
        world.thaw(host, host.life)
        world.daemon_up(host)
        world.after(20, lambda host=host: mend_inputs(world, host))  # type: ignore[misc]  # nobody is too quick
    world.run(5)
    world.run_until(lambda: world.head.awake, HEARD_MAX_S)  # a person who finds no daemon asks again
    state = world.head.state
    if state is not None and not state.intent.run:
        world.operator("start")
    elif _loaded_apart(world):
        world.operator("restart")  # as the remedy says


def _loaded_apart(world: World) -> bool:
    """Two nodes hold plans of which neither is what the files now say: only the operator's `restart` brings them together
    (a changed file is never taken by surprise)."""
    held = {host.loaded for host in world.hosts}
    return len(held) > 1 and INPUTS.plan not in held


def mend_inputs(world: World, host: Host) -> None:
    host.inputs += 1
    host.bad_input = host.bad_engine = None
    world.invariants.inputs_changed(host)
