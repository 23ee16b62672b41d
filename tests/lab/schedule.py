"""Schedules of faults as plain data: drawn from a seed, printed, pasted back, shortened by hand.

    traffic: yes
    after 3.0 s  kill-rank on spark2
    after 4.5 s  link-down on spark1 for 20 s
    after 9.0 s  sparkd-stopped on spark1 for 8 s

Each time is counted from the start of the schedule, so that lines can be taken out without moving the others.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .host import Unusable
from .places import NODES

STRIKES_MAX = 6
GAP_MAX_S = 15.0
DURATIONS_S = (2.0, 2.0, 5.0, 5.0, 12.0, 20.0, 40.0)  # shorter and longer than the limits in the lab's configuration

_LINE = re.compile(r"after ([\d.]+) s\s+([a-z0-9-]+) on ([a-z0-9]+)(?: for ([\d.]+) s)?")


@dataclass(frozen=True)
class Strike:
    """One fault: when it is made, what, where, and after how long it is mended (0: there is nothing to mend)."""

    after_s: float
    fault: str
    node: str
    for_s: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.for_s:g} s" if self.for_s else ""
        return f"after {self.after_s:g} s  {self.fault} on {self.node}{lasting}"


@dataclass(frozen=True)
class Schedule:
    strikes: tuple[Strike, ...]
    traffic: bool = False
    seed: int | None = None

    def __str__(self) -> str:
        origin = f"# seed {self.seed}\n" if self.seed is not None else ""
        lines = "\n".join(map(str, self.strikes))
        return f"{origin}traffic: {'yes' if self.traffic else 'no'}\n{lines}"

    @property
    def seconds(self) -> float:
        """Until the last fault is mended."""
        return max((strike.after_s + strike.for_s for strike in self.strikes), default=0.0)


@dataclass(frozen=True)
class Kind:
    """What a schedule has to know of a fault."""

    lasting: bool = False
    nodes: tuple[str, ...] = NODES
    weight: float = 1.0  # how often it is drawn, beside the others


def draw(seed: int, kinds: Mapping[str, Kind]) -> Schedule:
    """The schedule of this seed: the same for the same catalogue. Faults may overlap, and may strike what is down already."""
    chance = random.Random(seed)
    names = sorted(kinds)
    weights = [kinds[name].weight for name in names]
    strikes, at_s = [], 0.0
    for _ in range(chance.randint(1, STRIKES_MAX)):
        at_s += round(chance.uniform(0, GAP_MAX_S) * chance.random(), 1)  # often close together
        name = chance.choices(names, weights)[0]
        node = chance.choice(kinds[name].nodes)
        for_s = chance.choice(DURATIONS_S) if kinds[name].lasting else 0.0
        strikes.append(Strike(round(at_s, 1), name, node, for_s))
    return Schedule(tuple(strikes), traffic=chance.random() < 0.5, seed=seed)


def parse(text: str, known: Sequence[str]) -> Schedule:
    """A schedule as it was printed; comments and empty lines are passed over. Raises Unusable where a line is none."""
    strikes, traffic = [], False
    for line in (raw.partition("#")[0].strip() for raw in text.splitlines()):
        if not line:
            continue
        if line in ("traffic: yes", "traffic: no"):
            traffic = line.endswith("yes")
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise Unusable(
                f"{line!r} is no line of a schedule; one looks like: {Strike(3.5, 'link-down', 'spark1', 20)}"
            )
        after, fault, node, lasting = found.groups()
        if fault not in known:
            raise Unusable(f"{fault}: no such fault; known: {', '.join(sorted(known))}")
        if node not in NODES:
            raise Unusable(f"{node}: no such node; there are {' and '.join(NODES)}")
        strikes.append(Strike(float(after), fault, node, float(lasting or 0)))
    return Schedule(tuple(sorted(strikes, key=lambda strike: strike.after_s)), traffic)
