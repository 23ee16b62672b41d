"""One line of the fault matrix: what is broken, how it is mended, and what whoever keeps the pair up should make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from tests.lab.pair import NODES, Pair

BOTH = "both"  # stands for a node where a case strikes all of them; `make` gets it and ignores it


class Expect(StrEnum):
    """How a case should end. Each is judged by what clients, processes and files show, not by what is claimed."""

    GOES_ON = "goes on"  # the same processes serve; nothing is torn down
    SERVES_AGAIN = "serves again"  # that launch is over on every node, and a new one answers, without a person
    BLOCKS = "blocks"  # a person must act and is told so; once mended, it serves again


class Load(StrEnum):
    IDLE = "idle"  # nobody asks until the keeper has had its time; then one user does
    LOADED = "loaded"  # clients ask without a pause


Change = Callable[[Pair, str], None]  # made on the node named


def nothing(pair: Pair, node: str) -> None:
    """Mends what mends itself."""


@dataclass(frozen=True)
class Case:
    id: str
    what: str  # for the table: a few words
    expect: Expect
    make: Change
    mend: Change = nothing
    mend_after_s: float = 0.0  # how long the fault lasts; 0: mended at once after it was made (a kill needs no mending)
    until_blocked: bool = False  # mended only once it is blocked
    until_over: bool = False  # mended only once the launch that it struck is over: a new one would be struck as well
    lossless: bool = False  # no request may fail
    by_limit: bool = False  # ended by a limit of sparkd's; under a keeper that has none, an engine that survives is as good
    of_sparkd: bool = False  # breaks sparkd itself or its limits: another keeper has nothing of it
    finding: str = ""  # BLOCKS: the id that a person is told
    nodes: tuple[str, ...] = NODES  # or (BOTH,), where there is no choice
    loads: tuple[Load, ...] = (Load.IDLE, Load.LOADED)
    max_s: float = 120.0  # from the fault (GOES_ON: from its mending) to an answer
    slow: bool = False  # minutes by nature: left to `scripts/faults`


@dataclass(frozen=True)
class Row:
    """What came of one case on one node under one load. Seconds since the fault was made; None: it never happened."""

    case: Case
    node: str
    load: Load
    keeper: str
    ended: str  # an Expect, or what happened instead
    noticed_s: float | None
    answers_s: float | None  # a client's request is answered again; 0 where none ever failed
    answered: int
    failed: int
    left_behind: tuple[str, ...]  # processes, segments, containers, units that nobody wants any more
    says: str = ""  # what the keeper said of it
    busy: float = (
        0.0  # processes that wanted a core of the machine under the lab, for each core: above 1 all times stretch
    )
    story: str = field(default="", repr=False)  # all that it said meanwhile, for whoever looks for the reason

    @property
    def good(self) -> bool:
        lost = self.failed if self.case.lossless else 0
        survived = self.case.by_limit and self.keeper != "sparkd" and self.ended == Expect.GOES_ON
        return (self.ended == self.case.expect or survived) and not self.left_behind and not lost


class Keeper(Protocol):
    """Who keeps the pair up: sparkd, or the two units of the published deployment."""

    name: str
    pair: Pair

    def bring_up(self) -> None:
        """The pair serves, whatever was left by the case before."""

    def launch(self) -> object:
        """Names the launch that serves now: equal as long as nothing was torn down."""

    def settled(self) -> bool:
        """It is at rest: nothing that it has begun is still under way."""

    def noticed_at(self, since: float) -> float | None:
        """When it first acted on what was broken after `since` (wall clock, seconds)."""

    def blocked(self) -> str | None:
        """The id of what it tells a person to mend, where it is waiting for one."""

    def says(self) -> str:
        """Its last word, for the table."""

    def story(self) -> str:
        """All that it said since the fault that `noticed_at` was last asked about."""
