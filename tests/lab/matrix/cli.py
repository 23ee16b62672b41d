"""`scripts/faults`: breaks the pair in every way that the matrix knows, and prints what came of it.

  scripts/faults [CASE...]                 all cases, or those named; `--list` tells their names
    --node NODE                            spark1, spark2 or both (as the table's cases name them) only
    --load idle|loaded                     under this load only
    --keeper sparkd|seed|both              who keeps the pair up: sparkd, the published deployment's two units, or one
                                           after the other, side by side in the table (sparkd)
    --slow                                 also the cases that take minutes by nature
    --labs N                               in so many labs at once (1)
    --half 1|2                             one load for each node of a case, as the tests do; 2: what that leaves out
    --markdown                             write docs/faults.md
    --json FILE                            write the rows; --from FILE shows what was written before and runs nothing

Brings the lab up (its environment is that of `scripts/lab`) and leaves it up. Exit status 1 where a row of sparkd is not good.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

from tests.lab.cli import become_root, the_lab
from tests.lab.config import LIMITS
from tests.lab.host import LabError
from tests.lab.matrix import catalogue, several, table
from tests.lab.matrix.case import BOTH, Keeper, Load, Row
from tests.lab.matrix.sparkd_keeper import SparkdKeeper
from tests.lab.pair import NODES, START_S, STOP_SCALE, Pair
from tests.lab.places import CHECKOUT
from tests.lab.real_engine import MORE_S, REFERENCE, RealLab, launch_script

MARKDOWN = CHECKOUT / "docs/faults.md"
NAMES = {"sparkd": "sparkd", "seed": "units"}  # a keeper's name in the table
USAGE_ERROR = 64


def main(arguments: Sequence[str]) -> int:
    """Exit status."""
    options = parse(arguments)
    if options.list:
        for case in catalogue.cases():
            print(f"{case.id:<22} {case.what}{' (slow)' if case.slow else ''}")
        return 0
    keepers = ["sparkd", "seed"] if options.keeper == "both" else [options.keeper]
    try:
        if os.geteuid() != 0 and not options.read:
            become_root(arguments, "scripts/faults")
        os.umask(0o022)  # nodes are not to inherit what the person is used to
        rows = read(options.read) if options.read else list(measured(options, keepers))
    except LabError as error:
        print(f"faults: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    show(rows, options)
    return 0 if all(row.good for row in rows if row.keeper == "sparkd") else 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="faults", usage=__doc__)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--node", choices=(*NODES, BOTH))
    parser.add_argument("--load", choices=[*Load])
    parser.add_argument("--keeper", choices=("sparkd", "seed", "both"), default="sparkd")
    for flag in ("slow", "markdown", "list"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--half", type=int, choices=(1, 2))
    parser.add_argument("--labs", type=int, choices=range(1, 5), default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--from", type=Path, dest="read", action="append")
    options = parser.parse_args(arguments)
    known = {case.id for case in catalogue.cases()}
    if unknown := [case for case in options.cases if case not in known]:
        print(f"faults: {', '.join(unknown)}: no such case; `scripts/faults --list` tells them", file=sys.stderr)
        raise SystemExit(USAGE_ERROR)
    return options


def chosen(options: argparse.Namespace) -> list[catalogue.Combination]:
    named = [case for case in catalogue.cases() if not options.cases or case.id in options.cases]
    wanted = [case for case in named if options.slow or not case.slow or case.id in options.cases]
    every = catalogue.half(wanted, options.half) if options.half else catalogue.combinations(wanted)
    return [
        (case, node, load)
        for case, node, load in every
        if options.node in (None, node) and options.load in (None, load)
    ]


def measured(options: argparse.Namespace, keepers: Sequence[str]) -> Iterator[Row]:
    """Each combination under each keeper; one line of progress for each."""
    every = chosen(options)
    if os.environ.get("SPARKD_LAB_ENGINE") == "real":
        every = [(catalogue.with_more_time(case, MORE_S), node, load) for case, node, load in every]
    done, rows, began = 0, [], time.monotonic()
    for keeper in keepers:
        name = NAMES[keeper]
        combinations = [each for each in every if keeper == "sparkd" or not each[0].of_sparkd]
        say(f"{keeper}: {len(combinations)} rows in {options.labs} lab{'s' if options.labs > 1 else ''}")
        say(table.heading([name])[1])
        with several.measured(
            [functools.partial(a_lab, n, keeper) for n in range(options.labs)], combinations
        ) as futures:
            for combination, future in futures.items():
                row, done = result(future, combination, name), done + 1
                rows.append(row)
                minutes = (time.monotonic() - began) / 60
                told = table.line([row], colours=sys.stderr.isatty())
                say(f"{told}  [{done}/{len(every) * len(keepers)}, {minutes:.0f} min]")
                for note in table.notes([row]):
                    say(f"    {note}")
                if options.json:
                    options.json.write_text(json.dumps([table.as_json(row) for row in rows], indent=1) + "\n")
                yield row


def result(future: Future[Row], combination: catalogue.Combination, keeper: str) -> Row:
    """The row; where the fault could not even be made, a row that says so."""
    try:
        return future.result()
    except (AssertionError, LabError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        return Row(*combination, keeper, f"not made: {told}", None, None, 0, 0, (), story=str(error))


@contextlib.contextmanager
def a_lab(number: int, keeper: str) -> Iterator[Keeper]:
    """The lab of the environment, which stays up, or another one beside it for the time being."""
    lab = several.another(number) if number else the_lab()
    try:
        with lab.reserved(), kept_by(keeper, several.paced(lab)) as someone:
            yield someone
    finally:
        if number:
            lab.down()


@contextlib.contextmanager
def kept_by(keeper: str, pair: Pair) -> Iterator[Keeper]:
    if keeper == "sparkd":
        yield SparkdKeeper(pair)
        return
    from tests.lab.matrix.seed_units import SeedUnits

    units = SeedUnits(pair)
    if isinstance(pair.lab, RealLab):
        units = SeedUnits(pair, image=REFERENCE, script=functools.partial(launch_script, pair))
    with units:
        yield units


def read(files: Sequence[Path]) -> list[Row]:
    """What was written before, in the order of the cases; a later row stands for an earlier one. Raises LabError."""
    cases = {case.id: case for case in catalogue.cases()}
    try:
        told = [row for file in files for row in json.loads(file.read_text())]
        rows = [table.from_json(row, cases) for row in told if row["case"] in cases]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise LabError(f"rows cannot be read: {error}") from error
    latest = {(row.keeper, *table.key(row)): row for row in rows}
    places = {(case.id, node, load): n for n, (case, node, load) in enumerate(catalogue.combinations(cases.values()))}
    return sorted(latest.values(), key=lambda row: places.get(table.key(row), 0))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def show(rows: Sequence[Row], options: argparse.Namespace) -> None:
    keepers = list(dict.fromkeys(row.keeper for row in rows))
    print(table.text(rows, keepers, colours=sys.stdout.isatty()))
    print()
    for told in table.summaries(rows, keepers):
        print(told)
    if options.markdown:
        MARKDOWN.write_text(table.markdown(rows, keepers, preface(rows)))
        print(f"written to {MARKDOWN.relative_to(CHECKOUT)}")


def preface(rows: Sequence[Row]) -> list[str]:
    busy = statistics.median([row.busy for row in rows if row.busy] or [0.0])
    limits = ", ".join(f"`{name}` {value:g}" for name, value in LIMITS.items())
    return [
        "What is broken in the two-node lab, how it should end, and how it ended: measured by clients on the LAN, by the "
        "processes and by the files on the nodes, not by what anybody says of itself. `scripts/faults --markdown` writes "
        "this page.",
        "",
        "systemd, Docker, D-Bus, the kernel and the network are real; vLLM is the lab's simulation, whose start takes "
        f"{START_S:g} s and whose ways to stop take {STOP_SCALE:g} of the real one's time (a GB10 needs 8 to 9 minutes and "
        f"11 s). sparkd works by the lab's limits, in seconds unless the name says otherwise: {limits}. Cases that name "
        "another limit work by that. The shipped limits are longer (`link_loss_max_s` 45, `canary_interval_s` 60, "
        "`hang_max_s` 90): where a limit decides, times on real machines are longer by as much.",
        "",
        f"Measured while {busy:.1f} processes wanted each core of the machine (median): above 1 all times stretch.",
    ]
