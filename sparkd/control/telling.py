"""What others see of a node: a sentence for people, the report for the head, what is kept on disk."""

from __future__ import annotations

from operator import attrgetter

from sparkd.control import cluster, serving
from sparkd.control.moves import left
from sparkd.control.state import NodeState, Peer
from sparkd.model.report import Phase, Report, Saved

# What `saved` and `report` are made from: where none of it changed, neither is made to be compared.
SAVED_FROM = attrgetter(
    *("intent", "phase", "epoch", "launch", "loss", "blocked", "blocked_by_check", "blocked_fingerprint"),
    *("restarts_used", "generation"),
)
REPORTED_FROM = attrgetter(
    *("phase", "epoch", "digests", "launch", "loss", "blocked", "waiting", "progress"),
)


def reason(s: NodeState, now: float) -> str:
    """Where the node stands and why, in one sentence: the log line, STATUS=, `sparkd status`, and what tests assert."""
    i, who = s.intent, f"epoch {s.epoch}"
    match s.phase:
        case Phase.BLOCKED if s.blocked is not None:
            return f"blocked: {s.blocked.says}"
        case Phase.IDLE if not i.run and (s.me.is_head or i.epoch):
            return "stopped by the operator"
        case Phase.IDLE if s.me.is_head:
            return cluster.backoff_reason(s, now)
        case Phase.IDLE:
            objection = s.peers.get(0, Peer()).objection
            return objection.says if objection else f"waiting for {s.me.names[0]}'s word"
        case Phase.PREFLIGHT | Phase.CLEAN | Phase.CONTAINER | Phase.STAGE if s.waiting is not None:
            waited = now - s.waiting_since
            late = " (longer than it should take)" if waited > s.me.limits.link_grace_s else ""
            return f"{s.waiting_in}: waiting for {waited:.0f} s{late}: {s.waiting.says}"
        case Phase.ARMED:
            return f"armed for {who}: {cluster.barrier(s, now)}"
        case Phase.LAUNCHING:
            return f"launching {who}: the engine's process is starting"
        case Phase.LOADING:
            return f"loading {who}: {s.progress.says or 'the engine starts'}"
        case Phase.PROVING:
            return f"proving {who}: asking the endpoint for a real answer"
        case Phase.SERVING:
            return serving.reason(s, now)
        case Phase.STOPPING:
            lost = s.loss if left(s) else s.ended if s.ended and s.ended.epoch == s.epoch else None
            why = lost.finding.says if lost else "not wanted any more" if i.run else "stop was asked"
            return f"stopping {who}: {why}"
        case Phase.BACKOFF:
            return cluster.backoff_reason(s, now)
    return f"{s.phase} for {who}"


def report(s: NodeState) -> Report:
    """What this node tells the head."""
    return Report(
        node=s.me.node,
        rank=s.me.rank,
        version=s.me.version,
        boot_id=s.me.boot_id,
        epoch=s.epoch,
        phase=s.phase,
        plan_digest=s.digests.plan,
        image_id=s.digests.image,
        weights_digest=s.digests.weights,
        driver=s.digests.driver,
        engine_alive=s.launch is not None and s.launch.seen and s.phase.has_engine and not left(s),
        loss=s.loss,
        blocked=s.blocked,
        waiting=s.waiting,
        progress=s.progress,
    )


def report_now(s: NodeState, now: float) -> Report:
    """The report as it goes out, with what only the moment of telling knows. Of these nothing makes a new report by itself."""
    vitals = serving.own_vitals(s, now)
    return report(s).model_copy(update={"reason": reason(s, now), "vitals": vitals, "at": now})


def saved(s: NodeState) -> Saved:
    """What must be on disk before this state is acted on."""
    return Saved(
        boot_id=s.me.boot_id,
        epoch=max(s.epoch, s.intent.epoch if s.me.is_head else 0),
        run=s.intent.run,
        gate=s.intent.gate,
        profile=s.intent.profile,
        generation=s.generation,
        launch_epoch=s.launch.epoch if s.launch else None,
        serving=s.phase is Phase.SERVING,
        restarts_used=s.restarts_used,
        loss=s.loss,
        blocked=None if s.blocked_by_check else s.blocked,  # what a check found, it finds again
        blocked_fingerprint=s.blocked_fingerprint,
    )
