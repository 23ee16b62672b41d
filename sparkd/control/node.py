"""One node's life: `step(state, event, now) -> (state, actions)`.

    idle       -> preflight | blocked     an epoch is wanted | the budget is spent
    preflight  -> clean                   every gating check is good
    clean      -> container               stale processes, segments and page cache are gone, measured
    container  -> stage                   the container exists, runs and matches the plan
    stage      -> armed                   the script is staged and verified, patches hold
    armed      -> launching | preflight   the barrier opened | what was checked is too old, or differs from the peer's
    launching  -> loading                 the engine's process lives and runs the plan's argv
    loading    -> proving | serving       the endpoint listens | on a worker: the head proved it
    proving    -> serving                 a real completion came back
    preflight, clean, container, stage -> backoff | blocked | idle    it failed | a person must act | not wanted
    armed      -> idle                    the epoch is not wanted any more
    launching, loading, proving, serving -> stopping                  lost, stopped or superseded
    stopping   -> idle | backoff | blocked                            the engine is gone
    backoff    -> idle                    the time has come, or another epoch is wanted
    blocked    -> idle                    the input changed, or the operator said start

Every event is first *absorbed* (what happened is remembered), then the head *leads* (control/cluster.py: epochs and
the barrier), then the node *advances* through the table above until nothing more follows. Effects answer with the
ticket they were given; an answer that carries an older ticket is about a step that is no longer being taken.
An epoch is wanted when the head's intent says run, its gate has not ended, and this node has not left it.
A daemon that starts (control/starting.py) finds its node idle or blocked; loading, with the living engine that it adopts;
or stopping, with what is left of one that it cannot. How a phase is entered, and the table that holds this drawing, is in
control/moves.py; what others see of the node in control/telling.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparkd.control import backoff, cluster, serving
from sparkd.control.moves import PREPARING, Steps, ask, block, enter, left, lose
from sparkd.control.starting import started
from sparkd.control.state import (
    Action,
    Asked,
    CanaryBack,
    Counted,
    Done,
    EngineGone,
    EngineProgress,
    EngineReady,
    EngineSeen,
    Event,
    Failed,
    Heard,
    Inputs,
    Launch,
    Look,
    Me,
    Measured,
    NodeState,
    Note,
    Peer,
    Reload,
    Save,
    Silent,
    Started,
    Tell,
    Tick,
    Told,
    replace,
)
from sparkd.control.telling import REPORTED_FROM, SAVED_FROM, report, saved
from sparkd.model.finding import Cure, Finding, Who, bad
from sparkd.model.report import Gate, Intent, Loss, Phase, Progress, Report

NEXT_STEP = {
    Phase.PREFLIGHT: Phase.CLEAN,
    Phase.CLEAN: Phase.CONTAINER,
    Phase.CONTAINER: Phase.STAGE,
    Phase.STAGE: Phase.ARMED,
}

LEAVING = frozenset((*PREPARING, Phase.ARMED, Phase.LAUNCHING, Phase.LOADING, Phase.PROVING, Phase.SERVING))

MOVES_MAX = 20  # one event makes one or two moves; this many are a circle
RECHECK_S = 1.0  # between two looks, at first, at something that comes by itself or at a blocked node's inputs


def begin(me: Me) -> NodeState:
    """A node that knows nothing yet; `Started` tells it the rest."""
    return NodeState(me=me, intent=Intent(run=me.is_head, epoch=0, gate=Gate.ENDED, version=me.version))


def step(state: NodeState, event: Event, now: float) -> Steps:
    """What becomes of the node, and what it asks for, in order. What must survive is saved before anything acts on it."""
    new, actions = absorb(state, event, now)
    is_head = state.me.is_head
    for _ in range(MOVES_MAX):
        if is_head:
            new, notes = cluster.lead(new, now)
            actions += notes
        moved = advance(new, now)
        if moved is None:
            break
        new, more = moved
        actions += more
    else:
        raise AssertionError(f"{event} sets the node going round in circles (now {new.phase})")
    if is_head:
        new = cluster.publish(new)
    if new is state:  # most turns: time passed, or a message said what was known
        return new, actions
    if SAVED_FROM(new) != SAVED_FROM(state) and (kept := saved(new)) != saved(state):
        actions.insert(0, Save(kept))
    if _told_changes(state, new):
        actions.append(Tell())
    return new, actions


def _told_changes(state: NodeState, new: NodeState) -> bool:
    if new.me.is_head:
        return new.intent is not state.intent and new.intent != state.intent
    return REPORTED_FROM(new) != REPORTED_FROM(state) and report(new) != report(state)


# --- absorbing what happened -------------------------------------------------------------------


def absorb(s: NodeState, event: Event, now: float) -> Steps:
    """Remember what happened (the most frequent first). Facts about an epoch that is not this launch's are about the past:
    dropped."""
    match event:
        case Tick():
            return s, []
        case Heard(report=told) if told.rank in s.me.workers and not _older(
            told, s.peers.get(told.rank, Peer()).report
        ):
            return serving.noticed(_met(s, told.rank, "yes", now, report=told, heard_at=now, objection=None), now), []
        case Told(intent=intent) if not s.me.is_head and not _older(intent, s.intent):
            return _told(s, intent, now)
        case Started():
            return started(s, event, now)
        case Done() | Failed():
            return _answered(s, event, now) if s.busy and event.ticket == s.ticket else (s, [])
        case EngineSeen(epoch=epoch, findings=findings) if _living(s, epoch):
            if findings:
                return lose(s, findings[0], now)
            note = Note(
                "engine.verified", "the engine lives; its argv and environment, as the kernel has them, equal the plan"
            )
            return replace(s, launch=Launch(epoch, seen=True, adopted=bool(s.launch and s.launch.adopted))), [note]
        case EngineReady(epoch=epoch) if _living(s, epoch):
            return replace(s, ready=True), []
        case EngineProgress(epoch=epoch, progress=progress) if _living(s, epoch):
            return replace(s, progress=progress), []
        case EngineGone(epoch=epoch, finding=finding) if _living(s, epoch):
            return lose(s, finding, now)
        case Counted(epoch=epoch, counters=counters) if _living(s, epoch):
            return serving.counted(s, counters, now), []
        case Measured(epoch=epoch, vitals=vitals) if _living(s, epoch):
            return serving.noticed(replace(s, vitals=vitals, vitals_at=now), now), []
        case CanaryBack():
            return serving.canary_back(s, event, now)
        case Silent(rank=rank, reach=reach, finding=finding):
            return _met(s, rank, reach, now, objection=finding), []
        case Asked() if s.me.is_head:
            return _asked(s, event, now)
        case Inputs() if s.phase is Phase.BLOCKED:
            return _inputs(s, event)
    return s, []


def _older(told: Report | Intent, known: Report | Intent | None) -> bool:
    """Whether it was said before what is known, by the same boot of the same node. The transport keeps the order; should a
    word ever come late or again, it must neither undo a newer one nor count as a sign of life. (0: an older sparkd, which does
    not say when.)"""
    if isinstance(known, Report) and isinstance(told, Report):
        return 0 < told.at < known.at and told.boot_id == known.boot_id
    if isinstance(known, Intent) and isinstance(told, Intent):
        return 0 < told.at < known.at and told.head_boot_id == known.head_boot_id
    return False


def _met(s: NodeState, rank: int, reach: str, now: float, **learned: Any) -> NodeState:
    old = s.peers.get(rank, Peer())
    since = old.since if old.reach == reach else now
    return replace(s, peers={**s.peers, rank: replace(old, reach=reach, since=since, **learned)})


def _living(s: NodeState, epoch: int) -> bool:
    """The fact is about the launch that lives here and is not being stopped."""
    return s.launch is not None and s.launch.epoch == epoch and s.phase.has_engine and not left(s)


def _told(s: NodeState, intent: Intent, now: float) -> Steps:
    """The head's word. A head that speaks of an older epoch than this node has seen has lost its memory, and with it its
    half of the engine: nothing is wanted here until it has caught up with our report."""
    s = _met(s, 0, "yes", now, heard_at=now, objection=None)
    actions: list[Action] = []
    if intent.generation > s.generation:
        actions.append(Reload(intent.generation))
        s = replace(s, generation=intent.generation)
        if s.phase is Phase.BLOCKED:
            s = replace(s, blocked=None)
    s = replace(s, intent=intent)
    if intent.gate is Gate.CLOSED and _living(s, intent.epoch):  # a gate only opens: this is another epoch, misnumbered
        says = f"{s.me.names[0]} hands out epoch {intent.epoch}, which already runs here: it has lost its state"
        s, notes = lose(s, bad("state.epoch-reused", says, cure=Cure.RELAUNCH), now)
        actions += notes
    return s, actions


def _asked(s: NodeState, event: Asked, now: float) -> Steps:
    """The operator's word is the only thing that changes `run`, and it refills the budget."""
    i = s.intent
    if event.verb == "stop":
        note = Note("operator.stop", "stop: asked by the operator")
        return replace(s, intent=i.model_copy(update={"run": False}), blocked=None), [note]
    profile = event.profile or i.profile
    note = Note(
        f"operator.{event.verb}", f"{event.verb}: asked by the operator" + (f", profile {profile}" if profile else "")
    )
    stuck = s.blocked is not None or any(peer.report and peer.report.blocked for peer in s.peers.values())
    if event.verb == "start" and i.run and profile == i.profile and not stuck:
        return s, [note]
    update = {"run": True, "profile": profile, "generation": i.generation + 1, "gate": Gate.ENDED}
    intent = i.model_copy(update=update)  # a new epoch follows; an engine of the old one is not wanted any more
    s = replace(s, intent=intent, restarts_used=0, attempts=0, retry_at=now, epoch_at=now, blocked=None, stuck_on="")
    s = replace(s, generation=intent.generation)
    return s, [note, Reload(intent.generation)]


