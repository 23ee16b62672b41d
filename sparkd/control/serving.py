"""Keeping the proof fresh while serving, and telling a hang from work.

Requests that complete are proof; a cheap canary covers idle times. A canary that times out decides nothing by itself: what
is known of a hang goes to control/wedge.py. A silent peer alone ends nothing: it must also be true that nothing was answered
since.
"""

from __future__ import annotations

from sparkd.control import wedge
from sparkd.control.moves import Steps, lose
from sparkd.control.state import Canary, CanaryBack, Counters, NodeState, Note, Peer, replace
from sparkd.model.finding import Cure, Finding, Verdict, Who, bad
from sparkd.model.report import Phase, Vitals

CANARY_FAILURES_MAX = 2  # in a row, where the answer was an error
CANARY_AGAIN_SHARE = 1 / 6  # of `canary_interval_s`: where nothing moves, the next one is sent so soon after the last
PREFILL_S = 15.0  # no token for so long while the gauges move is worth a word


def counted(s: NodeState, counters: Counters, now: float) -> NodeState:
    """Counters and gauges that move are life; a completed request is a proof."""
    old = s.counters
    began = now if s.busy_since is None else s.busy_since
    s = replace(s, counters=counters, busy_since=began if counters.active else None)
    if old is None:
        return replace(s, tokens_at=now)
    if counters.movement != old.movement:
        s = replace(s, tokens_at=now)
    if counters.movement != old.movement or counters.gauges != old.gauges:
        s = replace(s, moved_at=now, unanswered_since=None)
    if counters.successes > old.successes and s.proof is not None and s.phase is Phase.SERVING:
        s = replace(s, proof=s.proof.model_copy(update={"at": now, "says": "a client's request completed"}))
    return s


def noticed(s: NodeState, now: float) -> NodeState:
    """Vitals came in. Work that they show is remembered: the next look may fall between two steps."""
    nodes = [node.vitals for node in _nodes(s, now)]
    worked = [now - v.age_s for v in nodes if v is not None and v.age_s <= wedge.FRESH_S and wedge.works(v)]
    return replace(s, worked_at=max(s.worked_at, *worked)) if worked else s


def own_vitals(s: NodeState, now: float) -> Vitals | None:
    """What this node last saw of its part of the engine, with its age."""
    if s.vitals is None or not s.phase.has_engine or now - s.vitals_at > wedge.FRESH_S:
        return None
    return s.vitals.model_copy(update={"age_s": round(now - s.vitals_at, 1)})


def canary_back(s: NodeState, event: CanaryBack, now: float) -> Steps:
    if event.ticket != s.canary_ticket or s.canary_at is None or s.phase is not Phase.SERVING:
        return s, []
    sent_at = s.canary_at
    s = replace(s, canary_at=None, canary_done_at=now)
    if event.proof is not None:
        proof = event.proof.model_copy(update={"at": now})
        return replace(s, proof=proof, moved_at=now, unanswered_since=None, canary_failures=0), []
    finding = event.finding
    if finding is None or finding.verdict is Verdict.UNKNOWN or s.moved_at > sent_at:
        says = finding.says if finding else "no answer"
        return s, [Note("canary.unanswered", f"a canary was not answered while the engine worked on others: {says}")]
    if finding.id == "endpoint.timeout":
        first = s.unanswered_since is None
        s = replace(s, unanswered_since=sent_at if first else s.unanswered_since)
        says = f"a canary was not answered and nothing moves ({finding.says}); looking closer, and asking again"
        return s, [Note("canary.unanswered", says)] if first else []
    failures = s.canary_failures + 1
    s = replace(s, canary_failures=failures)
    if failures >= CANARY_FAILURES_MAX:
        return lose(s, finding, now)
    return replace(s, canary_done_at=None), [Note(finding.id, f"a canary failed: {finding.says}; asking once more")]


def is_proof_late(s: NodeState, now: float) -> bool:
    """The proof takes so long that every node should look at its part of the engine."""
    return now - s.since > s.me.limits.hang_max_s * wedge.DOUBT_SHARE


def may_still_work(s: NodeState, now: float) -> bool:
    """A proof that timed out: the first request of all is what sets compilations off. One that served before the daemon
    did is left alone for as long as a serving one would be where nothing can be seen (invariant 8)."""
    limits, adopted = s.me.limits, s.launch is not None and s.launch.adopted
    patience_s = limits.work_max_s if s.worked_at > s.since else limits.hang_blind_max_s if adopted else 0.0
    return now - s.since <= patience_s


