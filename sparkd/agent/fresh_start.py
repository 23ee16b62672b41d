"""What only a fresh start gives back. A daemon that can open nothing more is none: it sees no process, hears no peer and
answers nobody, though its loop turns and feeds the watchdog. One whose directories were removed can write in their place
no more (to it all else is read-only), and only systemd makes them anew. Both say so and end; the daemon that systemd
starts instead adopts the engine.
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sparkd.control.state import NodeState
from sparkd.host.clock import monotonic
from sparkd.model.errors import SparkdError

BORNE_MAX_S = 3.0  # longer than any burst of clients, and than the control socket takes to make /run/sparkd itself
KINDS_MAX = 4
_OPEN = Path("/proc/self/fd")
_NUMBER = re.compile(r":\[\d+\]$")  # "socket:[40211]"


@dataclass(frozen=True)
class Want:
    id: str
    says: str
    hint: str


class FreshStart:
    """Looks at each turn of the loop. `settle` is called before the daemon ends: what is not on disk goes to /run."""

    def __init__(
        self,
        note: Callable[..., None],
        settle: Callable[[], None],
        directories: Iterable[Path],
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._note, self._settle, self._clock = note, settle, clock
        self._directories = [directory for directory in directories if not _is_gone(directory)]
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)  # given back when nothing else can be opened
        self._since: float | None = None

    def follow(self, before: NodeState, after: NodeState) -> None:
        """Raises SparkdError, which ends the daemon, when it has been in want for BORNE_MAX_S."""
        is_full = _is_full(self._spare)
        gone = [directory for directory in self._directories if _is_gone(directory)]
        if not is_full and not gone:
            self._since = None
            return
        now = self._clock()
        if self._since is None:
            self._since = now
        if now - self._since < BORNE_MAX_S:
            return
        os.close(self._spare)
        self._settle()
        want = _no_descriptors() if is_full else _no_directory(gone)
        self._note(want.id, f"{want.says}; it ends and is started anew, the engine is left as it is", alarm=True)
        raise SparkdError(want.says, hint=want.hint)


def _is_gone(directory: Path) -> bool:
    """Not so where it cannot be looked at: no start mends a sick disk."""
    try:
        directory.stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def _is_full(spare: int) -> bool:
    try:
        os.close(os.dup(spare))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        return True
    return False


def _no_descriptors() -> Want:
    kinds = Counter(_kind(each) for each in _OPEN.iterdir())
    most = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(KINDS_MAX))
    return Want(
        "agent.no-descriptors",
        f"no file can be opened any more: all {kinds.total()} descriptors of the daemon are in use ({most})",
        "systemctl show -p LimitNOFILE sparkd; `sparkd report` if it comes again",
    )


def _kind(descriptor: Path) -> str:
    """What it is open on: "socket", "anon_inode:[pidfd]", "/var/lib/sparkd/events.jsonl"."""
    try:
        return _NUMBER.sub("", str(descriptor.readlink()))
    except OSError:
        return "closed meanwhile"


def _no_directory(gone: list[Path]) -> Want:
    names = " and ".join(map(str, gone))
    return Want(
        "agent.directory-gone",
        f"{names} {'was' if len(gone) == 1 else 'were'} removed under the daemon, which cannot make it anew",
        f"systemd makes it at the start; what lay in {names} is lost, but for the state",
    )