def _inputs(s: NodeState, event: Inputs) -> Steps:
    """A blocked node leaves when its check is good again, or, where no check can see it, when an input changed. A check that
    finds something else meanwhile does not take the place of what no check can see: it may be mended first."""
    if not s.blocked_fingerprint:
        found = event.finding if s.blocked_by_check else None
        return replace(s, blocked_fingerprint=event.fingerprint, blocked=found or s.blocked), []
    if not s.blocked_by_check and event.fingerprint == s.blocked_fingerprint:
        return s, []
    if event.finding is not None:
        return replace(s, blocked=event.finding, blocked_by_check=True), []
    why = "what blocked it is mended" if s.blocked_by_check else "an input changed"
    return replace(s, blocked=None, restarts_used=0, epoch_at=0.0), [Note("node.unblocked", f"{why}: trying again")]


def _answered(s: NodeState, event: Done | Failed, now: float) -> Steps:
    """The effect of the phase we are in has answered."""
    s = replace(s, busy=False)
    if event.digests is not None:
        s = replace(s, digests=event.digests)
    if isinstance(event, Failed):
        return _effect_failed(s, event.finding, now)
    notes: list[Action] = [Note(f"phase.{s.phase}", event.says)] if event.says else []
    if s.phase in PREPARING:
        if s.phase is s.waiting_in:
            s = replace(s, waiting=None)
        s = replace(s, attempts=0 if s.phase is Phase.STAGE else s.attempts)
        return enter(s, NEXT_STEP[s.phase], now, notes)
    if s.phase is Phase.PROVING and event.proof is not None:
        s = replace(s, proof=event.proof.model_copy(update={"at": now}), moved_at=now)
        return enter(s, Phase.SERVING, now, [*notes, Note("engine.proven", event.proof.says)])
    if s.phase is Phase.STOPPING:
        return _stopped(s, event.finding, now, notes)
    return s, notes


