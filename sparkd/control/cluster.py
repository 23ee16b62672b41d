"""The head's part: it hands out epochs, opens the barrier, and ends an epoch for everyone when one node has left it.

The gate of an epoch only opens: CLOSED (prepare and arm) -> WORKERS (every rank is armed with the same digests: workers
launch) -> ALL (every worker's engine lives: the head launches) -> ENDED. The way out of any deadlock is that nobody needs
permission to leave: a node that left an epoch says so in its report, and the head answers with the next number.
"""

from __future__ import annotations

from operator import attrgetter

from sparkd.control import backoff
from sparkd.control.state import Action, NodeState, Note, Peer, replace
from sparkd.model.finding import Cure, Finding, Who, bad
from sparkd.model.report import Digests, Gate, Intent, Loss, Phase, Progress, Report

FRESH_S = 3.0  # besides the exchange itself: a report older than this does not open a gate
ARMED_FRESH_S = 60.0  # older than this, what armed a node is checked again before it launches
DIFFERS_RECHECK_S = 30.0  # armed nodes that differ look again this often: a person may have mended one of them
SETTLE_S = 1.0  # besides an exchange: then a head that stood still has heard the newest word of every worker
SHOWN = (
    *("plan_digest", "image_id", "weights_digest", "driver"),
    *("head_phase", "blocked", "head_boot_id", "version", "serving", "progress", "doubt"),
)
_shown = attrgetter(*SHOWN)
NO_PROGRESS = Progress()
# Findings that say that an engine died but not why: anything more exact that its log tells replaces them.
VAGUE = frozenset(
    {"engine.lost", "engine.rank-died", "engine.start-timeout"}
    | {"engine-lost", "engine-killed", "engine-dead", "engine-core-died", "engine-core-init-failed"}
)


def lead(s: NodeState, now: float) -> tuple[NodeState, list[Action]]:
    """What the head makes of its own state and of what the workers report. Level-triggered: called after every event."""
    notes: list[Action] = []
    if not s.intent.run:
        return s, notes
    s = _learn(s)
    cause = broken(s, now)
    if cause is not None:
        s, ended = end_epoch(s, cause, now)
        notes += ended
    if s.intent.gate is Gate.ENDED and _may_begin(s, now):
        s, begun = begin_epoch(s, now)
        notes += begun
    s, opened = open_gate(_turned(s, now), now)
    return s, notes + opened


def _turned(s: NodeState, now: float) -> NodeState:
    """A head that was stopped for a while finds a heap of words in its sockets, and the first of them are as old as that:
    the engine that one of them tells of may be dead."""
    if s.intent.gate is not Gate.WORKERS or s.turned_at == now:
        return s
    still_s = now - max(s.turned_at, s.gate_since)
    settled_at = now + s.me.limits.exchange_s + SETTLE_S if still_s > FRESH_S else s.settled_at
    return replace(s, turned_at=now, settled_at=settled_at)


def _learn(s: NodeState) -> NodeState:
    """What ended the last epoch may become clearer when the node that lost it has read its engine's log."""
    if s.ended is None:
        return s
    for loss in (s.loss, *(report.loss for _, report in _reports(s))):
        if s.ended and loss and loss.epoch == s.ended.epoch and says_more(loss.finding, s.ended.finding):
            s = replace(s, ended=loss)
    return s


def says_more(refined: Finding, known: Finding) -> bool:
    return refined.id != known.id and (refined.cure is Cure.PERSON or known.id in VAGUE)


