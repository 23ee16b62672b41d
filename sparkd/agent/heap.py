"""What a launch leaves on the daemon's heap is given back, and little piles up meanwhile.

Checks, Docker's answers and parsed files of a launch end in cycles. CPython collects old ones only when a quarter of all objects
is new, and of the daemon's 60,000 containers most are its code: what a launch left could wait for many launches, in arenas of
1 MiB that one survivor keeps. So what lives when it first serves is counted no more (gc.freeze), and each phase ends with a
collection, which takes milliseconds then. Between what lives glibc keeps the pages of what does not: they are given back
once the pair serves.

One table grows once, whatever lives: the interned names, because pathlib interns each part of each path, and what is deleted
still counts until the table is made anew. That came 42 minutes after the start, as a step of 0.9 MiB that looked like a leak; it
is provoked when it first serves, so that what the daemon takes then is what it takes. (docs/bench.md has what was measured.)
"""

from __future__ import annotations

import ctypes
import gc
import sys

from sparkd.control.state import NodeState
from sparkd.model.report import Phase

INTERNED = 20_000  # of a table with room for 43,690, the modules take some 30,000; the next one has room for 87,381


def give_back(before: NodeState, after: NodeState) -> None:
    """Follows the state."""
    if after.phase is before.phase:
        return
    gc.collect()
    if after.phase is Phase.SERVING:
        if not gc.get_freeze_count():  # once: a cycle that is frozen and dies later is never collected
            gc.freeze()
            for number in range(INTERNED):
                sys.intern(f"sparkd {number}")
        if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc's
            trim(0)
