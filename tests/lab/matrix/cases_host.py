"""What stands still, fills up, is spoilt, steps or is replaced around the engine; and what should come of each.

Where words count, they are asked for when the fault is mended: what a person would have been told in the meantime.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.lab.matrix.case import Case, Change, Expect, Load
from tests.lab.matrix.cases_engine import NODES_AND_BOTH, command, fault, main_pid, nodes_of, reboot, strike
from tests.lab.pair import NODES, Pair, wait_for

RELAUNCH_MAX_S = 120.0
WATCHDOG_S = 30  # WatchdogSec= of sparkd.service
STATE = "/var/lib/sparkd"
RECIPE = "/etc/sparkd/recipes/deepseek-v4-flash.yaml"
ANSWERS_MAX_S = 8.0  # a status or a doctor that waits for nobody
TOLD_MAX_S = 60.0  # while the fault lasts
RESTARTS_MAX = 6  # limits.restarts_max as shipped
OTHER = dict(zip(NODES, reversed(NODES), strict=True))


# --- making --------------------------------------------------------------------------------------


def then(*changes: Change) -> Change:
    """One after the other, all of them: what is not told as it should be is mended all the same. The first failure counts."""

    def change(pair: Pair, node: str) -> None:
        failures: list[AssertionError] = []
        for each in changes:
            try:
                each(pair, node)
            except AssertionError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    return change


def on_one(make: Change) -> Change:
    """Where the node is `both`: on each."""

    def change(pair: Pair, node: str) -> None:
        for n in nodes_of(node):
            make(pair, n)

    return change


def lose(pair: Pair, node: str) -> None:
    """The engine loses its rank on that node."""
    strike(pair, node, "rank")


def agent(signal: str) -> Change:
    return on_one(lambda pair, node: pair.lab.node(node).run(f"kill -s {signal} {main_pid(pair, node)}") and None)


def watchdog_ends(pair: Pair, node: str) -> None:
    """Another daemon answers, without anybody's help."""
    for n in nodes_of(node):
        since = "systemctl show -p NRestarts --value sparkd"
        wait_for(f"a new daemon on {n}", lambda n=n, since=since: pair.run(n, since).strip() != "0", max_s=20)
        wait_for(f"an answer of {n}'s daemon", lambda n=n: pair.status(n), max_s=20)


def spoil(*files: str, how: str) -> Change:
    """Each file is what `how` (a shell command on $file) makes of it when the daemon next starts."""

    def change(pair: Pair, node: str) -> None:
        beside = "ls /run/sparkd/state.json 2>/dev/null || :"  # newer: what a full disk of the case before refused
        wait_for("state that is on disk", lambda: not pair.run(node, beside), max_s=60)
        script = "\n".join(f"file={STATE}/{file}; {how}" for file in files)
        pair.run(node, f"systemctl kill -s STOP --kill-who=main sparkd\n{script}\nsystemctl kill -s KILL sparkd")
        wait_for(f"an answer of {node}'s daemon", lambda: pair.status(node), max_s=60)

    return change


def with_json(change: str) -> str:
    """A shell command that changes the object in $file, called `o`."""
    script = f'import json,sys; o=json.load(open(sys.argv[1])); {change}; json.dump(o, open(sys.argv[1], "w"))'
    return f"python3 -c '{script}' $file"


def launched_into(make: Change) -> Change:
    """The engine is lost, and the fault strikes when the next launch is being prepared."""

    def change(pair: Pair, node: str) -> None:
        before = pair.epoch()
        lose(pair, "spark2")
        phases = ("container", "stage", "armed", "launching", "loading")

        def prepares() -> bool:
            status = pair.status(node)
            return status.get("epoch", 0) > before and status.get("phase") in phases

        wait_for(f"{node} to prepare a launch", prepares, max_s=60, every_s=0.05)
        make(pair, node)

    return change


def again_and_again(script: str, *, for_s: float) -> Change:
    def change(pair: Pair, node: str) -> None:
        until = time.monotonic() + for_s
        while time.monotonic() < until:
            pair.run(node, script, check=False)
            time.sleep(0.3)

    return change


