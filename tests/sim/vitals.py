"""What engines do for minutes without an answer, and what a node sees of its part of an engine from outside.

Of a long prefill vLLM counts nothing but lets its gauges move; of a first-shape compilation and of a hang nothing moves.
The numbers are a GB10's (FIELD.md 9): work takes 45 W, a rank that waits for another spins at 95 % and 20 W.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sim.truth import Host
from sparkd.control.state import Counters, Measured
from sparkd.model.report import Vitals

if TYPE_CHECKING:
    from sim.world import World

MEASURE_S = 10.0  # how often a node looks while the head asks for it


@dataclass(frozen=True)
class Pastime:
    """What keeps a healthy engine from answering until `until`: "prefill" (in chunks), "whole prefill" (in one step),
    "compile" (on `rank`, the others wait for it), "between compilers" (nobody runs one just now) or "full cache" (others'
    requests get on, ours waits)."""

    kind: str
    until: float
    rank: int = 0

    def counted(self, was: Counters) -> Counters:
        """The engine's numbers one reading later."""
        if self.kind == "prefill":
            return replace(was, active=max(1, was.active), cache=min(1.0, was.cache + 0.002))
        if self.kind == "full cache":
            return Counters(was.successes, was.movement + 100, active=60, waiting=44, cache=1.0)
        return was


REST = Vitals(
    cpu_percent=100, processes=2, stopped="", compiling="", link_bytes_s=4000, gpu=True, gpu_watts=12, gpu_percent=0
)
WORK = REST.model_copy(update={"link_bytes_s": 40 << 20, "gpu_watts": 46, "gpu_percent": 96})
SPIN = REST.model_copy(update={"gpu_watts": 20, "gpu_percent": 95})
COMPILE = REST.model_copy(update={"compiling": "cicc"})
SLEEP = REST.model_copy(update={"cpu_percent": 0})
GONE = SLEEP.model_copy(update={"processes": 0})


def seen(world: World, host: Host) -> Vitals:
    """What this host shows now."""
    engine, pastime = host.engine, world.engines.pastime
    if engine is None or not engine.rank:
        return GONE
    if engine.hung:
        return SLEEP
    if pastime is not None and pastime.kind in ("compile", "between compilers"):
        return COMPILE if host.rank == pastime.rank and pastime.kind == "compile" else SPIN
    if pastime is not None:
        return WORK
    return SPIN if world.engines.answer(engine.epoch) == "hang" else SLEEP


def measure_regularly(world: World) -> None:
    world.after(MEASURE_S, lambda: measure_regularly(world))
    for host in world.hosts:
        state = host.state
        if state is None or state.launch is None or not world.vitals:
            continue
        if state.doubt if state.me.is_head else state.intent.doubt:
            world.later(host, 0.1, Measured(state.launch.epoch, seen(world, host)))
