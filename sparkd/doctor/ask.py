"""Asking many checks at once, each in a thread of its own, until all have answered or the time is up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sparkd.doctor.check import Check
from sparkd.doctor.facts import Facts
from sparkd.host.clock import monotonic
from sparkd.model.finding import Finding, unknown


@dataclass(frozen=True)
class Asked:
    """Answers in the order of the checks. `hidden`: check -> the bad check below it that explains its answer."""

    findings: tuple[Finding, ...]
    hidden: Mapping[str, str]


def ask(checks: Sequence[Check], facts: Facts, *, limit_s: float) -> Asked:
    """Never takes longer than `limit_s`: what has not answered by then is unknown. Hung threads are left behind."""
    questions = {each.id: (lambda each=each: each.asked(facts)) for each in checks}
    answers = at_once(questions, limit_s=limit_s)
    found = {
        each.id: answers.get(each.id)
        or (
            []
            if each.id in answers
            else [each.complete(lambda _: [unknown("", f"no answer in {limit_s:g} s")], None)[0]]
        )
        for each in checks
    }
    return hide(checks, found)


def at_once(questions: Mapping[str, Callable[[], list[Finding]]], *, limit_s: float) -> dict[str, list[Finding]]:
    """The answers that came in time. A thread that hangs in the kernel must not keep the command from its end."""
    answers: dict[str, list[Finding]] = {}
    threads = []
    for id, question in questions.items():

        def run(id: str = id, question: Callable[[], list[Finding]] = question) -> None:
            try:
                answers[id] = question()
            except Exception as error:  # the edge of one check: its fault must not take the others' answers away
                answers[id] = [unknown(id, f"the check itself failed: {type(error).__name__}: {error}")]

        threads.append(threading.Thread(target=run, name=id, daemon=True))
    deadline = monotonic() + limit_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - monotonic()))
    return dict(answers)


def hide(checks: Iterable[Check], found: Mapping[str, Sequence[Finding]]) -> Asked:
    """Pure. A fault hides what follows from it: with the link down, nine other symptoms are no news."""
    bad = {id for id, findings in found.items() if any(finding.is_bad and finding.id == id for finding in findings)}
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
    """By id or by layer: `only` asks slow ones too. An id stands for a whole layer where it is one's name."""

    def named(each: Check, names: Collection[str]) -> bool:
        return each.id in names or each.layer.value in names or each.id.partition(".")[0] in names

    return [
        each
        for each in checks
        if (named(each, only) if only else not each.slow) and not (named(each, skip) and each.id not in only)
    ]
