"""sparkd as the keeper of the pair: what it says is read from its events and its status, what it does from the processes."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.lab.matrix import seen
from tests.lab.pair import NODES, Pair

STATE = "var/lib/sparkd"
# What is told in passing: it is not yet, or no longer, an answer to a fault.
PASSING = ("operator.", "config.", "phase.", "canary.unanswered")
ANSWERS = ("node.booted", "engine.adopted", "epoch.ended")


class SparkdKeeper:
    name = "sparkd"

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self._since = 0.0

    def bring_up(self) -> None:
        """Every fault is mended, both nodes are on, and sparkd is told to start where it waits for a word."""
        self.pair.lab.mend()
        self.pair.start()
        deadline = time.monotonic() + self.pair.serves_max_s
        while not (self.launch() is not None and self.settled()):
            if time.monotonic() > deadline:
                raise AssertionError(f"the pair does not serve:\n{self.pair.story()}")
            if any(status and (not status["run"] or status.get("blocked")) for status in self._status()):
                self.pair.run("spark1", "sparkd start", check=False)
                time.sleep(3.0)
            time.sleep(0.3)
        self._since = time.time()

    def launch(self) -> object:
        """The epoch whose processes live, all of them, on both nodes, and which sparkd says has proven itself."""
        engines = seen.engines(self.pair)
        if not seen.is_whole(engines):
            return None
        epochs = {process.launch.rpartition("-")[2] for found in engines.values() for process in found}
        if len(epochs) != 1 or not (epoch := epochs.pop()).isdecimal():
            return None
        if all(self._saved(node) == int(epoch) for node in NODES):
            return int(epoch)
        told = [status.get("epoch") if status.get("phase") == "serving" else None for status in self._status()]
        return int(epoch) if told == [int(epoch)] * len(NODES) else None

    def settled(self) -> bool:
        """Both daemons answer, and both say that they serve."""
        return [status.get("phase") for status in self._status()] == ["serving"] * len(NODES)

    def noticed_at(self, since: float) -> float | None:
        """The first event on either node that answers to something that broke."""
        self._since = since
        times = [at for at, event in self._events(since) if _answers(event)]
        return min(times, default=None)

    def blocked(self) -> str | None:
        """The finding's id, where `sparkd status` tells a person of it with a remedy, on the node and on the other one."""
        for node, status in zip(NODES, self._status(), strict=True):
            finding = status.get("blocked")
            if status.get("phase") != "blocked" or not finding:
                continue
            done = self.pair.lab.node(node).run("sparkd status", timeout_s=20, check=False)
            if (
                done.returncode == 2
                and finding["id"] in done.stdout
                and finding.get("remedy")
                and "remedy" in done.stdout
            ):
                return str(finding["id"])
            return f"untold or without a remedy: {finding['id']}"
        return None

    def says(self) -> str:
        """Why it ended the launch that was struck; where it ended none, its last alarm."""
        events = [event for _, event in self._events(self._since)]
        for wanted in ("epoch.ended", ""):
            for event in events:
                if event["id"] == wanted or (not wanted and event["alarm"]):
                    return str(event["says"])
        return ""

    def story(self) -> str:
        """All events since the fault that was last asked about, for a failure's message."""
        return "\n".join(
            f"{event['at'][11:23]} {node} {event['id']}: {event['says']}" for _, node, event in self._told(self._since)
        )

    # --- reading ---

    def _file(self, node: str, name: str) -> Path:
        return self.pair.lab.node(node).home / "upper" / STATE / name

    def _saved(self, node: str) -> int | None:
        """The epoch that the daemon saved as serving, as its file has it."""
        try:
            saved = json.loads(self._file(node, "state.json").read_text())
            return saved["launch_epoch"] if saved["serving"] else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _status(self) -> list[dict[str, Any]]:
        """Of each node; empty where it is off, or so broken that it does not answer in time."""
        return [self.pair.status(node) for node in NODES]

    def _events(self, since: float) -> list[tuple[float, dict[str, Any]]]:
        return [(at, event) for at, _, event in self._told(since)]

    def _told(self, since: float) -> list[tuple[float, str, dict[str, Any]]]:
        """The events of both nodes, in the order of time, from the files as they lie on the nodes' disks.

        What was told by a clock that stood ahead in an earlier row is not yet."""
        found, now = [], time.time()
        for node in NODES:
            for name in ("events.jsonl.1", "events.jsonl"):
                try:
                    lines = self._file(node, name).read_text(errors="replace").splitlines()
                except OSError:
                    continue
                for line in lines:
                    try:
                        event = json.loads(line)
                        at = datetime.fromisoformat(event["at"]).timestamp()
                    except (ValueError, LookupError, TypeError):
                        continue
                    if since <= at <= now:
                        found.append((at, node, event))
        return sorted(found, key=lambda told: told[0])


def _answers(event: dict[str, Any]) -> bool:
    if event["id"] in ANSWERS or event["says"].startswith("serving -> "):
        return True
    return bool(event["alarm"]) and not event["id"].startswith(PASSING)
