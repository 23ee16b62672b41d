"""What someone without the key may cost this node: connections, and new ones in a second. Pure; the listener asks.

Who has proven to be a peer (an authentic message, said for the first time) is bounded by its own pace alone. Everybody
else is one of two crowds: those who come from a node's address, and all the rest of the world, which cannot crowd
the nodes out. A connection that fails to prove itself is closed with its first answer, so the rate of new connections is
also that of garbage looked at, of failed signatures and of repeated hellos.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum


class Crowd(StrEnum):
    NODE = "node"
    STRANGER = "stranger"


@dataclass(frozen=True)
class Allowance:
    """Of one crowd; for NODE, of each address."""

    connections_max: int  # that have proven nothing yet
    new_per_s: float
    new_burst: int


ALLOWED = {
    Crowd.NODE: Allowance(connections_max=16, new_per_s=50.0, new_burst=100),
    Crowd.STRANGER: Allowance(connections_max=8, new_per_s=10.0, new_burst=20),
}
PROVEN_MAX_PER_ADDRESS = 16  # two kept conversations, and a few questions at a time
MESSAGES_PER_S, MESSAGES_BURST = 50.0, 100  # of one peer; it says one or two a second, and a few at each change


@dataclass
class Bucket:
    """So many a second, and so many at once."""

    per_s: float
    burst: float
    left: float = -1.0
    at: float = 0.0

    def take(self, now: float) -> bool:
        self.left = self.burst if self.left < 0 else min(self.burst, self.left + (now - self.at) * self.per_s)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Gate:
    """Which new connection is let in."""

    def __init__(self, nodes: Collection[str]) -> None:
        self._nodes = frozenset(nodes)
        self._buckets: dict[str, Bucket] = {}  # one for each node, one for the rest: bounded

    def crowd(self, address: str) -> Crowd:
        return Crowd.NODE if address in self._nodes else Crowd.STRANGER

    def key(self, address: str) -> str:
        """Under which an address is counted."""
        return address if address in self._nodes else ""

    def admits(self, address: str, now: float) -> bool:
        """Whether one more new connection is taken now."""
        allowed = ALLOWED[self.crowd(address)]
        bucket = self._buckets.setdefault(self.key(address), Bucket(allowed.new_per_s, allowed.new_burst))
        return bucket.take(now)


@dataclass
class Refusals:
    """What was refused, told once a minute at most, so that nobody can fill this node's log."""

    every_s: float = 60.0
    _told_at: float = field(default=float("-inf"))
    _since: int = 0

    def count(self, says: str, now: float) -> str | None:
        """The sentence for the log, where it is time for one."""
        self._since += 1
        if now - self._told_at < self.every_s:
            return None
        more = f" ({self._since} refusals since the last such line)" if self._since > 1 else ""
        self._told_at, self._since = now, 0
        return says + more
