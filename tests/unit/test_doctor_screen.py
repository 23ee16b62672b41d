"""What a tired person reads: the incident first, one screen, whole commands, nothing good unless it is asked for."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sparkd.doctor.examine import together
from sparkd.doctor.screen import lines
from sparkd.model.diagnosis import BaselineName, Change, Diagnosis, Examination, Incident, Kind
from sparkd.model.finding import Finding, Verdict, Who

AT = "2026-11-21T10:00:00Z"
BASELINE = BaselineName(epoch=17, at="2026-11-20T22:14:09Z")
STANDS = "serving for 2 h 5 min, epoch 18, last proof 12 s ago"


def finding(id: str, says: str, layer: str, verdict: Verdict = Verdict.BAD, **more: Any) -> Finding:
    return Finding(id=id, verdict=verdict, says=says, layer=layer, **more)


GOOD = tuple(finding(f"link.good-{number}", f"link {number} is fine", "link", Verdict.GOOD) for number in range(30))
UNKNOWN = tuple(
    finding(f"driver.blind-{number}", "nvidia-smi is not here", "driver", Verdict.UNKNOWN) for number in range(5)
)
GHOST = finding(
    "unit.execstart-path",
    "vllm-ds4-head.service: ExecStart runs /workspace/vllm-tp2-head.sh, which does not exist",
    "unit",
    evidence=("ExecStart=/usr/bin/docker exec vllm_ds4 bash /workspace/vllm-tp2-head.sh",),
    remedy="systemctl edit vllm-ds4-head.service; systemctl daemon-reload; systemctl reset-failed vllm-ds4-head.service",
)
CACHE = finding(
    "memory.page-cache",
    "110 GiB of page cache leave 4.7 GiB free",
    "host-memory",
    remedy="sparkd clean",
    who=Who.SPARKD,
)
DOWN = finding("engine.down", "no engine lives here", "engine", symptom=True, remedy="sparkd events")
LOSSY = finding("link.drops", "bond0 dropped 121 frames", "link", Verdict.WARNING, remedy="ethtool -S enp1s0f0np0")


def change(node: str, name: str, suspicion: int, before: str | None = "1", after: str | None = "2") -> Change:
    return Change(node=node, group="environment", name=name, before=before, after=after, suspicion=suspicion)


def node(name: str, *findings: Finding, **more: Any) -> Diagnosis:
    return Diagnosis(node=name, rank=int(name[-1]) - 1, at=AT, findings=(*GOOD, *UNKNOWN, *findings), **more)


def examined(*nodes: Diagnosis, absent: dict[str, str] | None = None, proven: bool = False) -> Examination:
    return together(nodes, absent or {}, node="spark1", proven=proven)


def sick() -> Examination:
    changes = [
        change("spark1", "VLLM_USE_X", 40),
        change("spark1", "FORK", 90, None),
        *(change("spark1", f"N{n}", n) for n in range(9)),
    ]
    one = node(
        "spark1",
        GHOST,
        CACHE,
        DOWN,
        baseline=BASELINE,
        changes=tuple(changes),
        hidden={"engine.a": GHOST.id, "engine.b": GHOST.id},
    )
    two = node("spark2", CACHE, DOWN, LOSSY, baseline=BASELINE, changes=(change("spark2", "FORK", 90, None),))
    return examined(one, two)


def test_the_first_line_is_the_incident() -> None:
    out = lines(sick(), stands="blocked for 3 min")
    assert out[0] == f"spark1: unit.execstart-path: {GHOST.says}"
    assert out[1] == f"  seen:   {GHOST.evidence[0]}"
    assert [line.strip() for line in out[2:5]] == [
        "do:     systemctl edit vllm-ds4-head.service",
        "systemctl daemon-reload",
        "systemctl reset-failed vllm-ds4-head.service",
    ]
    assert "an operator" in out[5] and "sparkd explain unit.execstart-path" in out[5]
    assert out[6] == "  state:  blocked for 3 min"


def test_the_most_suspicious_changes_follow() -> None:
    out = lines(sick())
    at = out.index("changed since it last worked (epoch 17, 2026-11-20 22:14)")
    assert out[at + 1] == "  both nodes  environment: FORK: new: 2"
    assert out[at + 2] == "  spark1      environment: VLLM_USE_X: 1 -> 2"
    assert out[at + 6] == "  and 6 more: sparkd drift"


def test_everything_else_comes_by_layer_and_what_follows_is_a_line() -> None:
    out = lines(sick())
    at = out.index("also wrong")
    assert out[at + 1 : at + 7] == [
        "  host-memory",
        "    both nodes  memory.page-cache: 110 GiB of page cache leave 4.7 GiB free",
        "                do: sparkd clean",
        "  link",
        "    spark2      link.drops (warning): bond0 dropped 121 frames",
        "                do: ethtool -S enp1s0f0np0",
    ]
    assert "symptoms: engine.down (both nodes)" in out
    assert "not told: 2 checks that unit.execstart-path explains" in out
    assert "could not tell: checks without an answer: 5 on spark1, 5 on spark2 (-v lists them)" in out


def test_it_fits_one_screen() -> None:
    out = lines(sick(), stands=STANDS)
    assert len(out) <= 40 and max(map(len, out[1:])) <= 100


@pytest.mark.parametrize("width", [60, 80, 100])
def test_lines_are_wrapped_and_words_are_whole(width: int) -> None:
    words = {word.strip(";") for line in lines(sick(), width=1000, verbose=True) for word in line.split()}
    out = lines(sick(), width=width, verbose=True)
    assert {word.strip(";") for line in out for word in line.split()} == words
    long = [line for line in out[1:] if len(line) > width and " " in line.strip()[: width - 20]]
    assert not [line for line in long if len(line.split()) > 8], "only what has no blank may be too long"


def test_what_is_good_is_silent_unless_it_is_asked_for() -> None:
    assert not any("link.good" in line for line in lines(sick()))
    out = lines(sick(), verbose=True)
    assert "    good     both nodes  link.good-1: link 1 is fine" in out
    blind = [line for line in out if "driver.blind-0" in line]
    assert len(blind) == 2, "what many checks could not see for one reason is told once for each node"


def test_nothing_wrong() -> None:
    out = lines(examined(node("spark1"), node("spark2"), proven=True), stands=STANDS)
    assert out[0] == f"nothing wrong: 30 checks good on spark1 and spark2, 5 could not tell, {STANDS}"
    assert len(out) <= 4


def test_a_node_that_was_not_asked_is_not_good() -> None:
    out = lines(examined(node("spark1"), absent={"spark2": "sparkd does not run there"}, proven=True), stands=STANDS)
    assert out[0].startswith("cannot tell: spark2 did not answer; nothing wrong was seen, 30 checks good on spark1")
    assert out[1:3] == [f"  state:  {STANDS}", "          spark2 was not examined: sparkd does not run there"]
    with_fault = lines(examined(node("spark1", CACHE), absent={"spark2": "off"}))
    assert with_fault[0].startswith("spark1: memory.page-cache") and any(
        "spark2 was not examined: off" in line for line in with_fault
    )


def test_the_same_on_both_nodes_is_told_once() -> None:
    both = [
        node(name, finding("link.mtu", f"bond0 of {name} has MTU 1500", "link", remedy="mend it"))
        for name in ("spark1", "spark2")
    ]
    assert lines(examined(*both))[0] == "both nodes: link.mtu: bond0 of spark1 has MTU 1500"


def test_a_warning_says_that_it_is_one() -> None:
    out = lines(examined(node("spark1", LOSSY)), stands=STANDS)
    assert out[0].startswith("spark1: link.drops") and any("a warning: it works now" in line for line in out)


def test_an_incident_says_where_it_stands_and_history_is_counted() -> None:
    now = Incident(
        id="driver-xid-79", layer="driver", kind=Kind.ROOT, verdict=Verdict.BAD, says="the GPU fell off the bus",
        evidence=("NVRM: Xid 79",), where="kernel log", at="2026-11-21T02:14:09", count=3, remedy="pull the plug", who=Who.HANDS,
    )  # fmt: skip
    past = now.model_copy(update={"current": False, "id": "driver-old", "where": "kernel log of the previous boot"})
    shown = examined(node("spark2", incidents=(now, past)))
    out = lines(shown)
    assert out[0] == "spark2: driver-xid-79: the GPU fell off the bus"
    assert out[1].strip() == "in kernel log, 2026-11-21T02:14:09, 3 times:" and "hands on the machine" in out[4]
    assert out[-1].startswith("history: 1 incident in older logs") and not any("driver-old" in line for line in out)
    assert any("driver-old" in line for line in lines(shown, verbose=True))


def test_colours_are_the_callers_and_change_no_text() -> None:
    painted = lines(sick(), paint=lambda text, colour: f"\033[31m{text}\033[0m" if text else text)
    assert painted[0].startswith("\033[31m")
    plain = [re.sub(r"\033\[\d+m", "", line) for line in painted]
    assert [line for line in plain if "memory.page-cache" in line] == [
        line for line in lines(sick()) if "memory.page-cache" in line
    ]


def test_a_very_sick_pair_still_fits() -> None:
    layers = ("host-memory", "shm", "process", "link", "driver", "docker", "container", "image", "script", "weights")
    many = [
        finding(f"{layer}.x{n}", "something is wrong here " * 6, layer, remedy="a; b; c; " * 9)
        for layer in layers
        for n in range(3)
    ]
    out = lines(examined(node("spark1", GHOST, *many), node("spark2", *many)))
    assert len(out) <= 50 and any("more: sparkd doctor -v" in line for line in out)
    assert sum("something is wrong" in line for line in lines(examined(node("spark1", *many)), verbose=True)) >= 30


def test_whoever_is_not_root_is_told_so_once() -> None:
    unseen = (
        "not root: most logs cannot be read; sudo sparkd doctor",
        "engine logs: /x: Permission denied",
        "pstore: gone",
    )
    shown = [line for line in lines(examined(node("spark1", unseen=unseen))) if line.startswith("not seen")]
    assert len(shown) == 2 and "not root" in shown[0] and "pstore" in shown[1]
