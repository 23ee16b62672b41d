"""A history's script as data: what the world is like, and which faults happen when. Drawn from a seed, or written down.

A schedule holds everything that a fault needs, so dropping one fault leaves the others as they were. Its text is one line
for the setup and one for each fault, and reads back to the same schedule: that is how regressions are kept.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace

from sim.faults import KINDS, WEIGHTS, Span, Value

FAULTS = 12
GAPS_S = (0.05, 1.0, 4.0, 15.0, 40.0)  # between two faults: some right after each other, some after a calm
FIRST_S = (0.5, 45.0)


@dataclass(frozen=True)
class Setup:
    """What the world is like. Shares are of all messages."""

    nodes: int = 2
    seed: int = 0  # of what is neither setup nor fault: how long a step takes, which message is lost
    budget: int = 50  # restarts_max
    load_s: float = 15.0
    survives_s: float = 75.0  # an engine's connections over a dead link: TCP minutes, RoCE seconds
    lost: float = 0.0
    late: float = 0.0
    twice: float = 0.0
    harsh: float = 0.0  # words that come again after newer ones, which no session of the real transport lets through
    boots: tuple[float, ...] = (0.0, 0.0)  # seconds


@dataclass(frozen=True)
class Fault:
    at: float  # seconds
    kind: str  # of faults.KINDS
    host: int  # rank
    parameters: tuple[tuple[str, Value], ...] = ()


@dataclass(frozen=True)
class Schedule:
    setup: Setup
    faults: tuple[Fault, ...] = ()

    def without(self, *dropped: int) -> Schedule:
        """The same schedule without the faults at these places."""
        return replace(self, faults=tuple(f for i, f in enumerate(self.faults) if i not in dropped))


def draw(seed: int, *, nodes: int | None = None, faults: int = FAULTS) -> Schedule:
    """The schedule of a seed."""
    rng = random.Random(f"schedule {seed}")
    setup = _draw_setup(rng, seed, nodes)
    at_s, drawn = rng.uniform(*FIRST_S), []
    for _ in range(faults):
        kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        drawn.append(draw_fault(rng, kind, at_s, rng.randrange(setup.nodes)))
        at_s += rng.choice(GAPS_S) * 2 * rng.random()
    return Schedule(setup, tuple(drawn))


def _draw_setup(rng: random.Random, seed: int, nodes: int | None) -> Setup:
    nodes = nodes or rng.choice((1, 2, 2, 2, 2, 2, 3, 4))
    noise = rng.choice(("none", "none", "some", "much", "harsh"))
    share = {"none": 0.0, "some": 0.05, "much": 0.3, "harsh": 0.2}[noise]
    return Setup(
        nodes=nodes,
        seed=seed,
        budget=rng.choice((50, 50, 50, 50, 4)),
        load_s=rng.choice((3.0, 15.0, 30.0)),
        survives_s=rng.choice((4.0, 75.0, 75.0)),
        lost=share if rng.random() < 0.6 else 0.0,
        late=share if rng.random() < 0.6 else 0.0,
        twice=share if rng.random() < 0.6 else 0.0,
        harsh=share if noise == "harsh" else 0.0,
        boots=tuple(_round(rng.choice((0.0, 1.0, 20.0, 70.0)) * rng.random()) for _ in range(nodes)),
    )


def draw_fault(rng: random.Random, kind: str, at_s: float, host: int) -> Fault:
    parameters = tuple((name, _draw_value(rng, domain)) for name, domain in KINDS[kind].parameters.items())
    return Fault(_round(at_s), kind, host, parameters)


def _draw_value(rng: random.Random, domain: Span | tuple[Value, ...]) -> Value:
    if isinstance(domain, Span):
        return _round(rng.choice(domain.tops_s) * rng.uniform(domain.least, 1))
    return rng.choice(domain)


def _round(seconds: float) -> float:
    return round(seconds, 2)


# --- as text -----------------------------------------------------------------------------------------------------


def to_text(schedule: Schedule) -> str:
    """One line for the setup, one for each fault."""
    setup = schedule.setup
    words = [f"{f.name}={_word(getattr(setup, f.name))}" for f in fields(setup) if f.name != "boots"]
    lines = [" ".join([*words, "boots=" + "/".join(_word(at) for at in setup.boots)])]
    for fault in schedule.faults:
        parameters = [f"{name}={_word(value)}" for name, value in fault.parameters]
        lines.append(" ".join([f"{fault.at:8.2f}", fault.kind, str(fault.host), *parameters]))
    return "\n".join(lines) + "\n"


def from_text(text: str) -> Schedule:
    """The schedule that `to_text` wrote; lines that begin with # are for people. Raises ValueError."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    words = dict(_pair(word) for word in lines[0].split())
    boots = tuple(float(word) for word in str(words.pop("boots", "0.0/0.0")).split("/"))
    known = {f.name for f in fields(Setup)}
    if not set(words) <= known:
        raise ValueError(f"a setup has no {', '.join(sorted(set(words) - known))}")
    setup = Setup(**words, boots=boots)  # type: ignore[arg-type]
    return Schedule(setup, tuple(_read_fault(line) for line in lines[1:]))


def _read_fault(line: str) -> Fault:
    at, kind, host, *rest = line.split()
    if kind not in KINDS:
        raise ValueError(f"there is no fault {kind!r}: {line}")
    return Fault(float(at), kind, int(host), tuple(_pair(word) for word in rest))


def _pair(word: str) -> tuple[str, Value]:
    name, _, value = word.partition("=")
    for read in (int, float):
        try:
            return name, read(value)
        except ValueError:
            continue
    return name, value


def _word(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) and value >= 1e6 else str(value)