def _effect_failed(s: NodeState, finding: Finding, now: float) -> Steps:
    """By its cure: what comes by itself is waited for, what may come is tried again, the rest needs a person."""
    if s.phase in PREPARING:
        if finding.cure is Cure.WAIT:
            first = s.waiting is None or s.waiting.id != finding.id
            notes: list[Action] = [Note(finding.id, f"waiting: {finding.says}")] if first else []
            since = now if first else s.waiting_since
            s = replace(s, waiting=finding, waiting_in=s.phase, waiting_since=since)
            return replace(s, retry_at=now + backoff.look_s(now - since, RECHECK_S)), notes
        if finding.cure is Cure.PERSON:
            return block(s, finding, now, by_check=True)
        attempts = s.attempts + 1
        wait_s = max(RECHECK_S, backoff.delay_s(attempts + 1, s.me.limits, f"{s.me.node}/prepare"))
        s = replace(s, attempts=attempts, retry_at=now + wait_s, waiting=finding)
        return enter(s, Phase.BACKOFF, now, [Note(finding.id, f"{finding.says}; again in {wait_s:.0f} s", alarm=True)])
    if s.phase is Phase.STOPPING:  # a stop answers Done in the end; asked again until it does
        return replace(s, retry_at=now + RECHECK_S), [Note(finding.id, finding.says, alarm=True)]
    if s.phase is Phase.PROVING and s.launch is not None and s.launch.adopted and s.moved_at > s.since:
        # It served before the daemon did, and its counters move: busy with others' work, not broken (invariant 8).
        s, asked = ask(replace(s, since=now), Phase.PROVING, now)
        return s, [
            Note(finding.id, f"the adopted engine works on others' requests: {finding.says}; asking again"),
            *asked,
        ]
    if s.phase is Phase.PROVING and finding.id == "endpoint.timeout" and serving.may_still_work(s, now):
        s, asked = ask(s, Phase.PROVING, now)
        return s, [
            Note(finding.id, f"the proof was not answered, and the engine may still work: {finding.says}; again"),
            *asked,
        ]
    return lose(s, finding, now)


