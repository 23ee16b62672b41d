"""The verdict on a silent engine: each case that must fire, each that must not, and what no signal may do alone.

Numbers are a GB10's: 190K tokens of prefill took 238 s, healthy decode takes 45 W, a silent spin 95 % at 13 to 27 W.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sparkd.control import wedge
from sparkd.control.wedge import Node, Signals, State, judge
from sparkd.model.cluster import Limits
from sparkd.model.report import Vitals

LIMITS = Limits()
DECODES = Vitals(
    age_s=3,
    cpu_percent=100,
    processes=2,
    stopped="",
    compiling="",
    link_bytes_s=40 << 20,
    gpu=True,
    gpu_watts=45,
    gpu_percent=96,
)
SPINS = DECODES.model_copy(update={"gpu_watts": 20, "gpu_percent": 95, "link_bytes_s": 4000})
WAITS = DECODES.model_copy(update={"gpu_watts": 12, "gpu_percent": 0, "link_bytes_s": 4000, "cpu_percent": 100})
COMPILES = WAITS.model_copy(update={"compiling": "cicc"})
ASLEEP = WAITS.model_copy(update={"cpu_percent": 0.3})
NO_GPU = {"gpu": False, "gpu_watts": None, "gpu_percent": None}


def signals(head: Vitals | None, worker: Vitals | None, still_s: float, **more: object) -> Signals:
    told = Signals(1, still_s, still_s, still_s - 15, (Node("spark1", head), Node("spark2", worker)))
    return replace(told, **more)  # type: ignore[arg-type]


def at(vitals: tuple[Vitals | None, Vitals | None], still_s: float) -> State:
    return judge(signals(*vitals, still_s), LIMITS).state


# --- must not fire ---------------------------------------------------------------------------------


@pytest.mark.parametrize("idle", [SPINS, WAITS, ASLEEP, DECODES])
def test_no_traffic_is_never_a_wedge(idle: Vitals) -> None:
    resting = replace(signals(idle, idle, 0), active=0, still_s=None, quiet_s=0.0, unanswered_s=None)
    assert judge(resting, LIMITS).state is State.WORKING


@pytest.mark.parametrize(
    "shown",
    [
        (DECODES, DECODES),
        (DECODES.model_copy(update={"link_bytes_s": None}), None),  # the power of one node
        (WAITS.model_copy(update={"link_bytes_s": 20 << 20, **NO_GPU}), None),  # the link alone
        (None, None),  # nothing can be seen at all
    ],
)
def test_a_prefill_of_190k_tokens_in_one_step_is_work(shown: tuple[Vitals | None, Vitals | None]) -> None:
    """Not chunked: neither counters nor gauges move for 238 s."""
    assert [second for second in range(239) if at(shown, second) is State.WEDGED] == []


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_compilation_of_a_shape_is_work_while_the_other_rank_spins(rank: int) -> None:
    shown = (COMPILES, SPINS) if rank == 0 else (SPINS, COMPILES)
    states = {at(shown, second) for second in range(0, 1200, 5)}
    assert states == {State.WORKING}
    says = judge(signals(*shown, 120), LIMITS).says
    assert says == f"nothing was counted for 120 s, but spark{rank + 1}: a compiler is at work (cicc)"


def test_a_compilation_within_the_process_is_waited_for_as_long_as_vllm_itself_does() -> None:
    """Triton's and NVRTC's compilers need no process of their own: a CPU burns, which a wait for a message does as well."""
    assert {at((WAITS, WAITS), second) for second in range(16, 360, 5)} == {State.SUSPECTED}
    assert at((WAITS, WAITS), 361) is State.WEDGED


def test_a_worker_that_cannot_be_seen_may_compile() -> None:
    """Its daemon is away, or too old to tell: the spin here is how a rank waits for another's compiler."""
    assert {at((SPINS, None), second) for second in range(16, 361, 5)} == {State.SUSPECTED}
    assert at((SPINS, None), 361) is State.WEDGED


def test_one_node_that_sleeps_may_wait_for_the_other() -> None:
    assert at((ASLEEP, WAITS), 300) is State.SUSPECTED


# --- must fire -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "because"),
    [
        ((SPINS, SPINS), "spark1: its GPU is 95 % busy at 20 W, a silent spin"),
        ((WAITS, SPINS), "spark2: its GPU is 95 % busy at 20 W, a silent spin"),
        ((SPINS, ASLEEP.model_copy(update={"processes": 0})), "spark1: its GPU is 95 % busy"),
        ((WAITS, WAITS.model_copy(update={"processes": 0})), "spark2: none of its engine's processes lives"),
        ((WAITS, WAITS.model_copy(update={"stopped": "VLLM::Worker_TP1"})), "spark2: VLLM::Worker_TP1 is stopped"),
        ((ASLEEP, ASLEEP), "no node computes"),
        ((ASLEEP.model_copy(update=NO_GPU), ASLEEP.model_copy(update=NO_GPU)), "no node computes"),
    ],
)
def test_a_rank_that_is_gone_or_hangs_is_found(shown: tuple[Vitals, Vitals], because: str) -> None:
    assert at(shown, LIMITS.hang_max_s) is State.SUSPECTED
    found = judge(signals(*shown, LIMITS.hang_max_s + 1), LIMITS)
    assert found.state is State.WEDGED and found.finding is not None
    assert because in found.finding.says and found.finding.id == "engine.hung"
    for node in ("spark1", "spark2"):  # the evidence lists each signal
        assert sum(f" {node}: " in line for line in found.finding.evidence) == 6


