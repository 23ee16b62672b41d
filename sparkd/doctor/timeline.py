"""What is current in a log, and what is history? Pure: from the launches' logs, the daemon's events and its status.

What a proven engine has followed is history: it explains nothing that is wrong now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

BEFORE_S = 600.0  # what went wrong on the host so long before a launch still belongs to it: a driver fails first

Event = Mapping[str, Any]  # as the daemon writes them: at, id, says, epoch, phase, alarm


@dataclass(frozen=True)
class Launch:
    """One launch's log on this node, newest first in a list of them."""

    id: str  # "ab12cd34-17"
    at: float  # Unix time at which its log was last written

    @property
    def boot(self) -> str:
        return self.id.partition("-")[0]

    @property
    def epoch(self) -> int:
        number = self.id.rpartition("-")[2]
        return int(number) if number.isdecimal() else -1


@dataclass(frozen=True)
class Present:
    """What counts as now: the log of `launch` (None: of no launch), and lines of host logs from `since` on (Unix time).

    `proven`: a fresh proof stands for the launch that lives, so that nothing bad that its log says still holds.
    `earlier_boot`: nothing has served since the last boot ended, so that how it ended may explain what is wrong.
    `began`: when `launch` began, where that is known. `served`: it had come up, so that no start can have failed.
    """

    launch: str | None
    since: float
    proven: bool = False
    earlier_boot: bool = True
    began: float = 0.0
    served: bool = False

    @property
    def journal_since(self) -> float:
        """The daemon's own lines from before the launch tell of the launches before it."""
        return max(self.since, self.began)


def present(
    launches: Sequence[Launch],
    events: Sequence[Event],
    status: Mapping[str, Any] | None,
    *,
    boot: str,  # the first 8 hex digits of the boot's id, as launch ids begin
    booted_at: float,
    now: float,
) -> Present:
    """Where the present begins on this node."""
    served_at = _last(events, "-> serving")
    if status is not None and status.get("serving"):
        proof_age_s = status.get("proof_age_s")
        since = now - proof_age_s if proof_age_s is not None else served_at or now
        return Present(status.get("launch_id"), since, proven=True, earlier_boot=False, served=True)
    earlier = served_at is None or served_at < booted_at
    if not launches:
        return Present(None, _in_phase_since(status, now) - BEFORE_S, earlier_boot=earlier)
    return _after(launches[0], events, boot=boot, earlier_boot=earlier)


def _after(newest: Launch, events: Sequence[Event], *, boot: str, earlier_boot: bool) -> Present:
    """Nothing is proven now: the newest launch explains it, unless it was ended on purpose or with its boot."""
    mine = [event for event in events if event.get("epoch") == newest.epoch]
    began = _last(mine, "-> launching") or newest.at
    lost = next((_at(event) for event in mine if event.get("alarm") and _at(event) >= began), None)
    served = _last([event for event in mine if _at(event) >= began], "-> serving") or 0.0
    asked = _first_asked(events, began)
    if asked is not None and (lost is None or asked < lost):
        return Present(None, asked, earlier_boot=False)  # the operator ended it
    if lost is not None:
        came_up = 0.0 < served < lost
        since = max(lost - BEFORE_S, served) if came_up else began - BEFORE_S
        return Present(newest.id, since, earlier_boot=earlier_boot, began=began, served=came_up)
    if newest.boot != boot:
        return Present(None, 0.0, earlier_boot=earlier_boot)  # it ended with its boot, whose end is another question
    since = served or began - BEFORE_S
    return Present(newest.id, since, earlier_boot=earlier_boot, began=began, served=served > 0)


def _first_asked(events: Iterable[Event], since: float) -> float | None:
    """When an operator asked for a stop or another launch after `since`."""
    asked = ("operator.stop", "operator.restart", "operator.start")
    return next((_at(event) for event in events if event.get("id") in asked and _at(event) > since), None)


def _in_phase_since(status: Mapping[str, Any] | None, now: float) -> float:
    """Since when the daemon waits or is blocked; the beginning of time where no daemon tells."""
    return now - float(status.get("since_s", 0.0)) if status is not None else BEFORE_S


def _last(events: Sequence[Event], words: str) -> float | None:
    return next((_at(event) for event in reversed(events) if words in str(event.get("says", ""))), None)


def _at(event: Event) -> float:
    return stamp(str(event.get("at", ""))) or 0.0


def stamp(text: str) -> float | None:
    """Unix time of an ISO 8601 time; UTC where it names no zone. None where it is none."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def split(log: str, since: float) -> tuple[str, str]:
    """A host log with an ISO stamp at the front of its lines: what is older than `since`, and the rest.

    Lines without a stamp belong to the one before them. A log without any stamp is all of the present: unknown is not old.
    """
    at = len(log)
    kept = len(log)
    while at > 0:
        begins = log.rfind("\n", 0, at - 1) + 1
        when = stamp(log[begins:at].split(" ", 1)[0].strip())
        if when is not None and when < since:
            return log[:kept], log[kept:]
        if when is not None:
            kept = begins
        at = begins
    return "", log
