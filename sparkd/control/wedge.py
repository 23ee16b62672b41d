"""Does the engine work, or does it hang? A verdict from several signals; no single one, and no single time-out, decides.

| signal | says work | says hang | unknown |
| --- | --- | --- | --- |
| counters and gauges of /metrics | any of them moves | at rest while work waits (needed) | |
| canary | answered | unanswered for a third of `hang_max_s` (needed) | not asked yet |
| compiler below the engine | burns CPU | | node not heard |
| link | bytes as of tensor parallel work | | no counters |
| GPU | 40 W and more | 80 % busy at 30 W and less: a silent spin | no nvidia-smi, or it hangs |
| processes | | stopped, or none left | node not heard |
| CPU | | no engine process of any node computes, no GPU either | node not heard |
| peer | (its own signals above) | out of reach | its daemon is away, or too old to tell |

Everything is at rest in a first-shape compilation too, for minutes, and a rank that waits for another's compiler spins on its
GPU. So what says hang decides after `hang_max_s` only where every node was seen: each source that could have said work said
no. With anything unknown it takes `hang_blind_max_s`, beyond the longest step that vLLM allows itself. What says work starts
the clock anew, up to `work_max_s`.

Sources: healthy decode takes about 45 W, a silent spin shows 95 % at 13 to 27 W with frozen counters (GB10, FIELD.md 9).
That the cache's gauge moves with each chunk of a prefill was read in vLLM's source (see `Counters`) and seen with its CPU
build (docs/real-engine.md); no recording of a GB10 is long enough to show it. A chunk of 16,384 tokens takes a GB10 about
20 s at 800 tokens/s: between two movements there is room for doubt, not for a verdict. Tensor parallel ranks exchange every
layer's activations for every token: megabytes a second at one token a second of a large model, while the daemons' own
exchange is a few KiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from sparkd.model.cluster import Limits
from sparkd.model.finding import Cure, Finding, Who, bad
from sparkd.model.report import Vitals

WORKING_W = 40.0
SPIN_W = 30.0
SPIN_PERCENT = 80.0
IDLE_PERCENT = 10.0  # of a GPU: below it, it computes nothing
ASLEEP_PERCENT = 2.0  # of one CPU: clock ticks are 10 ms, and a waiting process wakes up now and then
LINK_WORK_BYTES_S = 1 << 20
FRESH_S = 45.0  # older vitals tell nothing of now
DOUBT_SHARE = 1 / 6  # of `hang_max_s`: everything at rest for so long makes every node look closer
ASKED_SHARE = 1 / 3  # of `hang_max_s`: unanswered for so long, a canary speaks


class Says(StrEnum):
    WORK = "work"
    HANG = "hang"
    REST = "rest"  # was read, and speaks for neither
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Sign:
    """One signal. `text` goes behind a name or stands alone: it is evidence, for a person."""

    says: Says
    text: str


@dataclass(frozen=True)
class Node:
    """What is known of one node. `vitals.age_s` is their age now."""

    name: str
    vitals: Vitals | None = None
    unreachable_s: float | None = None  # None: it is not


@dataclass(frozen=True)
class Signals:
    """Everything there is to judge by, as ages in seconds."""

    active: int  # requests running or waiting, as the engine last said
    still_s: float | None  # for how long work has waited and no counter or gauge has moved; None: no work waits
    quiet_s: float  # the same, and no vitals have shown work either
    unanswered_s: float | None  # since the first canary that nothing has answered
    nodes: tuple[Node, ...]


class State(StrEnum):
    WORKING = "working"
    SUSPECTED = "suspected"
    WEDGED = "wedged"


@dataclass(frozen=True)
class Verdict:
    state: State
    says: str  # a clause: "spark2 compiles (nvcc)"
    doubt: bool = False  # nothing moves: every node should look
    finding: Finding | None = None  # where it is wedged


# --- the table -----------------------------------------------------------------------------------


def node_signs(node: Node, *, linked: bool, fresh_s: float = FRESH_S) -> list[Sign]:
    """What one node says. `linked`: it has others to talk to. What is older than `fresh_s` says nothing."""
    if node.unreachable_s is not None:
        return [Sign(Says.HANG, f"{node.name} is out of reach for {node.unreachable_s:.0f} s")]
    vitals = node.vitals
    if vitals is None or vitals.age_s > fresh_s:
        return [Sign(Says.UNKNOWN, f"{node.name} tells nothing of its part of the engine")]
    signs = [_compiler(vitals), _gpu(vitals), _processes(vitals), _stopped(vitals), _cpu(vitals)]
    if linked:
        signs.append(_link(vitals))
    return [Sign(sign.says, f"{node.name}: {sign.text}") for sign in signs]


def _compiler(v: Vitals) -> Sign:
    if v.compiling is None:
        return Sign(Says.UNKNOWN, "whether a compiler runs is not known")
    if v.compiling:
        return Sign(Says.WORK, f"a compiler is at work ({v.compiling})")
    return Sign(Says.REST, "no compiler runs")


def _gpu(v: Vitals) -> Sign:
    if v.gpu is False:
        return Sign(Says.REST, "has no GPU")
    if v.gpu is None or v.gpu_watts is None or v.gpu_percent is None:
        return Sign(Says.UNKNOWN, "the GPU's power and utilisation cannot be read")
    text = f"its GPU is {v.gpu_percent:.0f} % busy at {v.gpu_watts:.0f} W"
    if v.gpu_watts >= WORKING_W:
        return Sign(Says.WORK, text)
    if v.gpu_percent >= SPIN_PERCENT and v.gpu_watts <= SPIN_W:
        return Sign(Says.HANG, f"{text}, a silent spin")
    return Sign(Says.REST, text)


def _processes(v: Vitals) -> Sign:
    if v.processes is None:
        return Sign(Says.UNKNOWN, "its engine's processes cannot be seen")
    if v.processes == 0:
        return Sign(Says.HANG, "none of its engine's processes lives")
    return Sign(Says.REST, f"engine processes alive: {v.processes}")


def _stopped(v: Vitals) -> Sign:
    if v.stopped is None:
        return Sign(Says.UNKNOWN, "its engine's processes cannot be seen")
    if v.stopped:
        return Sign(Says.HANG, f"{v.stopped} is stopped")
    return Sign(Says.REST, "no process is stopped")


def _cpu(v: Vitals) -> Sign:
    if v.cpu_percent is None:
        return Sign(Says.UNKNOWN, "its engine's CPU time cannot be read")
    return Sign(Says.REST, f"its engine takes {v.cpu_percent:.0f} % of a CPU")


def _link(v: Vitals) -> Sign:
    if v.link_bytes_s is None:
        return Sign(Says.UNKNOWN, "the link's bytes cannot be counted")
    text = f"{v.link_bytes_s / 1024:.0f} KiB/s cross the link"
    return Sign(Says.WORK if v.link_bytes_s >= LINK_WORK_BYTES_S else Says.REST, text)


def _all_asleep(nodes: tuple[Node, ...], fresh_s: float) -> Iterator[Sign]:
    """Nobody computes anywhere. One node that sleeps says nothing: it may wait for another's compiler."""
    if all(node.unreachable_s is None and _sleeps(node.vitals, fresh_s) for node in nodes):
        yield Sign(Says.HANG, "no node computes: neither its CPUs nor its GPU do anything for the engine")