def _stopped(s: NodeState, refined: Finding | None, now: float, notes: list[Action]) -> Steps:
    """The engine is gone from this node. What its log said may tell more than the death did."""
    if s.leftovers:
        s, asked = ask(replace(s, launch=Launch(s.leftovers[0]), leftovers=s.leftovers[1:]), Phase.STOPPING, now)
        return s, [*notes, *asked]
    ended = s.launch.epoch if s.launch is not None else s.epoch  # older than `epoch` where the daemon ended meanwhile
    s = replace(s, launch=None, ready=False, progress=Progress(), proof=None, counters=None, busy_since=None)
    s = replace(s, canary_at=None, canary_done_at=None, canary_failures=0)
    s = replace(s, unanswered_since=None, doubt=False, vitals=None)
    lost = s.loss if s.loss is not None and s.loss.epoch == ended else None
    if lost is not None and refined is not None and cluster.says_more(refined, lost.finding):
        lost = Loss(epoch=ended, finding=refined)
        s = replace(s, loss=lost)
        notes = [*notes, Note(refined.id, f"epoch {ended} ended because: {refined.says}", alarm=True)]
    if lost is not None and lost.finding.cure is Cure.PERSON and s.intent.run:
        return block(s, lost.finding, now, by_check=False, notes=notes)
    if s.blocked is not None:
        return enter(s, Phase.BLOCKED, now, notes)
    if not s.intent.run or _wanted(s) is not None:
        return enter(s, Phase.IDLE, now, notes)
    return enter(s, Phase.BACKOFF, now, notes)


# --- advancing ---------------------------------------------------------------------------------


def _wanted(s: NodeState) -> int | None:
    """The epoch this node should be working on, if any."""
    i = s.intent
    if not i.run or i.gate is Gate.ENDED or i.epoch < max(s.epoch, 1):
        return None
    if s.loss is not None and s.loss.epoch >= i.epoch:
        return None
    return i.epoch


def advance(s: NodeState, now: float) -> Steps | None:
    """One move that follows from the state alone, or None when nothing follows."""
    if s.phase in LEAVING and _wanted(s) != s.epoch:
        return _leave(s, now)
    return ADVANCE[s.phase](s, now)


def _leave(s: NodeState, now: float) -> Steps:
    if s.launch is None:
        return enter(replace(s, waiting=None), Phase.IDLE, now, [])
    return enter(s, Phase.STOPPING, now, [])


def _idle(s: NodeState, now: float) -> Steps | None:
    wanted = _wanted(s)
    if wanted is None and s.me.is_head and s.intent.run and cluster.is_budget_spent(s):
        return block(s, cluster.budget_spent(s), now, by_check=False)
    if wanted is None:
        return None
    return enter(replace(s, epoch=wanted, proof=None, progress=Progress()), Phase.PREFLIGHT, now, [])


def _preparing(s: NodeState, now: float) -> Steps | None:
    """What comes by itself was not there yet: look again, from the first step."""
    if s.busy or now < s.retry_at:
        return None
    return ask(s, Phase.PREFLIGHT, now) if s.phase is Phase.PREFLIGHT else enter(s, Phase.IDLE, now, [])


def _armed(s: NodeState, now: float) -> Steps | None:
    opened = s.intent.gate is Gate.ALL or (s.intent.gate is Gate.WORKERS and not s.me.is_head)
    if not opened:
        return enter(s, Phase.PREFLIGHT, now, []) if cluster.must_look_again(s, now) else None
    if not s.me.is_head and s.peers.get(0, Peer()).reach != "yes":
        return None  # looked again behind the barrier, and the head fell silent meanwhile: it may have ended this epoch
    if now - s.since > cluster.ARMED_FRESH_S and not s.me.is_head:
        return enter(s, Phase.PREFLIGHT, now, [])  # the head looked again before it opened the barrier
    differs = cluster.differs_from_head(s)
    if differs is not None:
        return lose(s, differs, now)
    return enter(replace(s, launch=Launch(s.epoch), ready=False, stuck_on=""), Phase.LAUNCHING, now, [])


