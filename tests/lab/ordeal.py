"""One schedule carried out: strike, mend everything, and see how it ends. Serving, or blocked for a reason that is true."""

from __future__ import annotations

import contextlib
import json
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from . import strangers
from .breakages import Breakage, catalogue, mend_everything
from .host import LabError, say
from .pair import NODES, Pair, Traffic, wait_for
from .schedule import Schedule, Strike
from .witness import Witness

HEAD = NODES[0]
BLOCKED_FOR_GOOD_S = 40.0  # a blocked node looks again every 2 s: what is mended unblocks it within this
SERVES_STEADILY_S = 4.0
STRIKE_MAX_S = 300.0
SAYS_MAX_CHARS = 300
CRASH_LOOP = "engine.crash-loop"


@dataclass(frozen=True)
class Limits:
    """From the end of the faults to a verdict, and how long a claim to serve may stand unproven."""

    ends_max_s: float = 240.0  # a head whose peer vanished while it loaded hangs silently until load_max_s, 120 here
    claim_max_s: float = 75.0  # canary_interval_s, canary_max_s twice, hang_max_s, and a noisy machine


REAL = Limits(ends_max_s=900.0, claim_max_s=180.0)


@dataclass
class Outcome:
    schedule: Schedule
    ended: str = ""  # "serving", "blocked: ID", or what happened instead
    after_s: float = 0.0  # from the end of the faults
    complaints: list[str] = field(default_factory=list)
    struck: list[str] = field(default_factory=list)  # what came of each strike
    missed: list[str] = field(default_factory=list)  # those of them that could not be made
    answered: int = 0
    failed: int = 0
    story: str = ""  # the events of both nodes from the first fault on

    @property
    def good(self) -> bool:
        return not self.complaints

    def __str__(self) -> str:
        """One line, and everything that helps where it went wrong."""
        faults = ", ".join(strike.fault for strike in self.schedule.strikes)
        seed = f"seed {self.schedule.seed}" if self.schedule.seed is not None else "schedule"
        traffic = f", {self.answered} answered, {self.failed} failed" if self.schedule.traffic else ""
        line = f"{seed}: {self.ended} after {self.after_s:.0f} s ({faults}{traffic})"
        if self.good:
            return "\n  not made: ".join([line, *self.missed])
        wrong = "\n".join(f"  - {complaint}" for complaint in self.complaints)
        struck = "\n".join(self.struck)
        return f"{line}\nWRONG:\n{wrong}\n\n{self.schedule}\n\n{struck}\n\n{self.story}"