def watch(s: NodeState, now: float) -> Steps | None:
    """What the head does about an engine that serves, as time passes."""
    verdict = wedge.judge(signals(s, now), s.me.limits)
    lost = verdict.finding or _cut_off(s, now)
    if lost is not None:
        return lose(s, lost, now)
    if verdict.doubt != s.doubt:
        return replace(s, doubt=verdict.doubt), []
    if s.canary_at is None and now >= _canary_due_at(s):
        ticket = s.canary_ticket + 1
        return replace(s, canary_ticket=ticket, canary_at=now), [Canary(ticket, s.epoch)]
    return None


def signals(s: NodeState, now: float) -> wedge.Signals:
    """Idle counters rest: only from the moment when work waits, ours or a client's, does their rest tell of a hang."""
    asked = [at for at in (s.unanswered_since, s.canary_at) if at is not None]
    waits = [at for at in (s.busy_since, *asked) if at is not None]
    still_since = max(s.moved_at, min(waits)) if waits else None
    return wedge.Signals(
        active=s.counters.active if s.counters is not None else 0,
        still_s=None if still_since is None else now - still_since,
        quiet_s=0.0 if still_since is None else now - max(still_since, s.worked_at),
        unanswered_s=now - min(asked) if asked else None,
        nodes=_nodes(s, now) if waits else (),
    )


def _nodes(s: NodeState, now: float) -> tuple[wedge.Node, ...]:
    """Every node in rank order. A worker knows only itself."""
    return (
        wedge.Node(s.me.node, own_vitals(s, now)),
        *(_worker(s, rank, now) for rank in s.me.workers if s.me.is_head),
    )


def _worker(s: NodeState, rank: int, now: float) -> wedge.Node:
    peer = s.peers.get(rank, Peer())
    name = s.me.names[rank]
    if peer.reach == "unreachable":
        return wedge.Node(name, None, now - peer.since)
    report = peer.report
    if report is None or report.vitals is None or report.epoch != s.epoch or peer.heard_at is None:
        return wedge.Node(name)
    return wedge.Node(name, report.vitals.model_copy(update={"age_s": report.vitals.age_s + now - peer.heard_at}))


def _cut_off(s: NodeState, now: float) -> Finding | None:
    """A worker is out of reach and nothing was answered or moved since: its half is gone, whatever /health says."""
    for rank in s.me.workers:
        peer = s.peers.get(rank, Peer())
        alive_at = max(s.proof.at if s.proof else 0.0, s.moved_at)
        if peer.reach == "unreachable" and now - peer.since > s.me.limits.link_loss_max_s and alive_at <= peer.since:
            says = f"{s.me.names[rank]} is out of reach for {now - peer.since:.0f} s and the engine has answered nothing since"
            return bad("peer.unreachable", says, cure=Cure.RELAUNCH, who=Who.SPARKD)
    return None


def _canary_due_at(s: NodeState) -> float:
    """A quiet endpoint is asked every interval; much sooner while a peer is silent, and at once while nothing moves, for
    the answer decides."""
    if s.canary_done_at is None and s.canary_failures:
        return 0.0
    limits = s.me.limits
    if s.doubt or s.unanswered_since is not None:
        return (s.canary_done_at or 0.0) + limits.canary_interval_s * CANARY_AGAIN_SHARE
    silent = any(peer.reach in ("unreachable", "refused") for peer in s.peers.values())
    interval_s = min(limits.canary_interval_s, limits.link_loss_max_s / 4) if silent else limits.canary_interval_s
    proven_at = s.proof.at if s.proof else s.since
    return max(proven_at, s.canary_done_at or 0.0) + interval_s


def is_proof_fresh(s: NodeState, now: float) -> bool:
    limits = s.me.limits
    return s.proof is not None and now - s.proof.at <= limits.canary_interval_s + limits.canary_max_s


def reason(s: NodeState, now: float) -> str:
    if s.proof is None:
        return f"serving epoch {s.epoch}: proven by {s.me.names[0]}"
    stale = "" if is_proof_fresh(s, now) else " (stale: the engine is busy)"
    silent = [s.me.names[r] for r, p in sorted(s.peers.items()) if p.reach in ("unreachable", "refused")]
    without = f"; {', '.join(silent)} silent, the engine is left alone" if silent else ""
    answered = f"a real answer {max(0.0, now - s.proof.at):.0f} s ago{stale}"
    return f"serving epoch {s.epoch}: {answered}{_busy(s, now)}{without}"


def _busy(s: NodeState, now: float) -> str:
    """Why the counters rest although it is left alone: "; busy: ..."."""
    if s.doubt:
        verdict = wedge.judge(signals(s, now), s.me.limits)
        return f"; {'busy' if verdict.state is wedge.State.WORKING else 'suspected'}: {verdict.says}"
    if s.counters is None or s.busy_since is None:
        return ""
    without_s = now - max(s.tokens_at, s.busy_since)
    if without_s <= PREFILL_S:
        return ""
    return (
        f"; busy: a long prefill, no token for {without_s:.0f} s, but the KV cache moves ({s.counters.cache:.0%} used)"
    )
