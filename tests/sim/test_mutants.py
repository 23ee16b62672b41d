"""No guard without a dead mutant: each guard of control is broken in a copy, and the simulation has to catch it.

A mutant is one textual replacement in a copy of `sparkd/control`, run in a process of its own. It is dead when a walk (or
the unit test named) fails with an assertion, not with any other error.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sim.planted import MUTANTS, Mutant, plant

CAUGHT = 3  # exit status of a scenario that ended with an assertion
LIMIT_S = 120


SCENARIO = """
import sys
name = sys.argv[1]
try:
    if name.startswith("seed "):
        from sim.converge import live
        live(*map(int, name[5:].split()))
    else:
        from sim import test_walks
        getattr(test_walks, name)()
except AssertionError as error:
    print(str(error).splitlines()[0] if str(error) else repr(error))
    sys.exit({caught})
"""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_mutant_dies(mutant: Mutant, tmp_path: Path) -> None:
    environment = plant(mutant, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SCENARIO.format(caught=CAUGHT), mutant.walk],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == CAUGHT, f"the mutant lives ({done.returncode}): {done.stdout}{done.stderr}"