def test_a_peer_out_of_reach_corroborates() -> None:
    gone = signals(WAITS, None, LIMITS.hang_max_s + 1)
    gone = replace(gone, nodes=(gone.nodes[0], Node("spark2", None, unreachable_s=40.0)))
    assert judge(gone, LIMITS).state is State.WEDGED


def test_work_that_is_never_counted_ends_at_its_own_limit() -> None:
    assert at((DECODES, DECODES), LIMITS.work_max_s) is State.WORKING
    found = judge(signals(DECODES, DECODES, LIMITS.work_max_s + 1), LIMITS)
    assert found.finding is not None and "although spark1: its GPU is 96 % busy at 45 W" in found.finding.says


def test_a_single_node_has_no_link_to_count() -> None:
    alone = (Node("spark1", SPINS.model_copy(update={"link_bytes_s": None})),)
    assert judge(replace(signals(None, None, 91), nodes=alone), LIMITS).state is State.WEDGED


def test_what_was_seen_before_everything_came_to_rest_says_nothing() -> None:
    old = {"age_s": 30.0}
    short = LIMITS.model_copy(update={"hang_max_s": 10.0, "hang_blind_max_s": 50.0})
    shown = signals(ASLEEP.model_copy(update=old), ASLEEP.model_copy(update=old), 20, unanswered_s=20)
    assert judge(shown, short).state is State.SUSPECTED
    assert judge(replace(shown, still_s=40, quiet_s=40), short).state is State.WEDGED


# --- for every state of the signals ----------------------------------------------------------------


def maybe(values: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.none() | values


VITALS = st.builds(
    Vitals,
    age_s=st.sampled_from([1.0, 20.0, 60.0]),
    cpu_percent=maybe(st.sampled_from([0.0, 1.0, 100.0])),
    processes=maybe(st.sampled_from([0, 2])),
    stopped=maybe(st.sampled_from(["", "VLLM::Worker_TP1"])),
    compiling=maybe(st.sampled_from(["", "ptxas"])),
    link_bytes_s=maybe(st.sampled_from([0, 5000, 50 << 20])),
    gpu=maybe(st.booleans()),
    gpu_watts=maybe(st.sampled_from([10.0, 25.0, 35.0, 45.0])),
    gpu_percent=maybe(st.sampled_from([0.0, 50.0, 95.0])),
)
NODES = st.builds(Node, st.just("spark1"), st.none() | VITALS, st.none() | st.sampled_from([1.0, 100.0]))
STILL_S = st.sampled_from([1.0, 16.0, 91.0, 238.0, 300.0, 359.0])


@st.composite
def all_signals(draw: st.DrawFn) -> Signals:
    still_s = draw(STILL_S)
    quiet_s = draw(st.sampled_from([0.0, still_s / 2, still_s]))
    nodes = draw(st.lists(NODES, min_size=1, max_size=3))
    return Signals(draw(st.integers(0, 3)), still_s, quiet_s, draw(st.none() | st.just(still_s)), tuple(nodes))


def forget(node: Node, names: frozenset[str]) -> Node:
    if "vitals" in names or node.vitals is None:
        vitals = None
    else:
        vitals = node.vitals.model_copy(update=dict.fromkeys(names & set(Vitals.model_fields) - {"age_s"}))
    return replace(node, vitals=vitals, unreachable_s=None if "reach" in names else node.unreachable_s)


@settings(max_examples=400, deadline=None)
@given(all_signals(), st.data())
def test_knowing_less_never_turns_work_into_a_wedge_before_the_blind_limit(known: Signals, data: st.DataObject) -> None:
    if judge(known, LIMITS).state is State.WEDGED:
        return
    names = st.frozensets(st.sampled_from(["vitals", "reach", *Vitals.model_fields]))
    less = replace(known, nodes=tuple(forget(node, data.draw(names)) for node in known.nodes))
    assert judge(less, LIMITS).state is not State.WEDGED


@settings(max_examples=300, deadline=None)
@given(all_signals())
def test_no_signal_decides_alone(told: Signals) -> None:
    """Without an unanswered canary nothing does; with it, resting counters need a second witness."""
    assert judge(replace(told, unanswered_s=None), LIMITS).state is not State.WEDGED
    assert judge(replace(told, still_s=None), LIMITS).state is not State.WEDGED
    if judge(told, LIMITS).state is State.WEDGED:
        hang = [sign for sign in wedge.signs(told) if sign.says is wedge.Says.HANG]
        work = [sign for sign in wedge.signs(told) if sign.says is wedge.Says.WORK]
        assert hang and not work and told.quiet_s > LIMITS.hang_max_s


def test_the_blind_limit_is_beyond_what_vllm_allows_one_step() -> None:
    assert LIMITS.hang_max_s < 238 < 300 < LIMITS.hang_blind_max_s < LIMITS.work_max_s


@pytest.mark.parametrize(
    "told", ['{"age_s": NaN}', '{"age_s": -1e9}', '{"gpu_watts": Infinity}', '{"link_bytes_s": 1' + 400 * "0" + "}"]
)
def test_vitals_that_cannot_be_are_refused(told: str) -> None:
    with pytest.raises(ValidationError):
        Vitals.model_validate_json(told)
