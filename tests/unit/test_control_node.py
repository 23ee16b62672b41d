"""One node's life, event by event. The histories of whole clusters are in tests/sim."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest

from sparkd.control import backoff, moves, node, telling
from sparkd.control.state import (
    Action,
    Asked,
    Counted,
    Counters,
    Done,
    EngineGone,
    EngineSeen,
    Event,
    Failed,
    Inputs,
    Launch,
    Look,
    Me,
    NodeState,
    Note,
    Peer,
    Prepare,
    Prove,
    Reload,
    Save,
    Silent,
    Start,
    Started,
    Stop,
    Tell,
    Tick,
    Told,
)
from sparkd.model.cluster import Limits
from sparkd.model.finding import Cure, bad
from sparkd.model.report import Digests, Gate, Intent, Phase, Proof, Saved

LIMITS = Limits()
GONE = bad("engine.rank-died", "VLLM::Worker_TP0 was killed by signal 9", cure=Cure.RELAUNCH)


def me(rank: int = 0, size: int = 1) -> Me:
    names = tuple(f"spark{number + 1}" for number in range(size))
    return Me(names[rank], rank, names, "boot-1", "0.1.0", LIMITS)


def walk(state: NodeState, *events: Event, now: float = 10.0) -> tuple[NodeState, list[Action]]:
    """Every event a second after the one before; the actions of all of them."""
    actions: list[Action] = []
    for second, event in enumerate(events):
        state, more = node.step(state, event, now + second)
        actions += more
    return state, actions


def started(rank: int = 0, size: int = 1, saved: Saved | None = None) -> NodeState:
    return walk(node.begin(me(rank, size)), Started(saved, (), ()), now=5.0)[0]


def until(state: NodeState, phase: Phase) -> NodeState:
    """A single node on its good way to `phase`."""
    for _ in range(20):
        if state.phase is phase:
            return state
        event: Event = Done(state.ticket, digests=Digests(plan="p"), proof=Proof(epoch=state.epoch, at=0))
        if state.phase is Phase.LAUNCHING:
            event = EngineSeen(state.epoch)
        if state.phase is Phase.LOADING:
            state = replace(state, ready=True)
            event = Tick()
        state, _ = node.step(state, event, 10.0)
    raise AssertionError(f"never came to {phase}, is {state.phase}")


# --- the drawing ---------------------------------------------------------------------------------


def drawn() -> dict[Phase, set[Phase]]:
    """The table in the docstring: `from, from -> to | to`, and then the reasons."""
    assert node.__doc__ is not None
    table: dict[Phase, set[Phase]] = {}
    for line in node.__doc__.splitlines():
        match = re.match(r"    ([a-z, ]+?) +-> ([a-z]+(?: \| [a-z]+)*)(?:  |$)", line)
        if match:
            for phase in match[1].split(","):
                table.setdefault(Phase(phase.strip()), set()).update(Phase(to) for to in match[2].split(" | "))
    return table


def test_the_drawing_is_the_table() -> None:
    assert drawn() == {phase: set(to) for phase, to in moves.TRANSITIONS.items()}


def test_every_phase_can_be_left_and_reached_and_advances() -> None:
    assert set(moves.TRANSITIONS) == set(Phase) == set(node.ADVANCE)
    assert {to for targets in moves.TRANSITIONS.values() for to in targets} == set(Phase)


def test_a_move_that_is_not_drawn_is_refused() -> None:
    with pytest.raises(AssertionError, match="idle -> serving is not in the drawing"):
        moves.enter(node.begin(me()), Phase.SERVING, 0.0, [])


# --- the good way ----------------------------------------------------------------------------------


def test_a_single_node_goes_all_the_way() -> None:
    state = started()
    assert (state.phase, state.epoch) == (Phase.PREFLIGHT, 1)
    state, actions = walk(until(state, Phase.STAGE), Done(until(state, Phase.STAGE).ticket))
    assert state.phase is Phase.LAUNCHING
    assert isinstance(actions[0], Save), "saved before anything acts on it"
    assert actions[0].saved.launch_epoch == 1
    assert Start(state.ticket, 1) in actions
    state, actions = walk(until(state, Phase.PROVING), Tick())
    assert telling.reason(state, 10.0) == "proving epoch 1: asking the endpoint for a real answer"
    state = until(state, Phase.SERVING)
    assert state.intent.serving
    assert telling.reason(state, 12.0) == "serving epoch 1: a real answer 2 s ago"


def test_nothing_new_is_neither_saved_nor_told() -> None:
    state = until(started(), Phase.LOADING)
    assert walk(state, Tick(), Tick())[1] == []


def test_an_answer_to_an_older_question_is_dropped() -> None:
    state = started()
    same, actions = walk(state, Done(state.ticket - 1, "every check is good"))
    assert (same.phase, actions) == (Phase.PREFLIGHT, [])


def test_facts_about_another_epoch_are_dropped() -> None:
    state = until(started(), Phase.SERVING)
    same, actions = walk(state, EngineGone(state.epoch - 1, GONE))
    assert same is state
    assert actions == []


# --- what fails -----------------------------------------------------------------------------------


def test_what_comes_by_itself_is_waited_for_and_noted_once() -> None:
    state = started()
    late = bad("link.down", "bond0 has no carrier", cure=Cure.WAIT)
    state, actions = walk(state, Failed(state.ticket, late), Tick(), Tick())
    assert state.phase is Phase.PREFLIGHT
    assert [action.says for action in actions if isinstance(action, Note)] == ["waiting: bond0 has no carrier"]
    assert telling.reason(state, 13.0) == "preflight: waiting for 3 s: bond0 has no carrier"
    asked = [action for action in actions if isinstance(action, Prepare)]
    assert [action.phase for action in asked] == [Phase.PREFLIGHT], "looked again after a second, one at a time"


def test_what_may_come_is_tried_again_later_and_later() -> None:
    state = started()
    short = bad("memory.short", "90 of 108 GiB are free", cure=Cure.RELAUNCH)
    delays = []
    for _ in range(3):
        state, _ = node.step(state, Failed(state.ticket, short), 10.0)
        assert state.phase is Phase.BACKOFF
        delays.append(state.retry_at - 10.0)
        state, _ = node.step(state, Tick(), state.retry_at)
        assert state.phase is Phase.PREFLIGHT
    assert delays == sorted(delays)
    assert delays[0] >= 1.0


def test_what_needs_a_person_blocks_and_leaves_when_it_is_mended() -> None:
    state = started()
    missing = bad("script.missing", "/opt/run.sh does not exist", cure=Cure.PERSON)
    state, actions = walk(state, Failed(state.ticket, missing))
    assert state.phase is Phase.BLOCKED
    assert Look() in actions
    assert telling.reason(state, 11.0) == "blocked: /opt/run.sh does not exist"
    state, _ = walk(state, Inputs("a", missing), Inputs("b", missing))
    assert state.phase is Phase.BLOCKED, "another input changed, this one is still bad"
    state, _ = walk(state, Inputs("c"))
    assert state.phase is Phase.PREFLIGHT


def test_a_block_that_no_look_sees_is_tried_again_ever_more_seldom() -> None:
    """The look finds nothing wrong, the step fails again: what seems mended is not, and a second's pace would flood the log."""
    finding = bad("script.not-staged", "/opt/run.sh does not hold what was written to it", cure=Cure.PERSON)
    state, actions = node.step(started(), Failed(started().ticket, finding), 0.0)
    blocked, now = [0.0], 0.0
    while now < 3600.0:
        now += 0.5
        state, actions = node.step(state, Tick(), now)
        if Look() in actions:
            state, _ = node.step(state, Inputs("a"), now)
            state, _ = node.step(state, Inputs("a"), now)
        elif any(isinstance(action, Prepare) for action in actions) or state.phase is Phase.PREFLIGHT:
            state, _ = node.step(state, Failed(state.ticket, finding), now)
            assert state.phase is Phase.BLOCKED
            blocked.append(now)
    waits = [later - earlier for earlier, later in itertools.pairwise(blocked)]
    assert waits[0] <= 3.0 and waits[-1] >= 15.0
    assert len(blocked) < 400
    state, _ = walk(state, Asked("restart", None), now=now)
    assert state.stuck_on == "", "a person's word: looked at often again"


