"""Messages between daemons, as sparkd.peer and agent/exchange.py carry them: a worker's report goes out, the head holds the
poll until its intent changes, and the intent comes back. The head probes the hosts of workers that are silent.

What can really happen: a request lost; a request that was taken and whose answer is lost; an answer that comes late; the
whole message said again after its connection broke (taken twice); a report that changed while the poll was held, so that
the poll is given up and another one begins; a frozen daemon that finds a heap of requests when it goes on. Sessions and
sequence numbers keep the order. `harsh` goes further: any word may come again, seconds later, after newer ones. Three
things never happen even then: a word of an earlier boot does not arrive after a later boot spoke, no word outlives the
daemon that it was sent to (its sessions end with it, and whoever has no memory can put nothing in order), and none is forged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.truth import Exchange, Host
from sparkd.control import serving, telling
from sparkd.control.state import Event, Heard, Silent, Told
from sparkd.model.finding import Cure, bad
from sparkd.model.report import Intent, Report

if TYPE_CHECKING:
    from sim.world import World

QUICK_S = 0.003
TURN_S = 1e-6  # at least, of a daemon's loop
CONNECT_S = 2.0
ANSWER_S = 3.0  # beyond the hold
AGAIN_S = 0.5
PROBE_S = 1.0
SILENCE_S = 1.5
STALE_S = 6.0
SILENCE_BLAME_S = 0.6  # of `link_loss_max_s`
REJECTED = bad("peer.rejected", "spark1 refuses our word: the keys differ", cure=Cure.WAIT)
LATE_S = 3.0
UNDER_WAY_S = 5.0  # how long an answer that will not come is waited for, at most


class Messages:
    def __init__(self, world: World) -> None:
        self.world = world
        self.lost = self.late = self.twice = self.harsh = 0.0  # shares of all messages
        self.disturbed: dict[str, list[float]] = {kind: [] for kind in ("lost", "late", "twice", "harsh")}
        self.calmed_at = -UNDER_WAY_S
        self.troubled_at = -1e9  # when a word last did not come through, or not at once
        self.carried_s: dict[int, float] = {}  # worker: how long its last word was on the wire; its daemon may be dead by then

    @property
    def noisy(self) -> bool:
        """Messages get lost or come late, or one that did may still be waited for."""
        return self.lost > 0 or self.late > 0 or self.harsh > 0 or self.world.now < self.calmed_at + UNDER_WAY_S

    def disturb(self, kind: str, share: float) -> None:
        """Several at once do not add up: the worst of them counts."""
        self.disturbed[kind].append(share)
        setattr(self, kind, max(self.disturbed[kind]))

    def calm(self, kind: str, share: float) -> None:
        """One of them is over; nothing where all were mended before."""
        if share in self.disturbed[kind]:
            self.disturbed[kind].remove(share)
            setattr(self, kind, max(self.disturbed[kind], default=0.0))
            self.calmed_at = self.world.now

    def start(self, host: Host) -> None:
        """The daemon has begun to listen and to talk."""
        host.exchange, host.resting, host.connected, host.known = None, False, False, 0
        host.polls.clear()
        host.heard_at.clear()
        host.version += 1
        if len(self.world.hosts) == 1:
            return
        if host.rank == 0:
            life = host.life
            self.world.after(PROBE_S, lambda: self._probe(host, life))
        else:
            self._begin(host)

    def stop(self, host: Host) -> None:
        """The daemon is gone: its connections are closed by its kernel, if that lives."""
        host.exchange = None
        for exchange in host.polls.values():
            self._broken(exchange)
        host.polls.clear()
        self.world.head.polls.pop(host.rank, None)

    def tell(self, host: Host) -> None:
        """What is told has changed."""
        host.version += 1
        if host.rank == 0:
            for exchange in list(host.polls.values()):
                self._answer(exchange)
        elif not host.resting and len(self.world.hosts) > 1:
            host.connected = False  # the poll is given up in the middle, and its connection with it
            self.world.head.polls.pop(host.rank, None)
            self._begin(host)

    # --- a worker's exchange -----------------------------------------------------------------------------------

    def _begin(self, host: Host) -> None:
        world, head = self.world, self.world.head
        exchange = Exchange(host, host.life, world.now, host.known)
        host.exchange, report = exchange, self._report(host)
        if world.now < host.refused_until and world.linked(host, head) and head.awake:
            world.after(QUICK_S, lambda: self._failed(exchange, "rejected"))
        elif not self._can_say(host, head):
            world.after(host.rng.uniform(CONNECT_S, CONNECT_S + 1), lambda: self._failed(exchange, "unreachable"))
        elif head.state is None:
            self._broken(exchange)
        elif self.lost and host.rng.random() < self.lost:
            self._expires(exchange)
        else:
            self._send(exchange, report)

    def _send(self, exchange: Exchange, report: Report) -> None:
        host, head = exchange.worker, self.world.head
        after_s, boot, life = self._delay(host), host.boot, head.life
        self.world.after(after_s, lambda: self._arrives(exchange, report, life))
        if self.twice and host.rng.random() < self.twice:
            again_s = after_s + host.rng.uniform(0.05, 1.0)
            self.world.after(again_s, lambda: self._arrives(exchange, report, life))
        if self.harsh and host.rng.random() < self.harsh:
            stale_s = host.rng.uniform(0, STALE_S)
            self.world.after(stale_s, lambda: self._stale(host, boot, head, life, Heard(report), stale_s))

    def _arrives(self, exchange: Exchange, report: Report, life: int) -> None:
        """`life`: of the daemon that it was sent to; a later one does not know the session."""
        head = self.world.head
        if head.life != life or head.state is None or not self._can_say(exchange.worker, head):
            self._broken(exchange)
            return
        self.carried_s[exchange.worker.rank] = self.world.now - exchange.began_at
        if head.inbox is not None:  # the kernel took it
            head.inbox.append(lambda: self._heard(exchange, report))
            self._expires(exchange)
        else:
            self._heard(exchange, report)

    def _heard(self, exchange: Exchange, report: Report) -> None:
        head, rank = self.world.head, exchange.worker.rank
        head.heard_at[rank] = self.world.now
        self.world.deliver(head, Heard(report))
        if not self._is_open(exchange):
            return
        if head.state is None:  # it ended in the middle of this turn
            self._broken(exchange)
            return
        head.polls[rank] = exchange
        if head.version != exchange.known:
            self._answer(exchange)
        else:
            self.world.after(self.world.limits.exchange_s, lambda: self._held(exchange))

    def _held(self, exchange: Exchange) -> None:
        head = self.world.head
        if head.polls.get(exchange.worker.rank) is not exchange:
            return
        if head.inbox is not None:
            head.inbox.append(lambda: self._held(exchange))
            self._expires(exchange)
        else:
            self._answer(exchange)

    def _answer(self, exchange: Exchange) -> None:
        head, worker = self.world.head, exchange.worker
        head.polls.pop(worker.rank, None)
        if head.state is None or not (head.up and worker.up and head.link and worker.link):
            self._expires(exchange)
            return
        intent, version, boot, life = self._intent(head), head.version, head.boot, worker.life
        carried = head.is_heard and worker.hears
        if not carried or (self.lost and worker.rng.random() < self.lost):
            self._expires(exchange)
        else:
            self.world.after(self._delay(worker), lambda: self._told(exchange, intent, version))
        if self.harsh and carried and worker.rng.random() < self.harsh:
            stale_s = worker.rng.uniform(0, STALE_S)
            self.world.after(stale_s, lambda: self._stale(head, boot, worker, life, Told(intent), stale_s))

    def _told(self, exchange: Exchange, intent: Intent, version: int) -> None:
        worker = exchange.worker
        if not self._is_open(exchange):
            return
        if worker.inbox is not None:
            worker.inbox.append(lambda: self._told(exchange, intent, version))
            return
        worker.exchange, worker.connected, worker.known, worker.told_at = None, True, version, self.world.now
        self.world.deliver(worker, Told(intent))
        if worker.life == exchange.life and worker.exchange is None:
            self._begin(worker)

    def _failed(self, exchange: Exchange, reach: str) -> None:
        worker, life = exchange.worker, exchange.life
        if not self._is_open(exchange):
            return
        self.troubled_at = self.world.now
        if worker.inbox is not None:
            worker.inbox.append(lambda: self._failed(exchange, reach))
            return
        if reach == "unreachable" and self._is_answered_by_kernel(worker):
            reach = "refused"
        worker.connected, worker.known, worker.resting = False, 0, True
        self._is_silent(worker, reach)
        self.world.after(AGAIN_S, lambda: self._again(worker, life))
        self.world.deliver(worker, Silent(0, reach, REJECTED if reach == "rejected" else None))

    def _is_answered_by_kernel(self, worker: Host) -> bool:
        """A second look: a host that takes a connection lives, whatever its agent does."""
        return self.world.linked(worker, self.world.head) and worker.rng.random() >= self.lost

    def _is_silent(self, worker: Host, reach: str) -> None:
        """No word came through for long, whatever became of the engine's own connections: an end that is no mistake."""
        long_s = SILENCE_BLAME_S * self.world.limits.link_loss_max_s
        if reach == "rejected" and self.world.half_open():  # nobody hears that the worker's engine has started
            self.world.blame(self.world.epoch_wanted(), f"{worker.name} was rejected")
        if reach == "unreachable" and self.world.now - worker.told_at > long_s:
            self.world.blame(self.world.epoch_wanted(), f"{worker.name} heard nothing for long")
            if worker.engine is not None:
                self.world.blame(worker.engine.epoch, f"{worker.name} heard nothing for long")

    def _again(self, worker: Host, life: int) -> None:
        if worker.life != life:
            return
        if worker.inbox is not None:
            worker.inbox.append(lambda: self._again(worker, life))
            return
        worker.resting = False
        self._begin(worker)

    def _is_open(self, exchange: Exchange) -> bool:
        """Neither given up, nor has the daemon that began it ended."""
        return exchange.worker.exchange is exchange and exchange.worker.life == exchange.life

    def _expires(self, exchange: Exchange) -> None:
        """Nobody will answer it."""
        self.troubled_at = self.world.now
        left_s = exchange.began_at + self.world.limits.exchange_s + ANSWER_S - self.world.now
        self.world.after(max(0.0, left_s), lambda: self._failed(exchange, "unreachable"))

    def _broken(self, exchange: Exchange) -> None:
        """The head has no daemon, or no longer the one that was asked: its kernel says so, where it can."""
        if self.world.linked(exchange.worker, self.world.head):
            self.world.after(QUICK_S, lambda: self._failed(exchange, "refused"))
        else:
            self._expires(exchange)

    def _can_say(self, host: Host, peer: Host) -> bool:
        """Over a connection that stands, one direction is enough; harsher than TCP, one direction is always enough."""
        if host.connected or self.harsh:
            return host.up and peer.up and host.link and peer.link and host.is_heard and peer.hears
        return self.world.linked(host, peer)

    def _delay(self, host: Host) -> float:
        if not self.late or host.rng.random() >= self.late:
            return QUICK_S
        self.troubled_at = self.world.now
        return host.rng.uniform(0, LATE_S)

    def _stale(self, sender: Host, boot: int, receiver: Host, life: int, event: Event, after_s: float) -> None:
        """Harsher than the transport: a word comes again, later than newer ones, but through no cut."""
        carried = sender.up and sender.link and sender.is_heard and receiver.link and receiver.hears
        if sender.boot == boot and receiver.life == life and receiver.awake and carried:
            self.carried_s[sender.rank] = after_s
            self.world.deliver(receiver, event)

    # --- the head's probe --------------------------------------------------------------------------------------

    def _probe(self, head: Host, life: int) -> None:
        if head.life != life:
            return
        self.world.after(PROBE_S, lambda: self._probe(head, life))
        if head.inbox is not None:
            return
        silent_s = self.world.limits.exchange_s + SILENCE_S
        for worker in self.world.hosts[1:]:
            if self.world.now - head.heard_at.get(worker.rank, -1e9) > silent_s and head.life == life:
                reach = "refused" if self.world.linked(worker, head) else "unreachable"
                self.world.deliver(head, Silent(worker.rank, reach))

    # --- what is said ------------------------------------------------------------------------------------------

    def _report(self, host: Host) -> Report:
        """Stamped when it was first said: what did not change is the same word."""
        assert host.state is not None
        now = self._stamp(host)
        content = telling.REPORTED_FROM(host.state), serving.own_vitals(host.state, now)
        if host.said is None or host.said[0] != content:
            host.said = content, telling.report_now(host.state, now)
        assert isinstance(host.said[1], Report)
        return host.said[1]

    def _intent(self, head: Host) -> Intent:
        assert head.state is not None
        if head.said is None or head.said[0] is not head.state.intent:
            intent = head.state.intent.model_copy(update={"at": self._stamp(head)})
            head.said = head.state.intent, intent
        assert isinstance(head.said[1], Intent)
        return head.said[1]

    def _stamp(self, host: Host) -> float:
        """When it says what it says. The world stands still while a daemon takes its turns; a real clock has gone on between
        two words."""
        now = self.world.clock(host)
        return now if host.said is None else max(now, host.said[1].at + TURN_S)
