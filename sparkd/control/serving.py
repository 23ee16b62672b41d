"""Keeping the proof fresh while serving, and telling a hang from work.

Requests that complete are proof; a cheap canary covers idle times; the engine's own counters tell a hang from a long
prefill. A silent peer alone ends nothing: it must also be true that nothing was answered since.
"""

from __future__ import annotations

from dataclasses import replace

from sparkd.control.state import Action, Canary, CanaryBack, Counters, NodeState, Note, Peer
from sparkd.model.finding import Cure, Finding, Verdict, Who, bad
from sparkd.model.report import Loss, Phase

CANARY_FAILURES_MAX = 2  # in a row, where the answer was an error; a time-out with frozen counters is enough alone

Steps = tuple[NodeState, list[Action]]


def counted(s: NodeState, counters: Counters, now: float) -> NodeState:
    """Counters that move are life; a completed request is a proof."""
    old = s.counters
    began = now if s.busy_since is None else s.busy_since
    s = replace(s, counters=counters, busy_since=began if counters.active else None)
    if old is None:
        return s
    if counters.movement != old.movement:
        s = replace(s, moved_at=now)
    if counters.successes > old.successes and s.proof is not None and s.phase is Phase.SERVING:
        s = replace(s, proof=s.proof.model_copy(update={"at": now, "says": "a client's request completed"}))
    return s


def canary_back(s: NodeState, event: CanaryBack, now: float) -> Steps:
    if event.ticket != s.canary_ticket or s.canary_at is None or s.phase is not Phase.SERVING:
        return s, []
    sent_at = s.canary_at
    s = replace(s, canary_at=None, canary_done_at=now)
    if event.proof is not None:
        return replace(s, proof=event.proof.model_copy(update={"at": now}), moved_at=now, canary_failures=0), []
    finding = event.finding
    if finding is None or finding.verdict is Verdict.UNKNOWN or s.moved_at > sent_at:
        says = finding.says if finding else "no answer"
        return s, [Note("canary.unanswered", f"a canary was not answered while the engine worked on others: {says}")]
    failures = s.canary_failures + 1
    s = replace(s, canary_failures=failures)
    if finding.id == "endpoint.timeout" or failures >= CANARY_FAILURES_MAX:
        return _lose(s, finding)
    return replace(s, canary_done_at=None), [Note(finding.id, f"a canary failed: {finding.says}; asking once more")]


def watch(s: NodeState, now: float) -> Steps | None:
    """What the head does about an engine that serves, as time passes."""
    hung = _hung(s, now) or _cut_off(s, now)
    if hung is not None:
        return _lose(s, hung)
    if s.canary_at is None and now >= _canary_due_at(s):
        ticket = s.canary_ticket + 1
        return replace(s, canary_ticket=ticket, canary_at=now), [Canary(ticket, s.epoch)]
    return None


def _lose(s: NodeState, finding: Finding) -> Steps:
    note = Note(finding.id, f"epoch {s.epoch} lost on {s.me.node}: {finding.says}", alarm=True)
    return replace(s, loss=Loss(epoch=s.epoch, finding=finding)), [note]


def _hung(s: NodeState, now: float) -> Finding | None:
    """Idle counters rest: only from the moment when work waits does their rest tell of a hang."""
    if s.counters is None or s.busy_since is None:
        return None
    still_s = now - max(s.moved_at, s.busy_since)
    if still_s <= s.me.limits.hang_max_s:
        return None
    says = f"{s.counters.active} requests are waiting and no counter has moved for {still_s:.0f} s: the engine hangs"
    return bad("engine.hung", says, cure=Cure.RELAUNCH, who=Who.SPARKD)


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
    """A quiet endpoint is asked every interval; much sooner while a peer is silent, for the answer decides."""
    limits = s.me.limits
    doubt = any(peer.reach in ("unreachable", "refused") for peer in s.peers.values())
    interval_s = min(limits.canary_interval_s, limits.link_loss_max_s / 4) if doubt else limits.canary_interval_s
    proven_at = s.proof.at if s.proof else s.since
    if s.canary_done_at is None and s.canary_failures:
        return 0.0
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
    return f"serving epoch {s.epoch}: a real answer {max(0.0, now - s.proof.at):.0f} s ago{stale}{without}"