def broken(s: NodeState, now: float) -> Finding | None:
    """Why the epoch handed out is dead, or None while it lives."""
    i = s.intent
    if i.gate is Gate.ENDED:
        return None
    if s.loss is not None and s.loss.epoch >= i.epoch:
        return s.loss.finding
    for rank, report in _reports(s):
        name = s.me.names[rank]
        if report.loss is not None and report.loss.epoch == i.epoch:
            return report.loss.finding
        if report.epoch > i.epoch:
            says = f"{name} has seen epoch {report.epoch}, newer than the {i.epoch} remembered here"
            return bad("state.epoch-behind", says, cure=Cure.RELAUNCH, who=Who.SPARKD)
        if i.gate is Gate.WORKERS and report.epoch == i.epoch and report.blocked is not None:
            return report.blocked
        if i.gate is Gate.ALL and not report.engine_alive:
            says = f"{name} has no engine of epoch {i.epoch} any more (it is in {report.phase})"
            return bad("peer.left-epoch", says, cure=Cure.RELAUNCH, who=Who.SPARKD)
    if i.gate is Gate.WORKERS and now - s.gate_since > s.me.limits.start_max_s:
        late = [s.me.names[r] for r in s.me.workers if not _alive(s, r, now)]
        says = f"the engine of {', '.join(late)} did not start within {s.me.limits.start_max_s:.0f} s of the barrier's opening"
        return bad("engine.start-timeout", says, cure=Cure.RELAUNCH)
    if i.gate is not Gate.CLOSED and s.phase is not Phase.SERVING:
        return _vanished(s, now)
    return None


def _vanished(s: NodeState, now: float) -> Finding | None:
    """During a start nothing can be asked of the endpoint, and a head whose peer vanished hangs silently (FIELD.md 1.6)."""
    for rank in s.me.workers:
        peer = s.peers.get(rank, Peer())
        if peer.reach == "unreachable" and now - peer.since > s.me.limits.link_loss_max_s:
            silent_s = s.me.limits.link_loss_max_s
            says = f"{s.me.names[rank]} could not be reached for {silent_s:.0f} s while the engine was starting"
            return bad("peer.unreachable", says, cure=Cure.RELAUNCH, who=Who.SPARKD)
    return None


def end_epoch(s: NodeState, cause: Finding, now: float) -> tuple[NodeState, list[Action]]:
    """The epoch is dead on all nodes. It costs one of the budget where an engine may have started. One that had proven
    itself is followed at once, for what it ran is known to work; one that never did is followed after a growing delay."""
    i = s.intent
    used = s.restarts_used + (i.gate is not Gate.CLOSED and cause.id != "state.epoch-behind")
    wait_s = 0.0 if s.phase is Phase.SERVING else backoff.delay_s(used, s.me.limits, f"{s.me.node}/{i.epoch}")
    s = replace(s, restarts_used=used, epoch_at=now + wait_s, intent=i.model_copy(update={"gate": Gate.ENDED}))
    s = replace(s, ended=Loss(epoch=i.epoch, finding=cause))
    after = f"; the next one in {wait_s:.0f} s" if wait_s else ""
    return s, [Note("epoch.ended", f"epoch {i.epoch} ended everywhere: {cause.says}{after}", alarm=True)]


def _may_begin(s: NodeState, now: float) -> bool:
    return now >= s.epoch_at and s.phase is not Phase.BLOCKED and not is_budget_spent(s)


def is_budget_spent(s: NodeState) -> bool:
    return s.restarts_used > s.me.limits.restarts_max


def begin_epoch(s: NodeState, now: float) -> tuple[NodeState, list[Action]]:
    """Hand out a number that no node has ever seen."""
    seen = [s.epoch, s.intent.epoch, *(report.epoch for _, report in _reports(s))]
    epoch = max(seen) + 1
    s = replace(s, intent=s.intent.model_copy(update={"epoch": epoch, "gate": Gate.CLOSED}), gate_since=now)
    return s, [Note("epoch.begun", f"epoch {epoch} handed out")]


def open_gate(s: NodeState, now: float) -> tuple[NodeState, list[Action]]:
    """Open the barrier as far as the reports allow."""
    notes: list[Action] = []
    armed = s.phase is Phase.ARMED and s.epoch == s.intent.epoch
    if s.intent.gate is Gate.CLOSED and armed and now - s.since <= ARMED_FRESH_S and _all_ready(s, now):
        s, note = _set_gate(s, Gate.WORKERS, "every rank is armed: workers launch", now)
        notes.append(note)
    if s.intent.gate is Gate.WORKERS and all(_alive(s, rank, now) and _is_settled(s, rank, now) for rank in s.me.workers):
        s, note = _set_gate(s, Gate.ALL, "every worker's engine lives: the head launches", now)
        notes.append(note)
    return s, notes


