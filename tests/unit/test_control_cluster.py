"""The head's part: who is waited for, what differs, what an epoch's end costs."""

from __future__ import annotations

import pytest

from sparkd.control import backoff, cluster, node
from sparkd.control.state import Heard, Me, NodeState, Silent, Started
from sparkd.model.cluster import Limits
from sparkd.model.finding import Cure, bad
from sparkd.model.report import Digests, Gate, Phase, Report

LIMITS = Limits()
NOW = 10.0


def report(**changes: object) -> Report:
    base = {"node": "spark2", "rank": 1, "version": "0.1.0", "boot_id": "b", "epoch": 1, "phase": Phase.ARMED}
    return Report.model_validate({**base, **changes})


def head(*heard: Report) -> NodeState:
    state, _ = node.step(
        node.begin(Me("spark1", 0, ("spark1", "spark2"), "b", "0.1.0", LIMITS)), Started(None, (), ()), NOW
    )
    for each in heard:
        state, _ = node.step(state, Heard(each), NOW)
    return state


@pytest.mark.parametrize(
    ("ours", "theirs", "together"),
    [
        ("0.1.0", "0.1.9", True),
        ("0.1.0", "0.2.0", True),
        ("0.3.0", "0.1.0", False),
        ("1.0.0", "0.1.0", False),
        ("dev", "dev", True),
        ("dev", "0.1.0", False),
    ],
)
def test_one_version_apart_works_together(ours: str, theirs: str, together: bool) -> None:
    assert cluster.compatible(ours, theirs) is together


def test_what_differs_is_named_with_both_values() -> None:
    mine = Digests(plan="p", image="sha256:0123456789abcdef", weights="w", driver="580")
    assert cluster.mismatch(mine, mine, "spark1", "spark2") is None
    finding = cluster.mismatch(mine, mine.model_copy(update={"image": ""}), "spark1", "spark2")
    assert finding is not None
    assert (finding.id, finding.says) == (
        "peer.image-differs",
        "the image differs: spark1 has 0123456789ab, spark2 has none",
    )


@pytest.mark.parametrize(
    ("told", "waits"),
    [
        (report(), None),
        (report(phase=Phase.CLEAN), "waiting for spark2 (clean)"),
        (report(epoch=0), "waiting for spark2 (armed)"),
        (report(version="0.3.0"), "spark2 runs sparkd 0.3.0, this node 0.1.0: install one of them on both"),
        (report(image_id="i"), "the image differs: spark1 has none, spark2 has i"),
        (
            report(blocked=bad("x", "no weights", cure=Cure.PERSON)),
            "waiting for spark2, which is blocked: no weights",
        ),
        (
            report(phase=Phase.PREFLIGHT, waiting=bad("x", "no link", cure=Cure.WAIT)),
            "waiting for spark2 (preflight: no link)",
        ),
    ],
)
def test_who_is_waited_for_and_why(told: Report, waits: str | None) -> None:
    assert cluster.unready(head(told), 1, NOW) == waits


def test_a_silent_worker_is_waited_for() -> None:
    assert cluster.unready(head(), 1, NOW) == "waiting for spark2: not heard of yet"
    assert cluster.unready(head(report()), 1, NOW + 30) == "waiting for spark2: silent for 30 s"
    rejects = bad("peer.rejected", "the keys differ", cure=Cure.PERSON)
    state, _ = node.step(head(report()), Silent(1, "rejected", rejects), NOW)
    assert cluster.unready(state, 1, NOW) == "spark2 rejects what spark1 says: the keys differ"


def test_a_report_of_a_rank_that_is_no_worker_is_dropped() -> None:
    assert head(report(rank=0), report(rank=2)).peers == {}


def test_a_number_that_no_node_has_ever_seen() -> None:
    assert head().intent.epoch == 1
    state = head(report(epoch=17, phase=Phase.IDLE))
    assert (state.intent.epoch, state.restarts_used) == (18, 0), "a head that forgot pays nothing for it"


def test_an_epoch_that_never_opened_costs_nothing() -> None:
    lost = bad("engine.lost", "gone", cure=Cure.RELAUNCH)
    state = head()
    ended, _ = cluster.end_epoch(state, lost, NOW)
    assert (ended.intent.gate, ended.restarts_used) == (Gate.ENDED, 0)
    assert ended.ended is not None and ended.ended.finding == lost


def test_delays_grow_to_their_limit_and_repeat_exactly() -> None:
    delays = [backoff.delay_s(attempt, LIMITS, "spark1/1") for attempt in range(1, 12)]
    assert delays == [backoff.delay_s(attempt, LIMITS, "spark1/1") for attempt in range(1, 12)]
    assert delays[0] == LIMITS.backoff_first_s
    assert all(5.0 * 2.0**n * 0.75 <= delay <= 5.0 * 2.0**n * 1.25 for n, delay in enumerate(delays[1:6]))
    assert max(delays) <= LIMITS.backoff_max_s


def test_an_older_report_of_the_same_boot_is_neither_news_nor_a_sign_of_life() -> None:
    known = head(report(at=50.0))
    assert node.step(known, Heard(report(at=49.0, phase=Phase.CLEAN)), NOW + 30) == (known, [])
    booted, _ = node.step(known, Heard(report(at=2.0, boot_id="another boot")), NOW + 30)
    assert booted.peers[1].report == report(at=2.0, boot_id="another boot")