def power_cycled(pair: Pair, node: str) -> None:
    pair.lab.node(node).power_cut()
    pair.lab.node(node).power_on()


def replaced(*, with_image: bool) -> Change:
    """Another machine of the same name: weights are copied and sparkd is installed, nothing is remembered."""

    def change(pair: Pair, node: str) -> None:
        place = pair.lab.node(node)
        place.run("systemctl disable sparkd; docker rm -f $(docker ps -aq); rm -rf /etc/sparkd", check=False)
        if not with_image:
            place.run("docker image rm -f $(docker image ls -q)", check=False)
        place.power_cut()
        place.forget("var/lib/sparkd", "var/log/sparkd", "root/.cache")
        place.power_on()
        pair.lab.furnish(node, image=with_image)
        place.run("systemctl enable --now --no-block sparkd")

    return change


def image_loaded(pair: Pair, node: str) -> None:
    pair.lab.furnish(node, image=True)


# --- what is told meanwhile ----------------------------------------------------------------------


def told(words: str, *, by: Callable[[str], Sequence[str]] = lambda node: (node,)) -> Change:
    """What `sparkd status` says on one of these nodes, or a remedy in it, has the words."""

    def change(pair: Pair, node: str) -> None:
        def said() -> bool:
            return any(words in json.dumps(pair.status(n)) for n in by(node))

        wait_for(f"status that says {words!r}", said, max_s=TOLD_MAX_S)

    return change


def any_node(node: str) -> Sequence[str]:
    return NODES


def responsive(pair: Pair, node: str) -> None:
    """Nobody who asks has to wait for what hangs."""
    for verb in ("status --json", "doctor --json"):
        began = time.monotonic()
        said = pair.run(node, f"sparkd {verb}", check=False)
        took_s = time.monotonic() - began
        assert said, f"sparkd {verb} says nothing"
        assert took_s < 3 * ANSWERS_MAX_S, f"sparkd {verb} took {took_s:.0f} s"


def events(pair: Pair, node: str) -> list[dict[str, Any]]:
    """As the daemon has them in memory: a full disk has none."""
    return [json.loads(line) for line in pair.run(node, "sparkd events -n 400 --json").splitlines()]


def said_once(id: str, *, until: str) -> Change:
    """Not once a second: at most one line since the daemon began, or said `until`."""

    def change(pair: Pair, node: str) -> None:
        found = [event["id"] for event in events(pair, node)]
        last = max((at for at, each in enumerate(found) if each in ("agent.started", until)), default=0)
        assert found[last:].count(id) <= 1, f"{id} was said {found[last:].count(id)} times"

    return change


def pending(pair: Pair, node: str) -> None:
    assert "configuration has changed" in str(pair.status(node).get("pending")), pair.status(node)
    assert pair.status(OTHER[node]).get("pending") is None, pair.status(OTHER[node])


def launches(pair: Pair, node: str) -> int:
    """Since that node last served."""
    found = events(pair, node)
    served = [
        at for at, event in enumerate(found) if event["says"].startswith(("proving -> serving", "loading -> serving"))
    ]
    return sum(event["id"] == "phase.launching" for event in found[max(served, default=0) :])


def budget_kept(pair: Pair, node: str) -> None:
    """As many launches as the budget allows after the one that served, and not one more, then or later."""
    said = pair.status("spark1")
    assert said["blocked"]["id"] == "engine.crash-loop", said
    assert "weights" in str(said["blocked"]) or "CUDA" in str(said["blocked"]), f"not what the last one died of: {said}"
    before = {n: launches(pair, n) for n in NODES}
    assert RESTARTS_MAX - 1 <= max(before.values()) <= RESTARTS_MAX, f"launches after the one that served: {before}"
    time.sleep(10)
    assert {n: launches(pair, n) for n in NODES} == before, "blocked, and launched all the same"


def start_again(pair: Pair, node: str) -> None:
    pair.run("spark1", "sparkd start")


def change_plan(pair: Pair, node: str) -> None:
    pair.run(node, f"cp {RECIPE} /root/recipe.kept; sed -i 's/^arguments:/arguments:\\n  seed: 7/' {RECIPE}")


