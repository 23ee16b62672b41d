"""The moves that every part of a node's life makes: into a phase with its effect, out of an epoch, into a block."""

from __future__ import annotations

from sparkd.control import cluster
from sparkd.control.state import Action, NodeState, Note, Prepare, Prove, Start, Stop, replace
from sparkd.model.finding import Finding
from sparkd.model.report import Loss, Phase

Steps = tuple[NodeState, list[Action]]

PREPARING = (Phase.PREFLIGHT, Phase.CLEAN, Phase.CONTAINER, Phase.STAGE)
TRANSITIONS: dict[Phase, tuple[Phase, ...]] = {
    Phase.IDLE: (Phase.PREFLIGHT, Phase.BLOCKED),
    Phase.PREFLIGHT: (Phase.CLEAN, Phase.BACKOFF, Phase.BLOCKED, Phase.IDLE),
    Phase.CLEAN: (Phase.CONTAINER, Phase.BACKOFF, Phase.BLOCKED, Phase.IDLE),
    Phase.CONTAINER: (Phase.STAGE, Phase.BACKOFF, Phase.BLOCKED, Phase.IDLE),
    Phase.STAGE: (Phase.ARMED, Phase.BACKOFF, Phase.BLOCKED, Phase.IDLE),
    Phase.ARMED: (Phase.LAUNCHING, Phase.PREFLIGHT, Phase.IDLE),
    Phase.LAUNCHING: (Phase.LOADING, Phase.STOPPING),
    Phase.LOADING: (Phase.PROVING, Phase.SERVING, Phase.STOPPING),
    Phase.PROVING: (Phase.SERVING, Phase.STOPPING),
    Phase.SERVING: (Phase.STOPPING,),
    Phase.STOPPING: (Phase.IDLE, Phase.BACKOFF, Phase.BLOCKED),
    Phase.BACKOFF: (Phase.IDLE,),
    Phase.BLOCKED: (Phase.IDLE,),
}


def lose(s: NodeState, finding: Finding, now: float) -> Steps:
    """This node's part of the epoch is over. The head hears of it with the next word; nothing waits for a request."""
    if left(s):
        return s, []
    note = Note(finding.id, f"epoch {s.epoch} lost on {s.me.node}: {finding.says}", alarm=True)
    return replace(s, loss=Loss(epoch=s.epoch, finding=finding)), [note]


def left(s: NodeState) -> bool:
    return s.loss is not None and s.loss.epoch >= s.epoch


def block(s: NodeState, finding: Finding, now: float, *, by_check: bool, notes: list[Action] | None = None) -> Steps:
    note = Note(finding.id, f"blocked: {finding.says}", alarm=True)
    s = replace(s, blocked=finding, blocked_by_check=by_check, blocked_fingerprint="", waiting=None, retry_at=now)
    if s.stuck_on != finding.id:
        s = replace(s, stuck_on=finding.id, stuck_since=now)
    return enter(s, Phase.BLOCKED, now, [*(notes or []), note])


def enter(s: NodeState, phase: Phase, now: float, notes: list[Action]) -> Steps:
    """Every change of phase goes through here, and asks for the phase's effect."""
    if phase not in TRANSITIONS[s.phase]:
        raise AssertionError(f"{s.phase} -> {phase} is not in the drawing")
    note = Note("phase", f"{s.phase} -> {phase}" + (f" (epoch {s.epoch})" if s.epoch else ""))
    s = replace(s, phase=phase, since=now, busy=False, ticket=s.ticket + 1)
    if phase in (*PREPARING, Phase.LAUNCHING, Phase.STOPPING) or (phase is Phase.PROVING and s.me.is_head):
        s, asked = ask(s, phase, now)
        return s, [*notes, note, *asked]
    return s, [*notes, note]


def ask(s: NodeState, phase: Phase, now: float) -> Steps:
    """Ask for the effect of this phase, under a new ticket."""
    s = replace(s, busy=True, ticket=s.ticket + 1)
    match phase:
        case Phase.LAUNCHING:
            return s, [Start(s.ticket, s.epoch)]
        case Phase.STOPPING:
            return s, [Stop(s.ticket, s.launch.epoch if s.launch else s.epoch)]
        case Phase.PROVING:
            return s, [Prove(s.ticket, s.epoch)]
        case _:
            return s, [Prepare(s.ticket, phase, s.epoch, s.intent.profile, cluster.others_plans(s))]
