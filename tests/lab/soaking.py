"""The commands of `scripts/soak`."""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from . import breakages, ordeal, schedule, soak
from .api import Lab
from .host import LabError, say
from .pair import Pair
from .places import Places
from .real_engine import RealLab, pair_of
from .schedule import Schedule


def main(argv: Sequence[str], usage: str) -> int:
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--minutes", type=float, help="soak for so long")
    what.add_argument("--schedules", type=int, metavar="N", help="endure N random schedules")
    what.add_argument("--schedule", metavar="FILE", help="endure this one")
    what.add_argument("--print", action="store_true", help="print the schedule of --seed")
    parser.add_argument("--every", type=float, default=120, metavar="S", help="seconds between the faults of a soak")
    parser.add_argument("--seed", type=int, help="the first seed; drawn where absent, and told")
    parser.add_argument("--engine", choices=("simulated", "real"), default="simulated")
    parser.add_argument("--record", type=Path, metavar="FILE", help="what was seen, a line of JSON each")
    options = parser.parse_args(argv)
    try:
        return carry_out(options)
    except LabError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 3


def carry_out(options: argparse.Namespace) -> int:
    real = options.engine == "real"
    known = breakages.kinds(breakages.catalogue(real_engine=real))
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    if options.print:
        print(schedule.draw(seed, known))
        return 0
    if options.schedule is not None:
        text = sys.stdin.read() if options.schedule == "-" else Path(options.schedule).read_text()
        schedules = [schedule.parse(text, sorted(known))]
    elif options.schedules is not None:
        schedules = [schedule.draw(seed + n, known) for n in range(options.schedules)]
        say(f"{len(schedules)} schedules from seed {seed}")
    with reserved_pair(real) as pair, recording(options.record) as record:
        if options.minutes is None:
            return endure_all(pair, schedules, real, record)
        soaked = soak.run(pair, minutes=options.minutes, every_s=options.every, record=record)
        return 1 if soaked.complaints else 0


@contextlib.contextmanager
def recording(path: Path | None) -> Iterator[TextIO]:
    with (path or Path("/dev/null")).open("a") as record:
        yield record


@contextlib.contextmanager
def reserved_pair(real: bool) -> Iterator[Pair]:
    """The lab, up; a simulated engine that starts in seconds, as the tests have it."""
    places = Places.of_environment()
    if real and places.name == "lab":
        places = Places("real", places.state.with_name("real"), places.cache)
    lab = RealLab(places) if real else Lab(places)
    with lab.reserved():
        if isinstance(lab, RealLab):
            yield pair_of(lab)
            return
        pair = Pair(lab)
        pair.pace(start_s=4.0, stop_scale=0.25)
        yield pair


def endure_all(pair: Pair, schedules: Sequence[Schedule], real: bool, record: TextIO) -> int:
    pair.start()
    bad = 0
    ends: dict[str, int] = {}
    for one in schedules:
        try:
            outcome = ordeal.endure(pair, one, real_engine=real)
        except LabError as error:  # of the lab, which says nothing of the pair
            outcome = ordeal.Outcome(one, ended="the lab failed", complaints=[str(error)])
        print(outcome, flush=True)
        record.write(ordeal.as_json(outcome) + "\n")
        record.flush()
        bad += not outcome.good
        ends[outcome.ended] = ends.get(outcome.ended, 0) + 1
    told = ", ".join(f"{count} {ended}" for ended, count in sorted(ends.items()))
    print(f"{len(schedules)} schedules: {told}; {bad} not as they should")
    return 1 if bad else 0
