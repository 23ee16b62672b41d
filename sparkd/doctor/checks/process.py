"""Layer process: engine processes, and the ports that they need."""

from __future__ import annotations

from sparkd.doctor.check import Answers, Gate, check, no, yes
from sparkd.doctor.facts import Facts, fact
from sparkd.host import ports
from sparkd.model.finding import Layer


@fact
def listeners(facts: Facts) -> tuple[ports.Listener, ...]:
    """Who listens on the engine's ports."""
    return tuple(ports.listeners((facts.plan.api_port, facts.plan.rendezvous_port)))


@check(
    "port.conflict",
    layer=Layer.PROCESS,
    question="Do sparkd and the engine want different ports?",
    how="cluster.link.port against the plan's API and rendezvous ports",
    means="One of them could not listen.",
    remedy="change cluster.link.port",
    sample="sparkd and the engine both want port 8000",
    gate=Gate.HOST,
)
def conflict(facts: Facts) -> Answers:
    port = facts.configured.cluster.link.port
    if port in (facts.plan.api_port, facts.plan.rendezvous_port):
        yield no(f"sparkd and the engine both want port {port}")
        return
    held = listeners(facts)
    holders = ", ".join(f"{listener.port} by {'/'.join(listener.names) or 'unknown'}" for listener in held)
    yield yes(f"the engine's ports are {'held before cleaning: ' + holders if held else 'free'}")