def _sleeps(v: Vitals | None, fresh_s: float) -> bool:
    if v is None or v.age_s > fresh_s or v.cpu_percent is None or v.cpu_percent > ASLEEP_PERCENT:
        return False
    return v.gpu is False or (v.gpu is True and v.gpu_percent is not None and v.gpu_percent <= IDLE_PERCENT)


def signs(signals: Signals) -> list[Sign]:
    """Every signal but the two that are needed anyway. What was seen before all came to rest says nothing."""
    linked, fresh_s = len(signals.nodes) > 1, min(FRESH_S, signals.still_s or 0.0)
    found = [sign for node in signals.nodes for sign in node_signs(node, linked=linked, fresh_s=fresh_s)]
    return [*found, *_all_asleep(signals.nodes, fresh_s)]


def works(v: Vitals) -> bool:
    """Whether these vitals alone show work."""
    return any(sign.says is Says.WORK for sign in node_signs(Node("", v), linked=True))


# --- the verdict ---------------------------------------------------------------------------------


def judge(s: Signals, limits: Limits) -> Verdict:
    if s.still_s is None:
        return Verdict(State.WORKING, "no work waits")
    if s.still_s <= limits.hang_max_s * DOUBT_SHARE:
        return Verdict(State.WORKING, "its counters move")
    found = signs(s)
    work = next((sign.text for sign in found if sign.says is Says.WORK), None)
    hang = [sign.text for sign in found if sign.says is Says.HANG]
    unknown = [sign.text for sign in found if sign.says is Says.UNKNOWN]
    asked = s.unanswered_s is not None and s.unanswered_s >= limits.hang_max_s * ASKED_SHARE
    blind_max_s = max(limits.hang_blind_max_s, limits.hang_max_s)
    if asked and s.still_s > max(limits.work_max_s, blind_max_s):
        return _wedged(s, found, f"although {work}" if work else "at all")
    if work is not None:
        return Verdict(State.WORKING, f"nothing was counted for {s.still_s:.0f} s, but {work}", doubt=True)
    if asked and hang and not unknown and s.quiet_s > limits.hang_max_s:
        return _wedged(s, found, hang[0])
    if asked and s.quiet_s > blind_max_s:
        return _wedged(
            s, found, hang[0] if hang else f"nothing shows work ({unknown[0] if unknown else 'all are at rest'})"
        )
    why = hang[0] if hang else unknown[0] if unknown else "nothing shows work or a hang"
    return Verdict(State.SUSPECTED, f"nothing moves for {s.still_s:.0f} s while work waits: {why}", doubt=True)


def _wedged(s: Signals, found: list[Sign], because: str) -> Verdict:
    waiting = f"{s.active} requests are" if s.active != 1 else "1 request is"
    who = f"{waiting} waiting" if s.active else "a canary is unanswered"
    says = f"{who} and no counter has moved for {s.still_s or 0:.0f} s: the engine hangs; {because}"
    asked = f"no canary was answered for {s.unanswered_s or 0:.0f} s"
    evidence = (asked, *(f"{sign.says}: {sign.text}" for sign in found))
    finding = bad("engine.hung", says, cure=Cure.RELAUNCH, who=Who.SPARKD, evidence=evidence)
    return Verdict(State.WEDGED, says, doubt=True, finding=finding)