def _set_gate(s: NodeState, gate: Gate, says: str, now: float) -> tuple[NodeState, Note]:
    intent = s.intent.model_copy(update={"gate": gate})
    return replace(s, intent=intent, gate_since=now), Note("barrier.opened", f"epoch {intent.epoch}: {says}")


def _reports(s: NodeState) -> list[tuple[int, Report]]:
    known = s.peers.items()
    return [
        (rank, peer.report) for rank, peer in (sorted(known) if len(known) > 1 else known) if peer.report is not None
    ]


def _is_fresh(s: NodeState, peer: Peer, now: float) -> bool:
    heard_s = FRESH_S + s.me.limits.exchange_s
    return peer.reach == "yes" and peer.heard_at is not None and now - peer.heard_at <= heard_s


def _alive(s: NodeState, rank: int, now: float) -> bool:
    peer = s.peers.get(rank, Peer())
    report = peer.report
    return report is not None and _is_fresh(s, peer, now) and report.epoch == s.intent.epoch and report.engine_alive


def _is_settled(s: NodeState, rank: int, now: float) -> bool:
    """A head that stood still has heard this worker since, beyond what waited in its sockets: it may have died meanwhile,
    and its daemon too."""
    heard_at = s.peers.get(rank, Peer()).heard_at
    return now >= s.settled_at and heard_at is not None and heard_at >= s.settled_at - s.me.limits.exchange_s


def _all_ready(s: NodeState, now: float) -> bool:
    return all(unready(s, rank, now) is None for rank in s.me.workers)


def must_look_again(s: NodeState, now: float) -> bool:
    """Armed before the barrier opened: what was checked is too old to launch on, or differs from what a peer found."""
    armed_s = now - s.since
    if s.intent.gate is not Gate.CLOSED:
        return False
    if not s.me.is_head:
        head_armed = s.intent.head_phase is Phase.ARMED
        return armed_s > DIFFERS_RECHECK_S and head_armed and differs_from_head(s) is not None
    if armed_s > ARMED_FRESH_S and _all_ready(s, now):
        return True
    return armed_s > DIFFERS_RECHECK_S and any(_differs(s, rank) is not None for rank in s.me.workers)


def unready(s: NodeState, rank: int, now: float) -> str | None:
    """Why the barrier cannot open for this worker, as a phrase, or None when it may launch."""
    name, peer = s.me.names[rank], s.peers.get(rank, Peer())
    report = peer.report
    if report is None or peer.heard_at is None:
        return f"waiting for {name}: not heard of yet"
    if peer.objection is not None:
        return f"{name} rejects what {s.me.node} says: {peer.objection.says}"
    if not _is_fresh(s, peer, now):
        return f"waiting for {name}: silent for {now - peer.heard_at:.0f} s"
    if not compatible(s.me.version, report.version):
        return f"{name} runs sparkd {report.version}, this node {s.me.version}: install one of them on both"
    if report.blocked is not None:
        return f"waiting for {name}, which is blocked: {report.blocked.says}"
    if report.epoch != s.intent.epoch or report.phase is not Phase.ARMED:
        why = f": {report.waiting.says}" if report.waiting else ""
        return f"waiting for {name} ({report.phase}{why})"
    finding = _differs(s, rank)
    return finding.says if finding else None


def _differs(s: NodeState, rank: int) -> Finding | None:
    """Between the head and a worker that is armed in the same epoch."""
    report = s.peers.get(rank, Peer()).report
    if report is None or report.phase is not Phase.ARMED or report.epoch != s.epoch:
        return None
    return mismatch(s.digests, _digests_of(report), s.me.node, s.me.names[rank])


def held_up(s: NodeState) -> Finding | None:
    """What a person has to make equal before the barrier can open, as far as this node can tell: both ends are armed."""
    if s.phase is not Phase.ARMED:
        return None
    if not s.me.is_head:
        return differs_from_head(s) if s.intent.head_phase is Phase.ARMED and s.intent.epoch == s.epoch else None
    return next((finding for rank in s.me.workers if (finding := _differs(s, rank)) is not None), None)


def differs_from_head(s: NodeState) -> Finding | None:
    """Between this worker and the head. The head does not look again once the barrier is open: this is what opened it."""
    return mismatch(s.digests, _digests_of(s.intent), s.me.node, s.me.names[0])


