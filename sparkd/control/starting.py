"""A daemon that starts: what the last life of it left, on disk and in processes."""

from __future__ import annotations

from sparkd.control import backoff
from sparkd.control.moves import Steps, block, left, lose
from sparkd.control.state import Action, Launch, NodeState, Note, Started, replace
from sparkd.model.finding import Cure, Finding, bad
from sparkd.model.report import Gate, Loss, Phase, Saved


def started(s: NodeState, event: Started, now: float) -> Steps:
    """Pick up where the last life of the daemon ended: adopt an engine that is whole, end whatever else still lives."""
    was = event.saved or Saved()
    same_boot = was.boot_id == s.me.boot_id
    found = (*event.intact, *event.broken)
    s = replace(
        s,
        epoch=max(was.epoch, *found, 0),
        loss=was.loss,
        blocked=was.blocked,
        blocked_fingerprint=was.blocked_fingerprint,
        restarts_used=was.restarts_used,
        generation=was.generation,
        phase=Phase.BLOCKED if was.blocked else Phase.IDLE,
        since=now,
        retry_at=now,
    )
    if s.me.is_head:
        s = _resume_intent(s, was, same_boot, now)
    launched = was.launch_epoch if same_boot else None
    if launched is not None and launched == s.epoch and launched in event.intact and not left(s):
        return _adopt(s, was)
    strange = sorted({*found} - {launched}, reverse=True)  # the file is older or newer than what runs, or lost
    if strange:
        says = f"an engine of epoch {strange[0]} lives here that this node does not remember"
        ended = (*strange, launched) if launched is not None else tuple(strange)
        return _end_leftovers(s, ended, bad("state.forgotten", says, cure=Cure.RELAUNCH), now)
    if launched is None:
        return _booted(s, was, now) if was.launch_epoch is not None else (s, [])
    part = "only a part of it still lives" if launched in event.broken else "nothing of it lives any more"
    says = f"the engine of epoch {launched} died while sparkd was away: {part}"
    return _end_leftovers(s, (launched,), bad("engine.lost", says, cure=Cure.RELAUNCH), now)


def _resume_intent(s: NodeState, was: Saved, same_boot: bool, now: float) -> NodeState:
    """The head's word as it was. A barrier that was open without an engine here does not stay open: what it was opened
    with is not remembered."""
    kept = same_boot and (was.gate is Gate.CLOSED or was.launch_epoch == was.epoch)
    intent = s.intent.model_copy(
        update={
            "run": was.run,
            "epoch": s.epoch,
            "gate": was.gate if kept else Gate.ENDED,
            "profile": was.profile,
            "generation": was.generation,
        }
    )
    wait_s = backoff.delay_s(was.restarts_used, s.me.limits, s.me.node) if same_boot else 0.0
    return replace(s, intent=intent, gate_since=now, epoch_at=now + wait_s)


def _adopt(s: NodeState, was: Saved) -> Steps:
    """Invariant 8: what runs is wanted until the head says otherwise, and is proven again by the head."""
    s = replace(s, phase=Phase.LOADING, launch=Launch(s.epoch, seen=True, adopted=True), ready=was.serving)
    if not s.me.is_head:
        s = replace(s, intent=s.intent.model_copy(update={"run": True, "epoch": s.epoch, "gate": Gate.ALL}))
    note = Note("engine.adopted", f"the engine of epoch {s.epoch} is alive and whole: adopted, not disturbed")
    return s, [note]


def _end_leftovers(s: NodeState, epochs: tuple[int, ...], finding: Finding, now: float) -> Steps:
    """What is left of any launch is stopped before anything else, whether or not another epoch is wanted."""
    notes: list[Action] = []
    if s.epoch in epochs:
        s, notes = lose(s, finding, now)
    return replace(s, phase=Phase.STOPPING, launch=Launch(epochs[0]), leftovers=epochs[1:]), notes


def _booted(s: NodeState, was: Saved, now: float) -> Steps:
    """The engine ended with the boot that it belonged to. A boot that interrupted a launch costs one of the budget: it
    may have been the launch that took the host down."""
    says = f"{s.me.node} has booted since epoch {was.launch_epoch}: its engine is gone"
    if was.launch_epoch == s.epoch and not left(s):
        s = replace(s, loss=Loss(epoch=s.epoch, finding=bad("node.booted", says, cure=Cure.RELAUNCH)))
    if s.me.is_head and not was.serving and was.gate is not Gate.ENDED:
        s = replace(s, restarts_used=s.restarts_used + 1)
    notes: list[Action] = [Note("node.booted", says)]
    died = was.loss if was.loss is not None and was.loss.epoch == was.launch_epoch else None
    if died is not None and died.finding.cure is Cure.PERSON and was.run and s.blocked is None:
        return block(s, died.finding, now, by_check=False, notes=notes)  # the boot came before its stop was through
    return s, notes