def plan_restored(pair: Pair, node: str) -> None:
    pair.run(node, f"cp /root/recipe.kept {RECIPE}")


# --- the cases -----------------------------------------------------------------------------------

LOADED = (Load.LOADED,)
again = functools.partial(Case, expect=Expect.SERVES_AGAIN, max_s=RELAUNCH_MAX_S, of_sparkd=True)
on = functools.partial(Case, expect=Expect.GOES_ON, of_sparkd=True)
blocks = functools.partial(Case, expect=Expect.BLOCKS, max_s=300.0, slow=True, of_sparkd=True)

STANDSTILL = (
    on("agent-stop-20", "sparkd stopped for 20 s", make=agent("STOP"), mend=agent("CONT"), mend_after_s=20,
       nodes=NODES_AND_BOTH, lossless=True),
    on("agent-stop", "sparkd stopped till the watchdog", make=then(command("systemctl reset-failed sparkd"), agent("STOP")),
       mend=watchdog_ends, mend_after_s=WATCHDOG_S + 5, nodes=NODES_AND_BOTH, lossless=True),
)  # fmt: skip

DOCKER = (
    on("docker-hung", "Docker hangs for 15 s", make=fault("docker-hung"), mend=then(responsive, fault("docker-hung", False)),
       mend_after_s=15, lossless=True),
    again("docker-hung-loss", "engine lost while Docker hangs", make=then(fault("docker-hung"), lose),
          mend=then(told("Docker does not answer"), fault("docker-hung", False)), mend_after_s=20),
    again("docker-hung-launch", "Docker hangs during a launch", make=launched_into(fault("docker-hung")),
          mend=fault("docker-hung", False), mend_after_s=15),
)  # fmt: skip

# Too often within seconds, and systemd would leave it, and logind, down: not the fault that is meant.
RESTART_BUS = "systemctl reset-failed dbus.service dbus.socket systemd-logind.service; systemctl restart dbus.service"
BUS = (
    on("dbus-restart", "D-Bus restarted", make=command("systemctl restart dbus"), lossless=True, of_sparkd=False),
    on("systemd-reexec", "systemd executes itself anew", make=command("systemctl daemon-reexec"), lossless=True, of_sparkd=False),
    again("dbus-launch", "D-Bus restarted during a launch",
          make=then(lose, again_and_again(RESTART_BUS, for_s=10))),
    again("reexec-launch", "systemd reexec during a launch",
          make=then(lose, again_and_again("systemctl daemon-reexec", for_s=10))),
)  # fmt: skip

FULL = then(fault("disk-full"), fault("log-disk-full"))
ROOM = then(said_once("state.not-saved", until="state.saved"), fault("disk-full", False), fault("log-disk-full", False))
DISKS = (
    on("state-full", "state disk full", make=fault("disk-full"), mend=fault("disk-full", False), mend_after_s=8,
       lossless=True),
    on("state-full-restart", "state disk full, sparkd killed", make=then(fault("disk-full"), agent("KILL")),
       mend=ROOM, mend_after_s=10, lossless=True),
    on("logs-full", "log disk full", make=fault("log-disk-full"), mend=fault("log-disk-full", False), mend_after_s=8,
       lossless=True),
    again("state-full-loss", "engine lost, state disk full", make=then(fault("disk-full"), lose), mend=ROOM,
          mend_after_s=25),
    again("logs-full-loss", "engine lost, log disk full", make=then(fault("log-disk-full"), lose),
          mend=fault("log-disk-full", False), mend_after_s=25),
    again("disks-full-loss", "engine lost, both disks full", make=then(FULL, lose), mend=ROOM, mend_after_s=25, loads=LOADED),
)  # fmt: skip