@pytest.mark.parametrize(("cure", "least_s"), [(Cure.PERSON, 2.0), (Cure.WAIT, 1.0)])
def test_looks_grow_rare_where_nobody_comes(cure: Cure, least_s: float) -> None:
    """A night is some 2,000 looks, not 20,000 or 40,000; who works on it is answered within seconds."""
    finding = bad("script.missing", "/opt/run.sh does not exist", cure=cure)
    state, actions = node.step(started(), Failed(started().ticket, finding), 0.0)
    looks, now, end = [0.0], 0.0, 8 * 3600.0
    while now < end:
        now += 0.5
        state, actions = node.step(state, Tick(), now)
        if any(isinstance(action, Look | Prepare) for action in actions):
            looks.append(now)
            state, _ = node.step(state, Inputs("a", finding) if cure is Cure.PERSON else Failed(state.ticket, finding), now)
    waits = [later - earlier for earlier, later in itertools.pairwise(looks)]
    assert waits == sorted(waits) and waits[0] <= least_s and max(waits) <= backoff.LOOK_MAX_S + 0.5
    assert sum(at < 60 for at in looks) > 20 and len(looks) < 2200


def test_what_no_check_sees_waits_for_a_changed_input() -> None:
    state = until(started(), Phase.LOADING)
    recipe = bad("engine.bad-argument", "unrecognized arguments: --tensor-paralel", cure=Cure.PERSON)
    state, actions = walk(state, EngineGone(1, GONE))
    assert state.phase is Phase.STOPPING
    assert Stop(state.ticket, 1) in actions
    state, _ = walk(state, Done(state.ticket, finding=recipe), Inputs("a"), Inputs("a"))
    assert telling.reason(state, 20.0) == "blocked: unrecognized arguments: --tensor-paralel"
    state, _ = walk(state, Inputs("b"))
    assert state.phase is Phase.PREFLIGHT