class Ordeal:
    """A pair that serves, one schedule, one outcome."""

    def __init__(self, pair: Pair, schedule: Schedule, *, limits: Limits, breakages: dict[str, Breakage]) -> None:
        self._pair, self._schedule, self._limits, self._breakages = pair, schedule, limits, breakages
        self._outcome = Outcome(schedule)
        self._began = time.monotonic()

    def run(self) -> Outcome:
        outcome, pair = self._outcome, self._pair
        planted = [strangers.plant(pair, node) for node in NODES]
        witness = Witness(pair, claim_max_s=self._limits.claim_max_s)
        began_at = time.time()
        self._began = time.monotonic()
        with witness.watching(), self._clients() as traffic:
            self._strike_all()
            mended = time.monotonic()
            mend_everything(pair)
            self._resume()
            outcome.ended = self._await_the_end()
            outcome.after_s = time.monotonic() - mended
        outcome.answered, outcome.failed = traffic.answered, len(traffic.failed)
        outcome.complaints += witness.complaints
        if not witness.looks:
            outcome.complaints.append("nobody looked at the nodes: nothing is proven")
        for before in planted:
            outcome.complaints += strangers.touched(before, strangers.look(pair, before.node))
        for node in NODES:
            outcome.complaints += self._unexplained_lives(node, witness)
            outcome.complaints += self._bugs(node, began_at)
        if not outcome.good:
            outcome.story = self._story(began_at)
        return outcome

    # --- faults ---

    @contextlib.contextmanager
    def _clients(self) -> Iterator[Traffic]:
        if not self._schedule.traffic:
            yield Traffic()
            return
        max_s = self._schedule.seconds + self._limits.ends_max_s + 60
        with self._pair.traffic(streams=2, max_s=max_s, max_tokens=300) as traffic:
            yield traffic

    def _strike_all(self) -> None:
        threads = [threading.Thread(target=self._strike, args=(strike,)) for strike in self._schedule.strikes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=self._schedule.seconds + STRIKE_MAX_S)
            if thread.is_alive():
                self._outcome.complaints.append("a fault of the lab did not end")

    def _strike(self, strike: Strike) -> None:
        breakage = self._breakages[strike.fault]
        self._sleep_until(strike.after_s)
        self._do(f"{strike.fault} on {strike.node}", breakage.make, strike.node)
        if breakage.mend is not None:
            self._sleep_until(strike.after_s + strike.for_s)
            self._do(f"{strike.fault} on {strike.node} is over", breakage.mend, strike.node)

    def _sleep_until(self, after_s: float) -> None:
        time.sleep(max(0.0, self._began + after_s - time.monotonic()))

    def _do(self, what: str, change: Callable[[Pair, str], None], node: str) -> None:
        """A fault that cannot be made, because another one was faster, is no fault."""
        at, came = time.strftime("%H:%M:%S"), ""
        try:
            change(self._pair, node)
        except (LabError, OSError) as error:
            came = f" (could not: {str(error).splitlines()[-1][:160]})"
            self._outcome.missed.append(f"{what}{came}")
        self._outcome.struck.append(f"{at} {what}{came}")

    def _resume(self) -> None:
        """A stop is the operator's word, and so is its end: a schedule's may have been said to a node that was off."""
        if any(strike.fault == "operator-stop" for strike in self._schedule.strikes):
            with contextlib.suppress(AssertionError, LabError):
                wait_for("status", lambda: self._pair.status(HEAD), max_s=60)
                if self._pair.status(HEAD).get("run") is False:
                    self._pair.run(HEAD, "sparkd start", check=False)

    # --- the end ---

    def _await_the_end(self) -> str:
        deadline = time.monotonic() + self._limits.ends_max_s
        blocked_since: float | None = None
        known = ""
        while time.monotonic() < deadline:
            if serves(self._pair):
                return "serving"
            statuses = {node: self._pair.status(node) for node in NODES}
            blocked = next(
                (s["blocked"] | {"node": n} for n, s in statuses.items() if s.get("phase") == "blocked"), None
            )
            now = str(blocked and (blocked["node"], blocked["id"]))
            blocked_since = None if blocked is None else blocked_since if now == known else time.monotonic()
            known = now
            for_good = blocked_since is not None and time.monotonic() - blocked_since > BLOCKED_FOR_GOOD_S
            if blocked is not None and (blocked["id"] == CRASH_LOOP or for_good):
                return self._blocked(blocked)
            time.sleep(1)
        reasons = "; ".join(f"{node}: {self._pair.status(node).get('reason', 'no answer')}" for node in NODES)
        within = f"{self._limits.ends_max_s:.0f} s after the faults"
        self._outcome.complaints.append(f"neither serving nor blocked {within}: {reasons}")
        return "neither"

    def _blocked(self, blocked: dict[str, Any]) -> str:
        """It may be blocked where its reason is true; a person who reads it and says start has a pair that serves."""
        if why := self._untrue(blocked):
            self._outcome.complaints.append(
                f"{blocked['node']} is blocked, and not truthfully ({why}): {blocked['says']}"
            )
        self._pair.run(HEAD, "sparkd start", check=False)
        deadline = time.monotonic() + self._limits.ends_max_s
        while not serves(self._pair):
            if time.monotonic() > deadline:
                self._outcome.complaints.append(f"blocked ({blocked['id']}), and `sparkd start` did not make it serve")
                break
            time.sleep(0.5)
        return f"blocked: {blocked['id']}"

    def _untrue(self, blocked: dict[str, Any]) -> str:
        """Why the reason cannot be believed; empty where it can."""
        if blocked["id"] == CRASH_LOOP:
            return self._untrue_count(blocked)
        evidence = [line for line in blocked.get("evidence", ()) if line.strip()]
        if not evidence:
            return "everything is mended, and no line of a log is shown for it"
        for line in evidence:
            found = f"grep -rqF -- {shlex.quote(line.strip())} /var/log/sparkd/engine || "
            found += f"journalctl -q -o cat | grep -qF -- {shlex.quote(line.strip())}"
            if self._pair.lab.node(blocked["node"]).run(found, check=False).returncode != 0:
                return f"nothing on the node says {line!r}"
        return ""

    def _untrue_count(self, blocked: dict[str, Any]) -> str:
        events = self._pair.events(HEAD)
        refills = ("operator.start", "operator.restart", "engine.held", "node.unblocked")
        since = max((n for n, event in enumerate(events) if event["id"] in refills), default=-1)
        lost = [event for event in events[since + 1 :] if event["id"] in ("epoch.ended", "node.booted")]
        count, _, rest = blocked["says"].partition(" ")
        if not count.isdigit() or len(lost) < int(count):
            return f"it counts {count} lost epochs, the events {len(lost)}"
        last = rest.partition("the last one: ")[2]
        told = [event["says"] for node in NODES for event in self._pair.events(node)]
        return "" if last and any(last in says for says in told) else "its last diagnosis is in no event"

    # --- what else must be so ---

    def _unexplained_lives(self, node: str, witness: Witness) -> list[str]:
        """A daemon that ended though nothing of ours ended it."""
        struck = [self._breakages[s.fault] for s in self._schedule.strikes if s.node == node]
        if any(breakage.keeps_daemon_out for breakage in struck):
            return []
        ours = sum(breakage.lives for breakage in struck)
        lives = max((len(daemons) for daemons in witness.lives[node].values()), default=0)
        if lives > 1 + ours:
            return [f"{node}: {lives} lives of the daemon in one boot, {ours} faults that end it"]
        return []

    def _bugs(self, node: str, since: float) -> list[str]:
        journal = f"journalctl -q -o cat -u sparkd --since @{since:.0f} | grep -m 3 -E 'Traceback|sparkd.bug|AssertionError' || :"
        with contextlib.suppress(LabError):
            said = self._pair.run(node, journal).strip()
            return [f"{node}: the journal has: {said}"] if said else []
        return [f"{node}: its journal cannot be read"]

    def _story(self, since: float) -> str:
        lines = []
        for node in NODES:
            lines.append(f"--- {node}: {self._pair.status(node).get('reason', 'no answer')}")
            with contextlib.suppress(Exception):
                start = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since - 2))
                lines += [
                    f"{e['at'][11:23]} {e['id']}: {e['says'][:SAYS_MAX_CHARS]}"
                    for e in self._pair.events(node)
                    if e["at"] >= start
                ]
        return "\n".join(lines)