def _digests_of(told: Report | Intent) -> Digests:
    return Digests(plan=told.plan_digest, image=told.image_id, weights=told.weights_digest, driver=told.driver)


def mismatch(mine: Digests, theirs: Digests, here: str, there: str) -> Finding | None:
    """Invariant 4: all ranks of an epoch run the same plan, image and weights, on the same driver."""
    remedies = {
        "plan": "make /etc/sparkd identical on both nodes, then `sparkd restart`",
        "image": "docker pull (or save and load) the recipe's image on both nodes",
        "weights": "copy the weights again from the node where they are complete",
        "driver": "install the same driver version on both nodes",
    }
    for what, remedy in remedies.items():
        ours, other = getattr(mine, what), getattr(theirs, what)
        if ours != other:
            says = f"the {what} differs: {here} has {_short(ours)}, {there} has {_short(other)}"
            return bad(f"peer.{what}-differs", says, cure=Cure.WAIT, remedy=remedy)
    return None


def others_plans(s: NodeState) -> tuple[str, ...]:
    """The plan digests that other nodes are known to have."""
    told = [s.intent.plan_digest] if not s.me.is_head else [report.plan_digest for _, report in _reports(s)]
    return tuple(digest for digest in told if digest)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12] or "none"


def compatible(ours: str, theirs: str) -> bool:
    """Nodes work together across one minor version (DESIGN.md 4)."""
    try:
        a, b = ([int(part) for part in v.split(".")[:2]] for v in (ours, theirs))
    except ValueError:
        return ours == theirs
    return a[0] == b[0] and abs(a[1] - b[1]) <= 1


def barrier(s: NodeState, now: float) -> str:
    """What an armed node waits for, as a phrase."""
    if not s.me.is_head and s.intent.gate is not Gate.CLOSED:
        return f"the barrier is open, but {s.me.names[0]} is silent: its next word is waited for"
    if not s.me.is_head:
        return f"{s.me.names[0]} holds the barrier ({s.intent.head_reason or s.intent.head_phase})"
    waits = [why for rank in s.me.workers if (why := unready(s, rank, now)) is not None]
    if s.intent.gate is Gate.WORKERS:
        return "waiting for the workers' engines to start"
    return "; ".join(waits) or "the barrier opens"


def budget_spent(s: NodeState) -> Finding:
    """Blind restarts leak driver memory until the host needs its plug pulled: stop, and say what the last one died of."""
    lost = s.ended or s.loss
    last = lost.finding if lost else None
    why = last.says if last else "see `sparkd events`"
    says = f"{s.restarts_used} epochs in a row were lost; the last one: {why}"
    remedy = "read `sparkd logs`, mend the cause, then `sparkd start`"
    return bad("engine.crash-loop", says, cure=Cure.PERSON, remedy=remedy, evidence=last.evidence if last else ())


def backoff_reason(s: NodeState, now: float) -> str:
    if s.waiting is not None:
        return f"trying again in {max(0.0, s.retry_at - now):.0f} s: {s.waiting.says}"
    if s.me.is_head:
        lost = s.ended or s.loss
        why = f"; epoch {lost.epoch} ended: {lost.finding.says}" if lost else ""
        return f"the next epoch in {max(0.0, s.epoch_at - now):.0f} s{why}"
    return f"waiting for {s.me.names[0]} to hand out the next epoch ({s.intent.head_reason or s.intent.head_phase})"


def publish(s: NodeState) -> NodeState:
    """The intent as workers get it: what is wanted, and what they show of the head."""
    proven = s.phase is Phase.SERVING and s.proof is not None and s.proof.epoch == s.epoch
    shown = (
        *(s.digests.plan, s.digests.image, s.digests.weights, s.digests.driver),
        *(s.phase, s.blocked if s.phase is Phase.BLOCKED else None),
        *(s.me.boot_id, s.me.version),
        *(proven and s.intent.epoch == s.epoch, s.progress if s.phase.has_engine else NO_PROGRESS),
        s.doubt and s.phase in (Phase.PROVING, Phase.SERVING),
    )
    if shown == _shown(s.intent):
        return s
    return replace(s, intent=s.intent.model_copy(update=dict(zip(SHOWN, shown, strict=True))))