def _launching(s: NodeState, now: float) -> Steps | None:
    if s.launch is not None and s.launch.seen:
        return enter(s, Phase.LOADING, now, [])
    if now - s.since > s.me.limits.start_max_s:
        says = f"the engine's process did not appear within {s.me.limits.start_max_s:.0f} s of its start"
        return lose(s, bad("engine.start-timeout", says, cure=Cure.RELAUNCH), now)
    return _peer_gone(s, now)


def _loading(s: NodeState, now: float) -> Steps | None:
    if s.me.is_head and s.ready:
        return enter(s, Phase.PROVING, now, [])
    if not s.me.is_head and s.intent.serving:
        return enter(s, Phase.SERVING, now, [])
    if not s.me.is_head and s.intent.head_phase is Phase.PROVING:
        return enter(s, Phase.PROVING, now, [])
    if s.me.is_head and now - s.since > s.me.limits.load_max_s:
        says = f"the endpoint did not listen within {s.me.limits.load_max_s:.0f} s: {s.progress.says or 'no progress seen'}"
        return lose(s, bad("engine.load-timeout", says, cure=Cure.RELAUNCH), now)
    return _peer_gone(s, now)


def _proving(s: NodeState, now: float) -> Steps | None:
    if not s.me.is_head and s.intent.serving:
        return enter(s, Phase.SERVING, now, [])
    if s.me.is_head and not s.doubt and serving.is_proof_late(s, now):
        return replace(s, doubt=True), []
    return _peer_gone(s, now)


def _serving(s: NodeState, now: float) -> Steps | None:
    if s.restarts_used and now - s.since > s.me.limits.hold_s:
        note = Note("engine.held", f"served for {s.me.limits.hold_s:.0f} s: the restart budget is full again")
        return replace(s, restarts_used=0), [note]
    if s.me.is_head:
        return serving.watch(s, now)
    return _peer_gone(s, now)


def _peer_gone(s: NodeState, now: float) -> Steps | None:
    """A worker cannot ask the endpoint: a head that answers nothing at all for `link_loss_max_s` makes its half
    useless. A refused connection is a living host whose agent is away: that alone never ends anything."""
    head = s.peers.get(0)
    if s.me.is_head or head is None or head.reach != "unreachable" or now - head.since <= s.me.limits.link_loss_max_s:
        return None
    says = f"{s.me.names[0]} could not be reached for {s.me.limits.link_loss_max_s:.0f} s: this half of the engine is useless"
    return lose(s, bad("peer.unreachable", says, cure=Cure.RELAUNCH, who=Who.SPARKD), now)


def _stopping(s: NodeState, now: float) -> Steps | None:
    return None if s.busy or now < s.retry_at else ask(s, Phase.STOPPING, now)


def _backoff(s: NodeState, now: float) -> Steps | None:
    due = now >= s.retry_at and _wanted(s) is not None
    if not s.intent.run or due or (_wanted(s) or 0) > s.epoch or (s.me.is_head and cluster.is_budget_spent(s)):
        return enter(replace(s, waiting=None), Phase.IDLE, now, [])
    return None


def _blocked(s: NodeState, now: float) -> Steps | None:
    if s.blocked is None:
        return enter(replace(s, blocked_fingerprint=""), Phase.IDLE, now, [])
    if now < s.retry_at:
        return None
    since = s.stuck_since if s.stuck_on == s.blocked.id else s.since
    return replace(s, retry_at=now + backoff.look_s(now - since, 2 * RECHECK_S)), [Look()]


ADVANCE: dict[Phase, Callable[[NodeState, float], Steps | None]] = {
    Phase.IDLE: _idle,
    Phase.PREFLIGHT: _preparing,
    Phase.CLEAN: _preparing,
    Phase.CONTAINER: _preparing,
    Phase.STAGE: _preparing,
    Phase.ARMED: _armed,
    Phase.LAUNCHING: _launching,
    Phase.LOADING: _loading,
    Phase.PROVING: _proving,
    Phase.SERVING: _serving,
    Phase.STOPPING: _stopping,
    Phase.BACKOFF: _backoff,
    Phase.BLOCKED: _blocked,
}
