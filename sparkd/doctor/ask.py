"""Asking many checks at once, each in a thread of its own, until all have answered or the time is up."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from sparkd.doctor.check import Check
from sparkd.doctor.facts import Facts
from sparkd.host.clock import monotonic
from sparkd.model.finding import Finding, unknown

Value = TypeVar("Value")


@dataclass(frozen=True)
class Asked:
    """Answers in the order of the checks. `hidden`: check -> the bad check below it that explains its answer. `late`:
    checks that had not answered when the time was up, and that no fault explains."""

    findings: tuple[Finding, ...]
    hidden: Mapping[str, str]
    late: tuple[Check, ...] = ()


def ask(checks: Sequence[Check], facts: Facts, *, limit_s: float) -> Asked:
    """Never takes longer than `limit_s`: what has not answered by then is unknown. Hung threads are left behind."""
    # First those that explain others: where Docker hangs, whoever asks it first finds out, and the rest wait in line.
    followers = Counter(parent for each in checks for parent in each.after)
    first = sorted(checks, key=lambda each: -followers[each.id])
    answers = at_once({each.id: partial(each.asked, facts) for each in first}, limit_s=limit_s)
    asked = hide(checks, {each.id: _answer(each, answers.get(each.id), limit_s) for each in checks})
    late = (each for each in checks if each.id not in answers and each.id not in asked.hidden)
    return replace(asked, late=tuple(late))


def _answer(check: Check, answer: list[Finding] | Exception | None, limit_s: float) -> list[Finding]:
    """One that is late or broken is a result of its own: its fault must not take the others' answers away."""
    if isinstance(answer, list):
        return answer
    if answer is None:
        why = f"no answer in {limit_s:g} s"
    else:
        why = f"the check itself failed: {type(answer).__name__}: {answer}"
    return check.complete(lambda _: [unknown("", why)], None)


def at_once(work: Mapping[str, Callable[[], Value]], *, limit_s: float) -> dict[str, Value | Exception]:
    """What came in time, result or error, by name. A thread that hangs in the kernel must not keep a command from its end."""
    done: dict[str, Value | Exception] = {}

    def carry_out(name: str, function: Callable[[], Value]) -> None:
        try:
            done[name] = function()
        except Exception as error:  # the edge of a thread: the caller says whose fault it is
            done[name] = error

    threads = [
        threading.Thread(target=carry_out, args=item, name=f"doctor: {item[0]}", daemon=True) for item in work.items()
    ]
    deadline = monotonic() + limit_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - monotonic()))
    return dict(done)


def hide(checks: Iterable[Check], found: Mapping[str, Sequence[Finding]], *, elsewhere: Collection[str] = ()) -> Asked:
    """Pure. A fault hides what follows from it: with the link down, nine other symptoms are no news.

    `elsewhere`: ids of checks that are known to be bad although they are not among these.
    """
    bad = {id for id, findings in found.items() if any(finding.is_bad and finding.id == id for finding in findings)}
    bad |= set(elsewhere)
    shown: list[Finding] = []
    hidden: dict[str, str] = {}
    for each in checks:
        cause = next((parent for parent in each.after if parent in bad or parent in hidden), None)
        if cause is not None:
            hidden[each.id] = hidden.get(cause, cause)
        else:
            shown += found.get(each.id, ())
    return Asked(tuple(shown), hidden)


def chosen(checks: Iterable[Check], *, only: Collection[str] = (), skip: Collection[str] = ()) -> list[Check]:
    """By id or by layer ("link", "host-memory"), or by what ids begin with ("memory").

    A slow check is asked only where it is named by its own id.
    """

    def named(each: Check, names: Collection[str]) -> bool:
        return each.id in names or each.layer.value in names or each.id.partition(".")[0] in names

    def wanted(each: Check) -> bool:
        if each.id in only:
            return each.id not in skip
        return (not only or named(each, only)) and not each.slow and not named(each, skip)

    return [each for each in checks if wanted(each)]
