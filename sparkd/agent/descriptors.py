"""A daemon that can open nothing more is none: it sees no process, hears no peer and answers nobody, though its loop turns and
feeds the watchdog. It says so and ends; the one that systemd starts instead adopts the engine.
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from sparkd.control.state import NodeState
from sparkd.host.clock import monotonic
from sparkd.model.errors import SparkdError

FULL_MAX_S = 3.0  # longer than any burst of clients
KINDS_MAX = 4
_OPEN = Path("/proc/self/fd")
_NUMBER = re.compile(r":\[\d+\]$")  # "socket:[40211]"


class Descriptors:
    """Tries at each turn of the loop whether one more could be opened."""

    def __init__(self, note: Callable[..., None], *, clock: Callable[[], float] = monotonic) -> None:
        self._note, self._clock = note, clock
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)  # given back when nothing else can be opened
        self._full_since: float | None = None

    def follow(self, before: NodeState, after: NodeState) -> None:
        """Raises SparkdError, which ends the daemon, when this process has been without a free one for FULL_MAX_S."""
        try:
            os.close(os.dup(self._spare))
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
        else:
            self._full_since = None
            return
        now = self._clock()
        if self._full_since is None:
            self._full_since = now
        if now - self._full_since >= FULL_MAX_S:
            self._end()

    def _end(self) -> None:
        os.close(self._spare)
        kinds = Counter(_kind(each) for each in _OPEN.iterdir())
        most = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(KINDS_MAX))
        says = f"no file can be opened any more: all {kinds.total()} descriptors of the daemon are in use ({most})"
        self._note("agent.no-descriptors", f"{says}; it ends and is started anew, the engine is left as it is", alarm=True)
        raise SparkdError(says, hint="systemctl show -p LimitNOFILE sparkd; `sparkd report` if it comes again")


def _kind(descriptor: Path) -> str:
    """What it is open on: "socket", "anon_inode:[pidfd]", "/var/lib/sparkd/events.jsonl"."""
    try:
        return _NUMBER.sub("", str(descriptor.readlink()))
    except OSError:
        return "closed meanwhile"
