"""The state as a person is shown it: `sparkd status` on any node shows all of them, as far as this node knows."""

from __future__ import annotations

from sparkd.agent.effects import Effects
from sparkd.control import cluster, telling
from sparkd.control.state import NodeState, Peer
from sparkd.model.report import Intent, Phase, launch_id
from sparkd.model.status import NodeStatus, Status


def status(s: NodeState, effects: Effects, now: float) -> Status:
    """Everything this node knows. `now` is on the daemon's monotonic clock."""
    plan = effects.cluster_plan
    head = plan.ranks[0]
    serving = s.phase is Phase.SERVING and (s.intent.serving or s.me.is_head)
    lan = effects.configuration.settings.cluster.head.lan
    retry_at = s.epoch_at if s.phase is Phase.BACKOFF and s.me.is_head else s.retry_at
    waiting_to_retry = s.phase is Phase.BACKOFF and retry_at > now
    proof_age_s = now - s.proof.at if s.proof is not None else s.intent.proof_age_s
    return Status(
        node=s.me.node,
        cluster=head.cluster,
        recipe=plan.recipe,
        profile=plan.profile,
        run=s.intent.run,
        epoch=s.epoch,
        phase=s.phase,
        reason=telling.reason(s, now),
        serving=serving,
        proof=s.proof,
        proof_age_s=proof_age_s if serving else None,
        progress=s.progress if s.me.is_head else s.intent.progress,
        retry_in_s=retry_at - now if waiting_to_retry else None,
        restarts_left=max(0, s.me.limits.restarts_max - s.restarts_used) if s.me.is_head else None,
        blocked=s.blocked,
        waiting=s.waiting or cluster.held_up(s),
        pending=effects.pending or None,
        endpoint=f"http://{lan}:{head.api_port}/v1",
        launch_id=launch_id(s.me.boot_id, s.launch.epoch) if s.launch else None,
        since_s=now - s.since,
        version=s.me.version,
        nodes=tuple(_node(s, rank, now) for rank in range(len(s.me.names))),
    )


def _node(s: NodeState, rank: int, now: float) -> NodeStatus:
    if rank == s.me.rank:
        return _ourselves(s, now)
    peer = s.peers.get(rank, Peer())
    heard_s_ago = now - peer.heard_at if peer.heard_at is not None else None
    if rank == 0:
        return _head(s.intent, peer, s.me.names[0], heard_s_ago)
    report = peer.report
    if report is None:
        return NodeStatus(node=s.me.names[rank], rank=rank, reachable=peer.reach, heard_s_ago=heard_s_ago)
    return NodeStatus(
        node=report.node,
        rank=rank,
        phase=report.phase,
        reason=report.reason,
        epoch=report.epoch,
        progress=report.progress,
        engine_alive=report.engine_alive,
        heard_s_ago=heard_s_ago,
        reachable=peer.reach,
        boot_id=report.boot_id,
        version=report.version,
        blocked=report.blocked,
        waiting=report.waiting,
    )


def _ourselves(s: NodeState, now: float) -> NodeStatus:
    report = telling.report(s)
    return NodeStatus(
        node=s.me.node,
        rank=s.me.rank,
        phase=s.phase,
        reason=telling.reason(s, now),
        epoch=s.epoch,
        progress=s.progress,
        engine_alive=report.engine_alive,
        heard_s_ago=0.0,
        reachable="self",
        boot_id=s.me.boot_id,
        version=s.me.version,
        blocked=s.blocked,
        waiting=s.waiting,
    )


def _head(intent: Intent, peer: Peer, name: str, heard_s_ago: float | None) -> NodeStatus:
    """A worker knows the head by its intent."""
    return NodeStatus(
        node=name,
        rank=0,
        phase=intent.head_phase if heard_s_ago is not None else None,
        reason=intent.head_reason,
        epoch=intent.epoch,
        progress=intent.progress,
        engine_alive=None if heard_s_ago is None else intent.head_phase.has_engine,
        heard_s_ago=heard_s_ago,
        reachable=peer.reach,
        boot_id=intent.head_boot_id,
        version=intent.version,
        blocked=intent.blocked,
    )
