"""Random schedules, one after the other, until one breaks an invariant. Run as a program by the search for planted bugs:
`python -m sim.hunt FIRST COUNT [shrink]` prints what it found as one line of JSON, or the smallest schedule that shows it, with
the control that is on its path."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field

from sim.converge import live
from sim.schedule import FAULTS, draw, to_text
from sim.shrink import shrink
from sim.truth import Violation


@dataclass
class Tally:
    """Of a range of seeds."""

    schedules: int = 0
    virtual_s: float = 0.0
    failures: list[tuple[int, int, str]] = field(default_factory=list)  # seed, invariant, what


def hunt(first: int, count: int, *, nodes: int | None = None, faults: int = FAULTS, keep_going: bool = False) -> Tally:
    """Live through the schedules of these seeds; stop at the first that fails, unless told to keep going."""
    tally = Tally()
    for seed in range(first, first + count):
        tally.schedules += 1
        try:
            tally.virtual_s += live(draw(seed, nodes=nodes, faults=faults)).now
        except Violation as broken:
            tally.failures.append((seed, broken.invariant, broken.what))
            if not keep_going:
                break
    return tally


def main(argv: list[str]) -> int:
    tally = hunt(int(argv[0]), int(argv[1]))
    seed, invariant, what = tally.failures[0] if tally.failures else (None, None, "")
    if argv[2:] == ["shrink"] and seed is not None:
        print(f"# invariant {invariant}: {what}\n{to_text(shrink(draw(seed)))}", end="")
        return 0
    print(json.dumps({"tried": tally.schedules, "seed": seed, "invariant": invariant, "what": what}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
