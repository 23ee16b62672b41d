"""Schedules as Hypothesis draws them: the same domains as `schedule.draw`, so that what fails is made small."""

from __future__ import annotations

from hypothesis import strategies as st

from sim.faults import KINDS, Span, Value
from sim.schedule import Fault, Schedule, Setup

LAST_S = 150.0
SHARES = st.sampled_from((0.0, 0.05, 0.3))


def _seconds(most: float) -> st.SearchStrategy[float]:
    return st.integers(0, int(most * 100)).map(lambda hundredths: hundredths / 100)


def _value(domain: Span | tuple[Value, ...]) -> st.SearchStrategy[Value]:
    return _seconds(max(domain.tops_s)) if isinstance(domain, Span) else st.sampled_from(domain)


@st.composite
def _fault(draw: st.DrawFn) -> Fault:
    kind = draw(st.sampled_from(sorted(KINDS)))
    parameters = tuple((name, draw(_value(domain))) for name, domain in KINDS[kind].parameters.items())
    return Fault(draw(_seconds(LAST_S)), kind, draw(st.integers(0, 3)), parameters)


@st.composite
def schedules(draw: st.DrawFn, most: int = 10) -> Schedule:
    nodes = draw(st.integers(1, 4))
    setup = Setup(
        nodes=nodes,
        seed=draw(st.integers(0, 1000)),
        budget=draw(st.sampled_from((50, 4))),
        load_s=draw(st.sampled_from((3.0, 15.0, 30.0))),
        survives_s=draw(st.sampled_from((75.0, 4.0))),
        lost=draw(SHARES),
        late=draw(SHARES),
        twice=draw(SHARES),
        harsh=draw(SHARES),
        boots=tuple(draw(_seconds(20.0)) for _ in range(nodes)),
    )
    return Schedule(setup, tuple(draw(st.lists(_fault(), max_size=most))))