def test_an_engine_that_differs_from_the_plan_ends_the_epoch() -> None:
    state = until(started(), Phase.LAUNCHING)
    differs = bad("engine.argv-differs", "--max-num-seqs is 8, the plan says 16", cure=Cure.PERSON)
    state, _ = walk(state, EngineSeen(1, (differs,)))
    assert state.phase is Phase.STOPPING
    assert telling.reason(state, 10.0) == "stopping epoch 1: --max-num-seqs is 8, the plan says 16"


def test_the_next_epoch_is_another_number() -> None:
    state = until(started(), Phase.SERVING)
    state, _ = walk(state, EngineGone(1, GONE))
    assert (state.intent.epoch, state.intent.gate) == (2, Gate.CLOSED)
    state, _ = walk(state, Done(state.ticket))
    assert (state.phase, state.epoch, state.launch) == (Phase.PREFLIGHT, 2, None)


# --- the operator -----------------------------------------------------------------------------------


def test_stop_start_and_restart() -> None:
    state = until(started(), Phase.SERVING)
    state, _ = walk(state, Asked("stop"))
    assert telling.reason(state, 10.0) == "stopping epoch 1: stop was asked"
    state, _ = walk(state, Done(state.ticket))
    assert telling.reason(state, 10.0) == "stopped by the operator"
    state, actions = walk(state, Asked("start", "latency"))
    assert (state.phase, state.epoch, state.intent.profile) == (Phase.PREFLIGHT, 2, "latency")
    assert Reload(1) in actions
    state, actions = walk(state, Asked("restart"))
    assert (state.epoch, state.intent.profile) == (3, "latency")