def serves(pair: Pair) -> bool:
    """Both say so, a client in the LAN gets an answer, and a moment later it is still so."""
    epoch = claimed(pair)
    if epoch is None or not _answers(pair):
        return False
    time.sleep(SERVES_STEADILY_S)
    return claimed(pair) == epoch and _answers(pair)


def claimed(pair: Pair) -> int | None:
    """The epoch that both nodes say to serve."""
    told = {(found.get("phase"), found.get("epoch")) for found in (pair.status(node) for node in NODES)}
    (phase, epoch) = next(iter(told))
    return epoch if len(told) == 1 and phase == "serving" else None


def _answers(pair: Pair) -> bool:
    with contextlib.suppress(LabError, KeyError, ValueError, TypeError):
        return bool(pair.chat(timeout_s=30)["content"])
    return False


def resume(pair: Pair) -> None:
    """Nothing keeps the pair from serving any more, neither a fault nor a word of the operator."""
    mend_everything(pair)
    wait_for("status", lambda: pair.status(HEAD), max_s=60)
    if pair.status(HEAD).get("phase") != "serving":
        pair.run(HEAD, "sparkd start", check=False)


def ready(pair: Pair) -> None:
    """The pair serves, whatever the schedule before has left; a pair that does not come back by itself loses its power and
    its state."""
    for attempt in (1, 2):
        try:
            resume(pair)
            wait_for("serving pair", lambda: serves(pair), max_s=pair.serves_max_s, every_s=1)
            return
        except (AssertionError, LabError) as error:
            if attempt == 2:
                raise LabError(f"the pair cannot be made ready for a schedule: {error}") from None
            say("the pair does not come back; both nodes lose power and state")
            for node in NODES:
                pair.lab.node(node).power_on()
                pair.run(node, "rm -rf /var/lib/sparkd/*", check=False)
                pair.lab.node(node).power_cut()


def endure(pair: Pair, schedule: Schedule, *, real_engine: bool = False) -> Outcome:
    """One schedule from a pair that serves to its end. Raises LabError where the lab itself fails."""
    ready(pair)
    limits = REAL if real_engine else Limits()
    try:
        return Ordeal(pair, schedule, limits=limits, breakages=catalogue(real_engine=real_engine)).run()
    finally:
        for node in NODES:
            with contextlib.suppress(LabError):
                strangers.take_away(pair, node)


def as_json(outcome: Outcome) -> str:
    """For a record of many."""
    return json.dumps(
        {
            "seed": outcome.schedule.seed,
            "schedule": str(outcome.schedule),
            "ended": outcome.ended,
            "after_s": round(outcome.after_s, 1),
            "complaints": outcome.complaints,
        }
    )
