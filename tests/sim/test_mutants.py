"""No guard without a dead mutant: each guard of control is broken in a copy, and the simulation has to catch it.

A mutant is one textual replacement in a copy of `sparkd/control`, run in a process of its own. It is dead when the walk or the
schedule that is named with it fails with an assertion, not with any other error. Ten that matter most have to be found by
random schedules alone. And each of the ten invariants is broken by one of them, so that none is a check that cannot fail.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sim.cli import row
from sim.planted import MUTANTS, SHOWS, TEN, WALKED, Mutant, plant, search

CAUGHT = 3  # exit status of a scenario that ended with an assertion
LIMIT_S = 300
FIRST, BUDGET = 500_000, 600  # seeds in which each of the ten must be found
KEPT = [Path(__file__).parent / name for name in ("shows", "regressions")]  # schedules that show a planted bug

SCENARIO = """
import sys
from pathlib import Path
name = sys.argv[1]
try:
    if name.endswith(".txt"):
        from sim.converge import live
        from sim.schedule import from_text
        live(from_text(Path(name).read_text()))
    else:
        from sim import test_walks, test_walks_of_nodes, test_walks_of_people, test_wedge
        modules = test_walks, test_walks_of_nodes, test_walks_of_people, test_wedge
        next(getattr(module, name) for module in modules if hasattr(module, name))()
except AssertionError as error:
    print(getattr(error, "invariant", ""), str(error).splitlines()[0] if str(error) else repr(error))
    sys.exit({caught})
"""


def act_out(mutant: Mutant, scenario: str, directory: Path) -> str:
    """What the planted bug led to. Fails where nothing noticed it."""
    done = subprocess.run(
        [sys.executable, "-c", SCENARIO.format(caught=CAUGHT), scenario],
        env=plant(mutant, directory),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == CAUGHT, f"the mutant lives ({done.returncode}): {done.stdout}{done.stderr}"
    return done.stdout


def _scenario(name: str) -> str:
    """A walk by its name, a schedule by its file."""
    return next((str(kept / name) for kept in KEPT if (kept / name).exists()), name)


def _id(mutant: Mutant) -> str:
    return mutant.name.replace(" ", "-")


@pytest.mark.parametrize("mutant", WALKED, ids=_id)
def test_mutant_dies(mutant: Mutant, tmp_path: Path) -> None:
    act_out(mutant, _scenario(mutant.walk), tmp_path)


@pytest.mark.parametrize("invariant", range(1, 11))
def test_each_invariant_can_be_broken(invariant: int, tmp_path: Path) -> None:
    name, schedule = SHOWS[invariant]
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    assert act_out(mutant, _scenario(schedule), tmp_path).startswith(f"{invariant} invariant {invariant} (")


@pytest.mark.parametrize("mutant", TEN, ids=_id)
def test_random_schedules_find_what_matters(mutant: Mutant, tmp_path: Path) -> None:
    found = search(mutant, tmp_path, FIRST, BUDGET)
    print(row(mutant, found))
    assert found.seed is not None, f"{mutant.name} lives after {found.tried} schedules"


def test_a_guard_that_has_changed_is_told(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="plant this bug anew"):
        plant(Mutant("gone", "node", "no such line", "", ""), tmp_path)