def test_start_does_nothing_to_what_runs() -> None:
    state = until(started(), Phase.SERVING)
    same, actions = walk(state, Asked("start"))
    assert same.intent == state.intent
    assert [type(action) for action in actions] == [Note]


# --- the daemon's start -------------------------------------------------------------------------------

SERVING = Saved(boot_id="boot-1", epoch=7, gate=Gate.ALL, launch_epoch=7, serving=True)


def test_a_whole_engine_is_adopted_and_proven() -> None:
    state, actions = walk(node.begin(me()), Started(SERVING, (7,), ()))
    assert (state.phase, state.epoch, state.launch) == (Phase.PROVING, 7, Launch(7, seen=True, adopted=True))
    assert Prove(state.ticket, 7) in actions
    assert not [action for action in actions if isinstance(action, Stop | Start)]


def test_an_adopted_worker_needs_no_word_and_proves_nothing() -> None:
    state, actions = walk(node.begin(me(1, 2)), Started(SERVING, (7,), ()))
    assert state.phase is Phase.LOADING
    assert not [action for action in actions if isinstance(action, Stop | Start | Prove)]
    state, _ = walk(state, Told(Intent(run=True, epoch=7, gate=Gate.ALL, serving=True)))
    assert state.phase is Phase.SERVING


@pytest.mark.parametrize(("intact", "broken", "says"), [((), (7,), "only a part"), ((), (), "nothing of it")])
def test_what_died_meanwhile_is_stopped(intact: tuple[int, ...], broken: tuple[int, ...], says: str) -> None:
    state, actions = walk(node.begin(me()), Started(SERVING, intact, broken))
    assert state.phase is Phase.STOPPING
    assert says in telling.reason(state, 10.0)
    assert Stop(state.ticket, 7) in actions
    assert (state.intent.epoch, state.restarts_used) == (8, 1)


def test_another_boot_has_no_engine() -> None:
    state, _ = walk(node.begin(me()), Started(SERVING.model_copy(update={"boot_id": "boot-0"}), (), ()))
    assert (state.phase, state.epoch, state.restarts_used) == (Phase.PREFLIGHT, 8, 0)


def test_a_boot_in_the_middle_of_a_launch_costs_one_of_the_budget() -> None:
    before = SERVING.model_copy(update={"boot_id": "boot-0", "serving": False})
    state, _ = walk(node.begin(me()), Started(before, (), ()))
    assert state.restarts_used == 1


def test_an_engine_that_nobody_remembers_is_stopped_and_gives_its_number() -> None:
    state, actions = walk(node.begin(me()), Started(None, (7,), ()))
    assert Stop(state.ticket, 7) in actions
    assert state.intent.epoch == 8


def test_every_engine_that_the_file_does_not_know_is_stopped_before_anything_else() -> None:
    """The file is a backup, or from a cluster that is far ahead."""
    for epoch in (5, 1007):
        strange = SERVING.model_copy(update={"epoch": epoch, "launch_epoch": epoch})
        state, actions = walk(node.begin(me()), Started(strange, (7,), (6,)))
        assert Stop(state.ticket, 7) in actions and state.intent.epoch == max(epoch, 7) + 1
        state, actions = walk(state, Done(state.ticket))
        assert actions == [Save(telling.saved(state)), Stop(state.ticket, 6)]
        state, actions = walk(state, Done(state.ticket))
        assert Stop(state.ticket, epoch) in actions
        state, _ = walk(state, Done(state.ticket))
        assert state.phase is Phase.PREFLIGHT


