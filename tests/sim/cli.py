"""`scripts/sim`: any number of random schedules on all cores, one of them again, the smallest that fails, the planted bugs."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from sim.converge import begin, live, run
from sim.hunt import Tally, hunt
from sim.planted import MUTANTS, TEN, Found, Mutant, search
from sim.schedule import FAULTS, Schedule, draw, from_text, to_text
from sim.shrink import breaks, shrink
from sim.truth import Violation

CHUNK = 20  # schedules of one task of one process
SAYS_EVERY_S = 5.0
BUDGET = 2000  # schedules in which a planted bug has to be found
FRESH_SEED = 1 << 20  # from here on: what CI does not run anyway


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="how many schedules (1000)")
    parser.add_argument("--from", type=int, default=FRESH_SEED, metavar="S", dest="first", help="the first seed")
    parser.add_argument("--nodes", type=int, choices=range(1, 5), help="of every cluster; else 1 to 4, mostly 2")
    parser.add_argument("--faults", type=int, default=FAULTS, metavar="N", help=f"of each schedule ({FAULTS})")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="J", help="processes (all cores)")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first schedule that fails")
    parser.add_argument("--replay", metavar="SEED|FILE", help="one schedule again, with its trace")
    parser.add_argument(
        "--shrink", action="store_true", help="of the schedule that fails, the smallest that still does"
    )
    parser.add_argument("--mutants", nargs="?", const="ten", choices=("ten", "all"), help="the search for planted bugs")
    parser.add_argument("--budget", type=int, default=BUDGET, metavar="N", help=f"schedules for each bug ({BUDGET})")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """0: every invariant held (or every planted bug was found). 1: not so."""
    options = arguments(argv)
    if options.mutants:
        return find_mutants(TEN if options.mutants == "ten" else MUTANTS, options)
    if options.replay:
        return replay(_schedule(options.replay, options), is_shrunk=options.shrink)
    return run_seeds(options)


def _schedule(word: str, options: argparse.Namespace) -> Schedule:
    if word.isdigit():
        return draw(int(word), nodes=options.nodes, faults=options.faults)
    return from_text(Path(word).read_text())


# --- one schedule ----------------------------------------------------------------------------------------------------


def replay(schedule: Schedule, *, is_shrunk: bool) -> int:
    if is_shrunk and breaks(schedule) is not None:
        schedule = shrink(schedule)
    world = begin(schedule)
    try:
        live(schedule)
    except Violation as broken:
        print(broken)
        return 1
    run(world)
    print("\n".join(world.lines()), "\n\n", to_text(schedule), "\nevery invariant held", sep="")
    return 0


# --- many ------------------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    began_at: float = field(default_factory=time.monotonic)
    said_at: float = 0.0
    schedules: int = 0
    virtual_s: float = 0.0
    failures: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, tally: Tally) -> None:
        self.schedules += tally.schedules
        self.virtual_s += tally.virtual_s
        self.failures += tally.failures

    def line(self) -> str:
        took_s = max(time.monotonic() - self.began_at, 1e-9)
        rate, hours = self.schedules / took_s, self.virtual_s / 3600
        return (
            f"{self.schedules} schedules in {took_s:.0f} s: {rate:.1f} schedules/s, {hours:.1f} virtual hours "
            f"({self.virtual_s / took_s:.0f} times as fast as time), {len(self.failures)} failed"
        )


def run_seeds(options: argparse.Namespace) -> int:
    progress = Progress()
    print(f"seeds {options.first} to {options.first + options.seeds - 1}, {options.jobs} processes", flush=True)
    for tally in _tallies(options):
        progress.add(tally)
        for seed, invariant, what in tally.failures:
            print(f"seed {seed}: invariant {invariant}: {what}", flush=True)
        if progress.failures and not options.keep_going:
            break
        if time.monotonic() - progress.said_at > SAYS_EVERY_S:
            progress.said_at = time.monotonic()
            print(progress.line(), file=sys.stderr, flush=True)
    print(progress.line())
    if not progress.failures:
        return 0
    first = min(progress.failures)[0]
    schedule = draw(first, nodes=options.nodes, faults=options.faults)
    return replay(schedule, is_shrunk=options.shrink)


def _tallies(options: argparse.Namespace) -> Iterator[Tally]:
    firsts = range(options.first, options.first + options.seeds, CHUNK)
    work = partial(
        _chunk,
        end=options.first + options.seeds,
        nodes=options.nodes,
        faults=options.faults,
        keep_going=options.keep_going,
    )
    if options.jobs <= 1:
        yield from map(work, firsts)
        return
    with get_context("spawn").Pool(options.jobs) as pool:
        yield from pool.imap_unordered(work, firsts)


def _chunk(first: int, *, end: int, nodes: int | None, faults: int, keep_going: bool) -> Tally:
    return hunt(first, min(CHUNK, end - first), nodes=nodes, faults=faults, keep_going=keep_going)


# --- planted bugs ----------------------------------------------------------------------------------------------------


def find_mutants(mutants: Sequence[Mutant], options: argparse.Namespace) -> int:
    """What each bug costs random schedules to find: the number of schedules, the first that failed included."""

    def look_for(mutant: Mutant) -> Found:
        with tempfile.TemporaryDirectory() as directory:
            return search(mutant, Path(directory), options.first, options.budget)

    print(f"seeds from {options.first}, at most {options.budget} for each bug")
    missed = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutant, found in zip(mutants, pool.map(look_for, mutants), strict=True):
            print(row(mutant, found), flush=True)
            if found.seed is None:
                missed.append(mutant.name)
    print(f"{len(mutants) - len(missed)} of {len(mutants)} found" + (f"; not: {', '.join(missed)}" if missed else ""))
    return 1 if missed else 0


def row(mutant: Mutant, found: Found) -> str:
    result = f"invariant {found.invariant}, seed {found.seed}" if found.seed is not None else "NOT FOUND"
    return f"{found.tried:6} schedules  {mutant.name:44} {result}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
