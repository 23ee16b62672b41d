"""Many checks asked at once: each answers for itself, late and broken ones too, and a fault hides what follows from it."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from sparkd.doctor.ask import ask, at_once, chosen, hide
from sparkd.doctor.check import Answers, Check, Gate, cannot_tell, check, no, yes
from sparkd.doctor.declared import of_nodes
from sparkd.doctor.facts import Facts
from sparkd.engine.container import Docker
from sparkd.host.clock import monotonic
from sparkd.model.errors import UnreachableError
from sparkd.model.finding import Layer, Verdict


def a_check(
    id: str, answer: object, *, after: tuple[str, ...] = (), layer: Layer = Layer.LINK, slow: bool = False
) -> Check:
    def answers(facts: Facts) -> Answers:
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer()
        elif answer is not None:
            yield answer  # type: ignore[misc]

    declare = check(
        id, layer=layer, question="Is it?", how="looks", means="it is not", remedy="mend it", sample="no", after=after,
        slow=slow, gate=Gate.HOST,
    )  # fmt: skip
    return declare(answers)


@pytest.fixture
def facts() -> Facts:
    return Facts(docker=Docker("unix:///nonexistent.sock", timeout_s=0.2))


def test_answers_come_in_the_order_of_the_checks_whole(facts: Facts) -> None:
    asked = ask(
        [a_check("link.b", no("broken")), a_check("link.a", yes("fine")), a_check("link.c", None)], facts, limit_s=5
    )
    assert [(each.id, each.verdict, each.layer) for each in asked.findings] == [
        ("link.b", Verdict.BAD, "link"),
        ("link.a", Verdict.GOOD, "link"),
    ]
    assert asked.findings[0].remedy == "mend it"


def test_a_check_that_fails_takes_nobodys_answer_away(facts: Facts) -> None:
    checks = [
        a_check("link.bug", ZeroDivisionError("by zero")),
        a_check("link.away", UnreachableError("no answer", hint="ask again")),
        a_check("link.fine", yes("fine")),
    ]
    bug, away, fine = ask(checks, facts, limit_s=5).findings
    assert (bug.id, bug.verdict) == ("link.bug", Verdict.UNKNOWN) and "ZeroDivisionError: by zero" in bug.says
    assert (away.verdict, away.remedy) == (Verdict.UNKNOWN, "ask again")
    assert fine.verdict is Verdict.GOOD


def test_a_check_that_hangs_costs_no_more_than_the_limit(facts: Facts) -> None:
    never = threading.Event()
    began = monotonic()
    hung, fine = ask(
        [a_check("link.hung", lambda: never.wait(30)), a_check("link.fine", yes("fine"))], facts, limit_s=0.3
    ).findings
    assert monotonic() - began < 5
    assert (hung.id, hung.verdict, hung.layer) == ("link.hung", Verdict.UNKNOWN, "link") and "0.3 s" in hung.says
    assert fine.says == "fine"
    never.set()


def test_what_is_late_is_told_unless_a_fault_explains_it(facts: Facts) -> None:
    never = threading.Event()
    hung = a_check("link.hung", lambda: never.wait(30))
    below = a_check("link.mtu", lambda: never.wait(30), after=("link.down",))
    asked = ask([below, hung, a_check("link.down", no("down"))], facts, limit_s=0.3)
    assert [each.id for each in asked.late] == ["link.hung"] and asked.hidden == {"link.mtu": "link.down"}
    never.set()


def test_what_explains_others_is_asked_first(facts: Facts) -> None:
    order: list[str] = []
    names = ["link.c", "link.b", "link.a"]
    checks = [a_check(name, lambda name=name: order.append(name)) for name in names]
    checks.append(a_check("link.z", None, after=("link.a", "link.b")))
    checks.append(a_check("link.y", None, after=("link.a",)))
    ask(checks, facts, limit_s=5)
    assert order == ["link.a", "link.b", "link.c"]


def test_results_and_errors_come_by_name() -> None:
    def fails() -> int:
        raise ValueError("no")

    done = at_once({"one": lambda: 1, "two": fails}, limit_s=5)
    assert done["one"] == 1 and isinstance(done["two"], ValueError)


def test_a_fault_hides_what_follows_from_it_and_what_follows_from_that() -> None:
    down, mtu, path = (
        a_check("link.down", None),
        a_check("link.mtu", None, after=("link.down",)),
        a_check("link.path", None, after=("link.mtu",)),
    )
    bad = [replace_id(no("down"), "link.down")]
    found = {
        "link.down": bad,
        "link.mtu": [replace_id(no("1500"), "link.mtu")],
        "link.path": [replace_id(yes("ok"), "link.path")],
    }
    asked = hide([down, mtu, path], found)
    assert [each.id for each in asked.findings] == ["link.down"]
    assert asked.hidden == {"link.mtu": "link.down", "link.path": "link.down"}
    assert not hide([mtu], {"link.mtu": found["link.mtu"]}).hidden
    assert hide([mtu], {"link.mtu": found["link.mtu"]}, elsewhere=["link.down"]).hidden == {"link.mtu": "link.down"}


def test_an_unknown_answer_hides_nothing() -> None:
    down, mtu = a_check("link.down", None), a_check("link.mtu", None, after=("link.down",))
    found = {
        "link.down": [replace_id(cannot_tell("no look"), "link.down")],
        "link.mtu": [replace_id(no("1500"), "link.mtu")],
    }
    assert [each.id for each in hide([down, mtu], found).findings] == ["link.down", "link.mtu"]


def replace_id(finding, id: str):  # type: ignore[no-untyped-def]
    return finding.model_copy(update={"id": id})


@pytest.mark.parametrize(
    ("only", "skip", "ids"),
    [
        ((), (), ["memory.a", "link.a"]),
        (("link",), (), ["link.a"]),
        (("memory",), (), ["memory.a"]),
        (("host-memory",), (), ["memory.a"]),
        (("link.slow",), (), ["link.slow"]),
        ((), ("link",), ["memory.a"]),
        (("link.a", "memory"), ("memory.a",), ["link.a"]),
        (("link.a",), ("link",), ["link.a"]),
    ],
)
def test_checks_are_chosen_by_id_and_layer(only: tuple[str, ...], skip: tuple[str, ...], ids: list[str]) -> None:
    checks = [
        replace(a_check("memory.a", None), layer=Layer.MEMORY),
        a_check("link.a", None),
        a_check("link.slow", None, slow=True),
    ]
    assert [each.id for each in chosen(checks, only=only, skip=skip)] == ids


def test_every_declared_check_is_whole() -> None:
    for each in of_nodes():
        assert each.question.endswith("?") and each.how and each.means and each.sample and each.remedy, each.id
