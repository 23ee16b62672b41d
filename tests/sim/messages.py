"""Messages between daemons: a worker's report goes out, the head's intent comes back, silence has its kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.truth import Host
from sparkd.control import node
from sparkd.control.state import Heard, Silent, Told

if TYPE_CHECKING:
    from sim.world import World


class Messages:
    def __init__(self, world: World) -> None:
        self.world = world

    def counterparts(self, host: Host) -> list[Host]:
        return self.world.hosts[1:] if host is self.world.head else [self.world.head]

    def exchange_regularly(self, host: Host, peer: Host, life: int) -> None:
        if host.life != life:
            return
        self.tell(host, peer)
        self.world.after(self.world.limits.exchange_s, lambda: self.exchange_regularly(host, peer, life))

    def tell(self, host: Host, peer: Host) -> None:
        """One exchange at a time with each peer; what changes meanwhile is told right after it."""
        if host.state is None:
            return
        if peer.rank in host.exchanging:
            host.exchanging[peer.rank] = True
            return
        host.exchanging[peer.rank] = False
        life, reach = host.life, self.world.reach(host, peer)
        if reach == "unreachable":
            self.world.after(self.world.between(2.0, 3.0), lambda: self._exchanged(host, peer, life, reach))
        elif self.world.rng.random() < self.world.lost:
            self.world.after(1.0, lambda: self._exchanged(host, peer, life, "lost"))
        else:
            self.world.after(0.003, lambda: self._exchanged(host, peer, life, reach))

    def _exchanged(self, host: Host, peer: Host, life: int, reach: str) -> None:
        if host.life != life or host.state is None:
            return
        again = host.exchanging.pop(peer.rank, False)
        real = self.world.reach(host, peer)  # what was sent before a cut arrives, or it does not: both are one history
        if reach == "yes" and real == "yes":
            if host is self.world.head:
                self.world.deliver(peer, Told(host.state.intent))
            else:
                self.world.deliver(peer, Heard(node.report_now(host.state, self.world.clock(host))))
                if peer.state is not None and host.state is not None:
                    self.world.deliver(host, Told(peer.state.intent))
        elif reach in ("refused", "unreachable") and real != "yes":
            self.world.deliver(host, Silent(peer.rank, reach))
        if again:
            self.tell(host, peer)