RANDOM = "head -c 3000 /dev/urandom >$file"
FUTURE = with_json('o["gate"]="ajar"; o["of_tomorrow"]={"phase": "dreaming"}')
FILES = (
    again("state-truncated", "state file cut in half", make=spoil("state.json", how="truncate -s 100 $file"), loads=LOADED),
    again("state-empty", "state file emptied", make=spoil("state.json", how=": >$file"), loads=LOADED),
    again("state-random", "state file random bytes", make=spoil("state.json", how=RANDOM), loads=LOADED),
    again("state-newer", "state file of a newer version", make=spoil("state.json", how=FUTURE), loads=LOADED),
    again("state-ahead", "state file a million epochs ahead", loads=LOADED,
          make=spoil("state.json", how=with_json('o["epoch"] += 1000000; o["launch_epoch"] = o["epoch"]'))),
    on("state-owner", "state files somebody else's", loads=LOADED,
       make=spoil("*", how="chown nobody $file && chmod 000 $file"), lossless=True),
    on("files-random", "all other files random bytes", loads=LOADED, lossless=True,
       make=spoil("events.jsonl", "samples.ring", "plan.json", "learned.json", "last-boot.json", how=RANDOM)),
)  # fmt: skip

CLOCK = (
    on("clock-ahead", "clock steps an hour ahead", make=fault("clock-ahead"), mend=fault("clock-ahead", False), mend_after_s=25,
       lossless=True),
    on("clock-behind", "clock steps an hour back", make=fault("clock-behind"), mend=fault("clock-behind", False),
       mend_after_s=25, lossless=True),
    again("clock-ahead-loss", "engine lost, clock an hour ahead", make=then(fault("clock-ahead"), lose),
          mend=fault("clock-ahead", False), mend_after_s=25, loads=LOADED),
    again("clock-behind-loss", "engine lost, clock an hour back", make=then(fault("clock-behind"), lose),
          mend=fault("clock-behind", False), mend_after_s=25, loads=LOADED),
    again("clock-step-launch", "clock steps back during a launch", make=launched_into(fault("clock-behind")),
          mend=fault("clock-behind", False), mend_after_s=10, loads=LOADED),
    again("clock-boot", "boots with a clock an hour behind", make=then(fault("clock-behind"), power_cycled),
          mend=fault("clock-behind", False), mend_after_s=25, loads=LOADED, max_s=180),
)  # fmt: skip

CRASHES = fault("crash-during-load")
CALM = then(budget_kept, fault("crash-during-load", False), start_again)
BUDGET = (
    blocks("crash-loop", "crashes in every load", make=then(CRASHES, lose), mend=CALM, finding="engine.crash-loop"),
    blocks("crash-loop-agent", "crash loop, sparkd killed", loads=LOADED,
           make=then(CRASHES, lose, lambda pair, node: time.sleep(20), agent("KILL")), mend=CALM, finding="engine.crash-loop"),
    blocks("crash-loop-boot", "crash loop and a reboot", loads=LOADED,
           make=then(CRASHES, lose, lambda pair, node: time.sleep(20), reboot), mend=CALM, finding="engine.crash-loop"),
)  # fmt: skip

PLAN = (
    on("plan-one", "recipe changed on one node", make=change_plan, mend=then(pending, plan_restored), mend_after_s=8,
       lossless=True),
    again("plan-one-loss", "lost, recipe changed on one node", make=then(change_plan, lose), mend=plan_restored,
          mend_after_s=30),
    again("plan-one-reboot", "rebooted, recipe changed on one", make=then(change_plan, reboot), max_s=240, loads=LOADED,
          mend=then(told("make /etc/sparkd identical", by=any_node), plan_restored), mend_after_s=30),
)  # fmt: skip

MACHINE = (
    again("node-replaced", "a fresh node in its place", make=replaced(with_image=True), max_s=240, loads=LOADED),
    blocks("node-no-image", "a fresh node without the image", make=replaced(with_image=False), finding="image.missing",
           mend=image_loaded, loads=LOADED),
    again("memory-short", "engine lost, memory short", make=then(fault("memory-short"), lose), mend_after_s=25, loads=LOADED,
          mend=then(told("are free"), fault("memory-short", False))),
)  # fmt: skip

CASES = (*STANDSTILL, *DOCKER, *BUS, *DISKS, *FILES, *CLOCK, *BUDGET, *PLAN, *MACHINE)
