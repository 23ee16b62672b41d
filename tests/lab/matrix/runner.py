"""Runs one case and measures what came of it, by what clients, processes and files show."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.lab.matrix import seen
from tests.lab.matrix.case import Case, Expect, Keeper, Load, Row
from tests.lab.matrix.clients import Clients, Request, wait_answered
from tests.lab.pair import NODES, Pair

POLL_S = 0.1
QUIET_S = 30.0  # IDLE: how long the keeper has to notice by itself before a user comes
SETTLE_S = 4.0  # after something was mended that should have ended nothing: a late teardown would begin by then
TIDY_MAX_S = 15.0  # what is still going away when the pair serves again
FIRST_ANSWER_MAX_S = 60.0
BLOCKED_MAX_S = 90.0  # until a keeper tells a person; later it is mended all the same


@dataclass
class Trial:
    """One case under way."""

    case: Case
    node: str
    load: Load
    keeper: Keeper
    clients: Clients
    launch: object = None  # that served when the fault was made
    engines: dict[str, tuple[seen.Process, ...]] = field(default_factory=dict)
    since: float = 0.0
    made_at: float = 0.0
    mended_at: float | None = None
    over_at: float | None = None  # a process of that launch was first seen to be gone
    whole_at: float | None = None  # a later one was first seen to serve

    @property
    def pair(self) -> Pair:
        return self.keeper.pair

    def mend(self) -> None:
        if self.mended_at is None:
            self.mended_at = time.time()
            self.case.mend(self.pair, self.node)
            self.mended_at = time.time()

    def look(self) -> bool:
        """Whether a whole launch that is not the one of before serves now."""
        engines = seen.engines(self.pair)
        if self.over_at is None and any(set(self.engines[name]) - set(engines[name]) for name in NODES):
            self.over_at = time.time()
        if self.over_at is None or not seen.is_whole(engines) or not seen.listens(self.pair.lab.node(NODES[0])):
            return False
        whole = self.keeper.launch() not in (None, self.launch)
        if whole and self.whole_at is None:
            self.whole_at = time.time()
        return whole


def run(case: Case, node: str, load: Load, keeper: Keeper) -> Row:
    """Raises AssertionError or LabError only where the fault itself could not be made: then nothing was tried."""
    keeper.bring_up()
    before = seen.remains(keeper.pair)
    with Clients(keeper.pair) as clients:
        trial = Trial(case, node, load, keeper, clients, keeper.launch(), seen.engines(keeper.pair))
        assert trial.launch is not None, f"{keeper.name} says that the pair is up, and no whole launch serves"
        if load is Load.LOADED:
            clients.crowd()
            assert wait_answered(clients, 0.0, max_s=FIRST_ANSWER_MAX_S), "the pair is up, and answers no client"
        trial.since = time.time()
        with _made(trial):
            ended = ENDS[case.expect](trial)
        requests = clients.requests(trial.since)
    left = _left_behind(trial, before)
    noticed_at = keeper.noticed_at(trial.since)
    return Row(
        case=case,
        node=node,
        load=load,
        keeper=keeper.name,
        ended=ended,
        noticed_s=None if noticed_at is None else noticed_at - trial.since,
        answers_s=_answers_s(trial, requests),
        answered=sum(not request.wrong for request in requests),
        failed=sum(bool(request.wrong) for request in requests),
        left_behind=left,
        says=keeper.says(),
        busy=os.getloadavg()[0] / (os.cpu_count() or 1),
        story=keeper.story(),
    )


@contextlib.contextmanager
def _made(trial: Trial) -> Iterator[None]:
    """The fault, and its mending whatever happens."""
    try:
        trial.case.make(trial.pair, trial.node)
        trial.made_at = time.time()
        yield
    finally:
        trial.mend()


# --- how it can end ------------------------------------------------------------------------------


def _serves_again(trial: Trial) -> str:
    deadline = trial.since + trial.case.max_s
    while time.time() < deadline:
        if _mending_is_due(trial):
            trial.mend()
        whole = trial.look()
        if (
            trial.load is Load.IDLE
            and not trial.clients.asking
            and (whole or time.time() > trial.made_at + _quiet_s(trial))
        ):
            trial.clients.user()
        if whole and trial.mended_at is not None and trial.whole_at and _has_answer(trial, trial.whole_at):
            return Expect.SERVES_AGAIN
        time.sleep(POLL_S)
    return _what_else(trial)


def _has_answer(trial: Trial, since: float) -> bool:
    """Under load: to a request sent since. Idle: the one user has been answered."""
    return trial.clients.answered_since(since if trial.load is Load.LOADED else trial.since)


def _mending_is_due(trial: Trial) -> bool:
    if trial.mended_at is not None or time.time() < trial.made_at + trial.case.mend_after_s:
        return False
    return not trial.case.until_over or trial.over_at is not None


def _quiet_s(trial: Trial) -> float:
    return QUIET_S + trial.case.mend_after_s


def _goes_on(trial: Trial) -> str:
    """The same processes, before and after, and a keeper that is at rest."""
    while time.time() < trial.made_at + trial.case.mend_after_s:
        trial.look()
        time.sleep(POLL_S)
    trial.mend()
    assert trial.mended_at is not None
    deadline = trial.mended_at + trial.case.max_s
    settled_at = None
    while time.time() < deadline:
        trial.look()
        settled_at = (settled_at or time.time()) if trial.keeper.settled() else None
        if settled_at and time.time() > max(settled_at, trial.mended_at) + SETTLE_S:
            break
        time.sleep(POLL_S)
    if trial.load is Load.IDLE:
        trial.clients.user()
    if not wait_answered(trial.clients, trial.mended_at, max_s=max(1.0, deadline - time.time())):
        return _what_else(trial)
    same = trial.keeper.launch() == trial.launch and seen.engines(trial.pair) == trial.engines
    if same and trial.over_at is None:
        return Expect.GOES_ON
    return Expect.SERVES_AGAIN if trial.look() else _what_else(trial)


def _blocks(trial: Trial) -> str:
    """It says so, then somebody mends it (and says `start` where a person's word is needed), then it serves again."""
    told, deadline = None, time.time() + max(BLOCKED_MAX_S, trial.case.max_s)
    while told is None and time.time() < deadline:
        trial.look()
        told = trial.keeper.blocked()
        time.sleep(POLL_S)
    trial.mend()
    again = _serves_again(trial) if told is not None else _what_else(trial)
    if told is None:
        return again
    if not told.startswith(trial.case.finding):
        return f"blocked: {told}"
    return Expect.BLOCKS if again == Expect.SERVES_AGAIN else f"blocked, then {again}"


def _what_else(trial: Trial) -> str:
    """What happened instead."""
    if told := trial.keeper.blocked():
        return f"blocked: {told}"
    launch = trial.keeper.launch()
    if launch is None:
        return "down"
    if trial.load is Load.IDLE and not trial.clients.asking:
        trial.clients.user()
    if not wait_answered(trial.clients, time.time() if trial.load is Load.LOADED else trial.since, max_s=25):
        return "answers nothing"
    return Expect.GOES_ON if launch == trial.launch else "serves too late"


ENDS = {Expect.SERVES_AGAIN: _serves_again, Expect.GOES_ON: _goes_on, Expect.BLOCKS: _blocks}


# --- measures ------------------------------------------------------------------------------------


def _answers_s(trial: Trial, requests: list[Request]) -> float | None:
    """When a client was answered again for good: by a whole launch, after the last request that failed. Requests go by
    when they were sent: one that hung at the old engine may fail long after the new one answers."""
    failed = [request.sent for request in requests if request.wrong]
    if not failed and trial.over_at is None:
        return 0.0
    after = max(failed, default=0.0)
    again = [
        request.done
        for request in requests
        if not request.wrong and request.sent > after and request.done >= (trial.over_at or 0.0)
    ]
    return min(again) - trial.since if again else None


def _left_behind(trial: Trial, before: seen.Remains) -> tuple[str, ...]:
    deadline = time.time() + TIDY_MAX_S
    while left := seen.remains(trial.pair).beyond(before):
        if time.time() > deadline:
            break
        time.sleep(1.0)
    return left
