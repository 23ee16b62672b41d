"""What a launch leaves on the daemon's heap is given back, and little piles up meanwhile.

Checks, Docker's answers and parsed files of a launch end in cycles. CPython collects old ones only when a quarter of all objects
is new, and of the daemon's 60,000 containers most are its code: what a launch left could wait for many launches, in arenas of
1 MiB that one survivor keeps. So what lives when it first serves is counted no more (gc.freeze), and each phase ends with a
collection, which takes milliseconds then. Between what lives glibc keeps the pages of what does not: they are given back
once the pair serves. An hour with twenty launches took a daemon from 58 to 64 MiB before, 39 in a row from 57.3 to 60.2 with it,
of which the last 25 added 0.1 (docs/bench.md).
"""

from __future__ import annotations

import ctypes
import gc

from sparkd.control.state import NodeState
from sparkd.model.report import Phase


def give_back(before: NodeState, after: NodeState) -> None:
    """Follows the state."""
    if after.phase is before.phase:
        return
    gc.collect()
    if after.phase is Phase.SERVING:
        if not gc.get_freeze_count():  # once: a cycle that is frozen and dies later is never collected
            gc.freeze()
        if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc's
            trim(0)