def test_blocked_stays_blocked() -> None:
    recipe = bad("engine.bad-argument", "unrecognized arguments: --tensor-paralel", cure=Cure.PERSON)
    saved = Saved(boot_id="boot-1", epoch=7, blocked=recipe, blocked_fingerprint="a")
    state, _ = walk(node.begin(me()), Started(saved, (), ()), Inputs("a"))
    assert state.phase is Phase.BLOCKED
    state, _ = walk(state, Inputs("b"))
    assert state.phase is Phase.PREFLIGHT


# --- a worker -------------------------------------------------------------------------------------------


def told(state: NodeState, epoch: int = 3, gate: Gate = Gate.CLOSED) -> NodeState:
    return walk(state, Told(Intent(run=True, epoch=epoch, gate=gate, plan_digest="p")))[0]


def test_a_worker_does_nothing_without_a_word() -> None:
    state = started(1, 2)
    assert (state.phase, telling.reason(state, 5.0)) == (Phase.IDLE, "waiting for spark1's word")


def test_a_worker_tells_its_report_and_not_what_it_heard() -> None:
    state = told(started(1, 2))
    assert walk(state, Told(state.intent.model_copy(update={"head_reason": "waiting 4 s"})))[1] == []


def test_an_older_word_of_the_same_boot_undoes_nothing() -> None:
    state = until(told(started(1, 2)), Phase.ARMED)
    word = Intent(run=True, epoch=4, gate=Gate.CLOSED, plan_digest="p", head_boot_id="boot-7", at=50.0)
    newer, _ = walk(state, Told(word))
    older = word.model_copy(update={"epoch": 3, "at": 49.0})
    assert walk(newer, Told(older)) == (newer, [])
    for accepted in (older.model_copy(update={"head_boot_id": "boot-8"}), older.model_copy(update={"at": 0.0})):
        assert walk(newer, Told(accepted))[0].intent.epoch == 3


def test_a_worker_launches_when_the_barrier_opens_for_workers() -> None:
    state = until(told(started(1, 2)), Phase.ARMED)
    assert told(state, gate=Gate.WORKERS).phase is Phase.LAUNCHING


def test_a_worker_leaves_a_superseded_epoch_without_a_loss() -> None:
    state = until(told(started(1, 2)), Phase.ARMED)
    state = until(told(state, gate=Gate.WORKERS), Phase.LOADING)
    state, actions = walk(state, Told(state.intent.model_copy(update={"epoch": 4, "gate": Gate.CLOSED})))
    assert (state.phase, state.loss) == (Phase.STOPPING, None)
    assert Tell() in actions


def test_silence_has_a_beginning() -> None:
    state = started(1, 2)
    state, _ = walk(state, Silent(0, "unreachable"), Silent(0, "unreachable"), now=20.0)
    assert state.peers[0] == Peer("unreachable", since=20.0)
    state, _ = walk(state, Silent(0, "refused"), now=30.0)
    assert state.peers[0] == Peer("refused", since=30.0)


def test_an_adopted_engine_that_is_busy_is_asked_again_not_torn_down() -> None:
    """Counters that move are work for others: a proof that did not come back in time says nothing against it."""
    saved = Saved(boot_id="boot-1", epoch=7, gate=Gate.ALL, launch_epoch=7, serving=True)
    late = bad("endpoint.timeout", "no answer within 180 s", cure=Cure.RELAUNCH)
    state, actions = walk(node.begin(me()), Started(saved, intact=(7,), broken=()))
    assert state.phase is Phase.PROVING

    busy, _ = walk(state, Counted(7, Counters(movement=1)), Counted(7, Counters(movement=9)), now=20)
    state, actions = walk(busy, Failed(busy.ticket, late), now=200)
    assert state.phase is Phase.PROVING
    assert [type(action) for action in actions if not isinstance(action, Note)] == [Prove]

    state, actions = walk(state, Failed(state.ticket, late), now=400)  # nothing has moved since: it may compile
    assert state.phase is Phase.PROVING
    state, actions = walk(state, Failed(state.ticket, late), now=201 + state.me.limits.hang_blind_max_s)
    assert state.phase is Phase.STOPPING
